"""The encoder itself learns: from exactly where it was, in its small parts alone, and never in the caller's model."""

from pathlib import Path

import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.errors import SettingsError
from handful.methods.lora import Lora, LoraNetwork
from handful.tuning.loop import TrainConfig
from handful.tuning.trainable import trainable_state
from methods.variants import Fits
from phantoms import phantom, support_set

SHORT = TrainConfig(iterations=4, learning_rate=2e-3)
SLICES = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
either = pytest.mark.parametrize("variant", ["lora", "adapter"])


@pytest.fixture(scope="module", params=["sam", "sam2", "sam2-video"])
def small(request: pytest.FixtureRequest) -> Backbone:
    """Half as wide as elsewhere, for here the encoder is trained."""
    makers = {"sam": tiny_models.tiny_sam, "sam2": tiny_models.tiny_sam2, "sam2-video": tiny_models.tiny_sam2_video}
    return makers[request.param](side=64)


@either
@torch.no_grad()
def test_at_the_start_the_encoder_sees_what_it_saw(variant: str, small: Backbone) -> None:
    own = LoraNetwork(small, Lora(variant=variant), 3).own
    for before, now in zip(small.encode(SLICES).features, own.encode(SLICES).features, strict=True):
        assert torch.equal(before, now)


@either
def test_only_small_parts_decoder_and_tokens_get_gradients(variant: str, small: Backbone) -> None:
    network = LoraNetwork(small, Lora(variant=variant, rank=2), 3)
    network(network.own.encode_exact(SLICES)).square().mean().backward()
    wanted = {id(p) for p in network.trained.parameters() if p.requires_grad}
    assert {id(p) for p in network.parameters() if p.grad is not None} == wanted
    assert all(p.grad is None and not p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("name", ["lora", "lora, adapter", "lora, video"])
def test_fitting_changes_the_copys_encoder_and_not_the_backbones(name: str, fits: Fits) -> None:
    segmenter = fits(name).segmenter
    assert segmenter.backbone.digest() == fits(name).before.weights
    with torch.no_grad():
        own, given = (one.encode(SLICES).main for one in (segmenter.network.own, segmenter.backbone))
    assert not torch.allclose(own, given, atol=1e-4)


def test_frozen_weights_are_shared_with_the_backbone(small: Backbone) -> None:
    theirs = {id(p) for p in small.parameters()}
    network = LoraNetwork(small, Lora(), 3)
    frozen = [p for p in network.own.image_encoder.parameters() if not p.requires_grad]
    assert len(frozen) == len(list(small.image_encoder.parameters()))
    assert all(id(p) in theirs for p in frozen)
    assert not any(id(p) in theirs for p in network.trained.parameters())


def test_every_step_shows_new_views(sam: Backbone) -> None:
    seen: list[torch.Tensor] = []

    class Watched(type(sam)):  # type: ignore[misc]
        def _encode(self, slices: torch.Tensor) -> object:
            seen.append(slices)
            return super()._encode(slices)

    watched = sam.fork()
    watched.__class__ = Watched
    Lora(batch=2, train=SHORT).fit(support_set(1), watched)
    assert len(seen) == SHORT.iterations
    assert len({tuple(one.flatten().tolist()) for batch in seen for one in batch}) == 2 * SHORT.iterations


@pytest.mark.parametrize("name", ["lora", "lora, adapter", "lora, video"])
def test_what_is_kept_holds_no_weight_of_the_encoder(name: str, fits: Fits) -> None:
    fit = fits(name)
    assert {name.split(".")[0] for name in fit.learned} == {"encoder", "mask_decoder", "tokens"}
    in_encoder = sum(tensor.numel() for name, tensor in fit.learned.items() if name.startswith("encoder"))
    assert in_encoder < 0.1 * sum(p.numel() for p in fit.backbone.image_encoder.parameters())


def test_a_cached_backbone_is_tuned_past_its_cache(sam: Backbone, tmp_path: Path) -> None:
    keeping = cached(sam, tmp_path)
    segmenter = Lora(train=SHORT).fit(support_set(1), keeping)
    segmenter.predict(phantom(7)[0])
    assert segmenter.backbone is keeping
    assert keeping.hits + keeping.misses == 0


def test_a_backbone_that_trains_is_refused(sam: Backbone) -> None:
    training = sam.fork()
    training.prompt_encoder.requires_grad_(True)
    with pytest.raises(SettingsError, match="'tiny-sam' trains; freeze it"):
        Lora(train=SHORT).fit(support_set(1), training)


@pytest.mark.parametrize("name", ["rank", "batch"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at least 1, got 0"):
        Lora(**{name: 0})


def test_the_variants_are_tuned_by_their_own_parts(sam: Backbone) -> None:
    low, wide = (set(trainable_state(LoraNetwork(sam, Lora(variant=v), 3).trained)) for v in ("lora", "adapter"))
    assert len([name for name in low if name.startswith("encoder")]) == 2 * 2 * 2  # blocks, q and v, down and up
    assert len([name for name in wide if name.startswith("encoder")]) == 2 * 2 * 4  # blocks, adapters, weights, biases
