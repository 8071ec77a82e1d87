"""The encoder itself learns: from exactly where it was, in its small parts alone, and never in the caller's model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.lora import Lora, LoraNetwork, LoraSegmenter
from handful.tuning.loop import TrainConfig
from handful.tuning.trainable import trainable_state
from phantoms import LABELS, phantom, support_set

SHORT = TrainConfig(iterations=4, learning_rate=2e-3)
SLICES = torch.rand(2, 1, 24, 28, generator=torch.Generator().manual_seed(0))
either = pytest.mark.parametrize("variant", ["lora", "adapter"])


@pytest.fixture(scope="module", params=["sam", "sam2", "sam2-video"])
def small(request: pytest.FixtureRequest) -> Backbone:
    """Half as wide as elsewhere, for here the encoder is trained."""
    makers = {"sam": tiny_models.tiny_sam, "sam2": tiny_models.tiny_sam2, "sam2-video": tiny_models.tiny_sam2_video}
    return makers[request.param](side=64)


@pytest.fixture(scope="module")
def small_sam() -> Backbone:
    return tiny_models.tiny_sam(side=64)


def dice(segmenter: LoraSegmenter, seed: int = 7) -> float:
    image, truth = phantom(seed)
    found = segmenter.predict(image).array
    scores = []
    for value in LABELS.values:
        a, b = found == value, truth.array == value
        scores.append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return float(np.mean(scores))


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


@either
def test_fitting_changes_the_copys_encoder_and_not_the_backbone(variant: str, small: Backbone) -> None:
    before, seen = small.digest(), small.encode(SLICES).main
    segmenter = Lora(variant=variant, train=SHORT).fit(support_set(2), small)
    assert small.digest() == segmenter.backbone.digest() == before
    assert torch.equal(small.encode(SLICES).main, seen)
    with torch.no_grad():
        assert not torch.allclose(segmenter.network.own.encode(SLICES).main, seen, atol=1e-4)


def test_frozen_weights_are_shared_with_the_backbone(small: Backbone) -> None:
    theirs = {id(p) for p in small.parameters()}
    network = LoraNetwork(small, Lora(), 3)
    frozen = [p for p in network.own.image_encoder.parameters() if not p.requires_grad]
    assert len(frozen) == len(list(small.image_encoder.parameters()))
    assert all(id(p) in theirs for p in frozen)
    assert not any(id(p) in theirs for p in network.trained.parameters())


def test_every_step_shows_new_views(small_sam: Backbone) -> None:
    seen: list[torch.Tensor] = []

    class Watched(type(small_sam)):  # type: ignore[misc]
        def _encode(self, slices: torch.Tensor) -> object:
            seen.append(slices)
            return super()._encode(slices)

    watched = small_sam.fork()
    watched.__class__ = Watched
    Lora(batch=2, train=SHORT).fit(support_set(1), watched)
    assert len(seen) == SHORT.iterations
    assert len({tuple(one.flatten().tolist()) for batch in seen for one in batch}) == 2 * SHORT.iterations


@pytest.mark.slow
@either
def test_fitting_finds_the_labels_of_an_unseen_phantom(variant: str, small_sam: Backbone) -> None:
    start, end = (
        dice(Lora(variant=variant, train=TrainConfig(iterations=n, learning_rate=1e-2)).fit(support_set(3), small_sam))
        for n in (1, 160)
    )
    assert end > max(0.5, start + 0.2)


@either
def test_what_is_restored_answers_as_before(variant: str, small: Backbone) -> None:
    method = Lora(variant=variant, train=SHORT)
    segmenter = method.fit(support_set(2), small)
    again = method.restore(LABELS, segmenter.slicer, small, segmenter.learned())
    with torch.inference_mode():
        assert torch.equal(again(SLICES), segmenter(SLICES))


@either
def test_what_is_kept_holds_no_weight_of_the_encoder(variant: str, small: Backbone) -> None:
    learned = Lora(variant=variant, rank=2, train=SHORT).fit(support_set(1), small).learned()
    assert {name.split(".")[0] for name in learned} == {"encoder", "mask_decoder", "tokens"}
    in_encoder = sum(tensor.numel() for name, tensor in learned.items() if name.startswith("encoder"))
    assert in_encoder < 0.1 * sum(p.numel() for p in small.image_encoder.parameters())


@either
def test_a_killed_fit_goes_on_to_the_same_weights(variant: str, small_sam: Backbone, tmp_path: Path) -> None:
    method = Lora(variant=variant, train=dataclasses.replace(SHORT, iterations=5))

    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    undisturbed = method.fit(support_set(2), small_sam).learned()
    with pytest.raises(KeyboardInterrupt):
        method.fit(support_set(2), small_sam, Run(scratch=tmp_path, report=kill, save_every_s=0.0))
    steps: list[int] = []
    run = Run(scratch=tmp_path, report=lambda step, *_: steps.append(step))
    resumed = method.fit(support_set(2), small_sam, run).learned()
    assert steps[0] == 3
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_half_done_work_of_other_cases_is_not_taken_up(small_sam: Backbone, tmp_path: Path) -> None:
    method = Lora(train=SHORT)
    method.fit(support_set(2), small_sam, Run(scratch=tmp_path))
    steps: list[int] = []
    method.fit(support_set(1), small_sam, Run(scratch=tmp_path, report=lambda step, *_: steps.append(step)))
    assert steps == [1, 2, 3, 4]


def test_a_cached_backbone_is_tuned_past_its_cache(small: Backbone, tmp_path: Path) -> None:
    keeping = cached(small, tmp_path)
    plain, past = (Lora(train=SHORT).fit(support_set(1), one) for one in (small, keeping))
    with torch.inference_mode():
        assert torch.equal(past(SLICES), plain(SLICES))
    assert past.backbone is keeping
    assert keeping.hits + keeping.misses == 0


def test_a_backbone_that_trains_is_refused(small_sam: Backbone) -> None:
    training = small_sam.fork()
    training.prompt_encoder.requires_grad_(True)
    with pytest.raises(SettingsError, match="'tiny-sam' trains; freeze it"):
        Lora(train=SHORT).fit(support_set(1), training)


@pytest.mark.parametrize("name", ["rank", "batch"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at least 1, got 0"):
        Lora(**{name: 0})


def test_the_variants_are_tuned_by_their_own_parts(small_sam: Backbone) -> None:
    low, wide = (set(trainable_state(LoraNetwork(small_sam, Lora(variant=v), 3).trained)) for v in ("lora", "adapter"))
    assert len([name for name in low if name.startswith("encoder")]) == 2 * 2 * 2  # blocks, q and v, down and up
    assert len([name for name in wide if name.startswith("encoder")]) == 2 * 2 * 4  # blocks, adapters, weights, biases
