"""A backbone named '+fast' encodes in bfloat16, where the device has it, and is another one to caches and records."""

from pathlib import Path

import pytest
import torch

from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.jobs import precision


@pytest.mark.parametrize("has_it", [True, False])
def test_slices_are_encoded_in_bfloat16(has_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has_it)
    slices = torch.rand(2, 1, 40, 48, generator=torch.Generator().manual_seed(0))
    plain, fast = load_backbone("handful-tiny@64"), load_backbone("handful-tiny@64+fast")
    kinds = list[torch.dtype]()
    fast.image_encoder.register_forward_hook(lambda *found: kinds.append(found[2].fpn_hidden_states[-1].dtype))
    ours, theirs = fast.encode(slices).main, plain.encode(slices).main
    assert kinds == [torch.bfloat16 if has_it else torch.float32]
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs) == (not has_it)
    assert float((ours - theirs).abs().max()) < 0.03 * float(theirs.abs().max())
    assert torch.equal(fast.encode_exact(slices).main, plain.encode_exact(slices).main)  # training stays as it is
    assert torch.equal(cached(fast, tmp_path).encode(slices).main, ours)
    assert torch.equal(cached(plain, tmp_path).encode(slices).main, theirs)  # from no entry of the other
    assert fast.digest() != plain.digest()
    assert cached(fast, tmp_path).digest() == fast.digest()
    assert (fast.name, fast.fork().precision) == ("handful-tiny@64+fast", "bfloat16")
