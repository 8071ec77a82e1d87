"""Bottleneck adapters: nothing changes until they are trained, they alone train, every block has two."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from handful.errors import SettingsError
from handful.tuning.adapters import add_adapters
from tiny_models import moved, tiny_sam, tiny_sam2

SLICES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
everywhere = pytest.mark.parametrize("tiny", [tiny_sam, tiny_sam2])


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def seen(backbone) -> Tensor:  # type: ignore[no-untyped-def]
    return backbone.encode_exact(SLICES).main


@everywhere
def test_the_encoder_computes_exactly_as_before_until_the_adapters_are_trained(tiny: Callable) -> None:
    backbone = tiny(side=64)
    before = seen(backbone)
    add_adapters(backbone.image_encoder, 4, rng())
    assert torch.equal(seen(backbone), before)


@everywhere
def test_gradients_reach_the_adapters_and_nothing_else(tiny: Callable) -> None:
    backbone = tiny(side=64)
    parts = add_adapters(backbone.image_encoder, 4, rng())
    for part in parts:
        moved([part])
    backbone.encode_exact(SLICES).main.square().mean().backward()
    adapters = {id(p) for part in parts for p in part.parameters()}
    assert {id(p) for p in backbone.parameters() if p.grad is not None} == adapters


@pytest.mark.parametrize("place", [0, 1], ids=["behind the attention", "beside the MLP"])
def test_each_of_a_blocks_two_adapters_changes_the_result(place: int) -> None:
    backbone = tiny_sam(side=64)
    before = seen(backbone)
    parts = add_adapters(backbone.image_encoder, 4, rng())
    assert len(parts) == 2 * len(backbone.image_encoder.layers)
    moved([parts[place]])
    assert not torch.allclose(seen(backbone), before, atol=1e-3)


def test_the_encoders_own_weights_stay_as_they_are() -> None:
    backbone, plain = tiny_sam2(side=64), tiny_sam2(side=64)
    for part in add_adapters(backbone.image_encoder, 4, rng()):
        moved([part])
    kept = {id(p) for p in backbone.parameters() if not p.requires_grad}
    own = [p for p in backbone.parameters() if id(p) in kept]
    assert len(own) == len(list(plain.parameters()))
    assert all(any(torch.equal(p, q) for q in plain.parameters() if q.shape == p.shape) for p in own)


def test_a_width_of_nought_and_a_second_helping_are_refused() -> None:
    encoder = tiny_sam(side=64).image_encoder
    with pytest.raises(SettingsError, match="width must be at least 1, got 0"):
        add_adapters(encoder, 0, rng())
    add_adapters(encoder, 1, rng())
    with pytest.raises(SettingsError, match="has adapters already"):
        add_adapters(encoder, 1, rng())


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(SettingsError, match="Conv2d has no transformer block"):
        add_adapters(nn.Conv2d(1, 1, 3), 4, rng())
