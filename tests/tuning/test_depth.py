"""Depth adapters: nothing changes until they are trained, then slices depend on their neighbours."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

import tiny_models
from handful.errors import SettingsError
from handful.tuning.depth import DepthConvolution, add_depth_attention, add_depth_convolutions
from tiny_models import moved

STACK = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
everywhere = pytest.mark.parametrize("tiny", [tiny_models.tiny_sam, tiny_models.tiny_sam2])
either = pytest.mark.parametrize("add", [add_depth_convolutions, add_depth_attention])


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def embeddings(backbone, slices: Tensor = STACK) -> Tensor:  # type: ignore[no-untyped-def]
    return backbone.encode_exact(slices).main


@either
@everywhere
def test_the_encoder_computes_exactly_as_before_until_the_adapters_are_trained(add: Callable, tiny: Callable) -> None:
    backbone = tiny(side=64)
    before = embeddings(backbone)
    add(backbone.image_encoder, 4, rng())
    assert torch.equal(embeddings(backbone), before)


@either
@everywhere
def test_gradients_reach_the_adapters_and_nothing_else(add: Callable, tiny: Callable) -> None:
    backbone = tiny(side=64)
    parts = add(backbone.image_encoder, 4, rng())
    moved(parts)
    backbone.encode_exact(STACK).main.square().mean().backward()
    adapters = {id(p) for part in parts for p in part.parameters()}
    assert {id(p) for p in backbone.parameters() if p.grad is not None} == adapters


@either
@everywhere
def test_a_slice_depends_on_its_neighbour(add: Callable, tiny: Callable) -> None:
    backbone = tiny(side=64)
    moved(add(backbone.image_encoder, 4, rng()))
    other = STACK.clone()
    other[2] = 1 - other[2]
    assert not torch.allclose(embeddings(backbone)[1], embeddings(backbone, other)[1], atol=1e-4)


def test_the_order_of_slices_matters_to_the_convolution_and_not_to_the_attention() -> None:
    for add, matters in ((add_depth_convolutions, True), (add_depth_attention, False)):
        backbone = tiny_models.tiny_sam(side=64)
        moved(add(backbone.image_encoder, 4, rng()))
        middle, swapped = embeddings(backbone)[1], embeddings(backbone, STACK[[2, 1, 0]])[1]
        assert torch.allclose(middle, swapped, atol=1e-5) != matters


def test_one_slice_is_a_stack_whose_neighbours_are_itself() -> None:
    adapter = DepthConvolution(5, 4, rng())
    moved([adapter])
    tokens = torch.rand(1, 2, 2, 5, generator=rng(1))
    assert torch.allclose(adapter(tokens)[0], adapter(tokens.expand(3, -1, -1, -1))[1], atol=1e-6)


@either
def test_wrong_encoders_and_widths_are_refused(add: Callable) -> None:
    encoder = tiny_models.tiny_sam(side=64).image_encoder
    with pytest.raises(SettingsError, match="width must be at least 1, got 0"):
        add(encoder, 0, rng())
    add(encoder, 1, rng())
    with pytest.raises(SettingsError, match="has depth adapters already"):
        add(encoder, 1, rng())
    with pytest.raises(SettingsError, match="without a norm before their attention"):
        add(tiny_models.tiny_mobile_sam(side=64).image_encoder, 1, rng())
    with pytest.raises(SettingsError, match="Conv2d has no transformer block"):
        add(nn.Conv2d(1, 1, 3), 1, rng())
