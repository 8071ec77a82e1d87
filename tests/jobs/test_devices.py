"""A device is found by its name, or refused with what to do."""

import pytest
import torch

from handful.errors import SettingsError
from handful.jobs.devices import choose_device


def test_the_device_is_found_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="tpu"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_cuda_then_mps_then_the_cpu(cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(chosen)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has it")
def test_mps_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="no mps"):
        choose_device("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="no cuda"):
        choose_device("cuda")
