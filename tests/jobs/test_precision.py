"""Fewer bits where the processor has arithmetic for them, and nowhere else."""

import pytest
import torch

from handful.jobs.precision import computing_in, has_bfloat16


@pytest.mark.parametrize(
    ("asked", "has_it", "computed"),
    [
        ("bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.float32),
        ("float32", True, torch.float32),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(
    asked: str, has_it: bool, computed: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it, raising=False)
    with computing_in(asked, "cpu"):  # type: ignore[arg-type]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed


@pytest.mark.parametrize("new", [True, False])
def test_mps_has_bfloat16_from_macos_14_on(new: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: new and (major, minor) == (14, 0))
    assert has_bfloat16("mps") == new
    assert computing_in("bfloat16", "mps")._enabled == new
    assert not computing_in("float32", "mps")._enabled
