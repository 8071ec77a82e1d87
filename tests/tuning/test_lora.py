"""Low-rank updates: nothing changes until they are trained, they alone train, and they merge and come apart again."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from handful.errors import SettingsError
from handful.tuning.lora import LowRankQkv, add_lora, merge_lora, unmerge_lora
from tiny_models import moved, tiny_sam, tiny_sam2

SLICES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
everywhere = pytest.mark.parametrize("tiny", [tiny_sam, tiny_sam2])


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def seen(backbone) -> Tensor:  # type: ignore[no-untyped-def]
    return backbone.encode_exact(SLICES).main


@everywhere
def test_the_encoder_computes_exactly_as_before_until_the_updates_are_trained(tiny: Callable) -> None:
    backbone = tiny(side=64)
    before = seen(backbone)
    parts = add_lora(backbone.image_encoder, 4, rng())
    assert torch.equal(seen(backbone), before)
    moved(parts)
    assert not torch.allclose(seen(backbone), before, atol=1e-3)


@everywhere
def test_gradients_reach_the_updates_and_nothing_else(tiny: Callable) -> None:
    backbone = tiny(side=64)
    parts = add_lora(backbone.image_encoder, 4, rng())
    moved(parts)
    backbone.encode_exact(SLICES).main.square().mean().backward()
    updates = {id(p) for part in parts for p in part.parameters()}
    touched = {id(p) for p in backbone.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == updates


def test_queries_and_values_are_updated_and_keys_are_not() -> None:
    layer = nn.Linear(12, 36)
    attention = nn.Module()
    attention.qkv = layer
    moved(add_lora(attention, 2, rng()))
    assert isinstance(attention.qkv, LowRankQkv)
    change = attention.qkv.weight() - layer.weight
    query, key, value = change.split(12)
    assert not key.any()
    assert torch.linalg.matrix_rank(query) == torch.linalg.matrix_rank(value) == 2


def test_a_stage_of_hiera_that_widens_gets_updates_of_its_own_shapes() -> None:
    parts = add_lora(tiny_sam2(side=64).image_encoder, 3, rng())
    shapes = {(tuple(part.down.shape), tuple(part.up.shape)) for part in parts}
    assert ((3, 16), (32, 3)) in shapes


@everywhere
def test_merging_changes_no_prediction_and_is_undone_exactly(tiny: Callable) -> None:
    backbone = tiny(side=64)
    moved(add_lora(backbone.image_encoder, 4, rng()))
    apart = seen(backbone)
    merge_lora(backbone.image_encoder)
    torch.testing.assert_close(seen(backbone), apart, atol=1e-4, rtol=1e-4)
    unmerge_lora(backbone.image_encoder)
    assert torch.equal(seen(backbone), apart)


def test_the_encoders_own_weights_are_never_written_to() -> None:
    backbone, plain = tiny_sam(side=64), tiny_sam(side=64)
    layer = backbone.image_encoder.layers[0].attn.qkv
    moved(add_lora(backbone.image_encoder, 4, rng()))
    merge_lora(backbone.image_encoder)
    assert backbone.image_encoder.layers[0].attn.qkv.qkv is layer
    assert torch.equal(layer.weight, plain.image_encoder.layers[0].attn.qkv.weight)


def test_what_is_merged_is_no_part_of_the_state() -> None:
    backbone = tiny_sam(side=64)
    add_lora(backbone.image_encoder, 4, rng())
    before = set(backbone.state_dict())
    merge_lora(backbone.image_encoder)
    assert set(backbone.state_dict()) == before


def test_one_seed_gives_one_update() -> None:
    first, again, other = (
        [part.down for part in add_lora(tiny_sam(side=64).image_encoder, 4, rng(seed))] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_rank_of_nought_and_a_second_helping_are_refused() -> None:
    encoder = tiny_sam(side=64).image_encoder
    with pytest.raises(SettingsError, match="rank must be at least 1, got 0"):
        add_lora(encoder, 0, rng())
    add_lora(encoder, 1, rng())
    with pytest.raises(SettingsError, match="has low-rank updates already"):
        add_lora(encoder, 1, rng())


def test_an_encoder_without_attention_is_refused() -> None:
    with pytest.raises(SettingsError, match="Conv2d has no attention with a fused qkv layer"):
        add_lora(nn.Conv2d(1, 1, 3), 4, rng())
