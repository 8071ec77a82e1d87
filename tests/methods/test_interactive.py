"""Interactive tuning learns to answer prompts, touches what it should, and can be asked in every way."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.data.support import SupportSet
from handful.errors import LabelError, SettingsError
from handful.jobs.progress import Run
from handful.methods.interactive.method import Interactive, InteractiveSegmenter
from handful.prompts.prompt_mix import PromptMix, simulate_prompts
from handful.prompts.prompts import PADDING, Prompts
from handful.prompts.simulation import Annotator, simulate
from handful.tuning.loop import TrainConfig
from handful.tuning.pruning import Pruning
from methods.variants import Fits
from phantoms import LABELS, phantom, phantom_case, support_set

SHORT = TrainConfig(iterations=2)
BRIEF = Interactive(batch=2, rounds=1, train=SHORT)


def moving(iterations: int) -> TrainConfig:
    return TrainConfig(iterations=iterations, learning_rate=2e-3)


@pytest.fixture(scope="module")
def brief(sam: Backbone) -> InteractiveSegmenter:
    return BRIEF.fit(support_set(1), sam)


def scene(segmenter: InteractiveSegmenter) -> tuple[torch.Tensor, torch.Tensor]:
    """The slices of an unseen phantom and its masks, those slices alone that hold 40 pixels of both labels."""
    image, reference = phantom(7)
    classes = segmenter.slicer.view(image).of(reference.array)
    masks = torch.from_numpy(np.stack([classes == value for value in LABELS.values], axis=1))
    both = (masks.flatten(2).sum(dim=2) >= 40).all(dim=1)
    return segmenter.slicer.cut(image)[both], masks[both]


# What it can do.


@pytest.mark.parametrize("behaviour", ["tight_box", "centre"])
def test_a_tuned_backbone_segments_and_is_corrected_far_better_than_an_untuned_one(
    behaviour: str, tuned: InteractiveSegmenter, sam: Backbone
):
    untuned = Interactive(train=TrainConfig(iterations=0)).fit(support_set(1), sam)
    slices, masks = scene(tuned)
    image = tuned.backbone.encode(slices)
    size = (slices.shape[-2], slices.shape[-1])

    def dice(asked: InteractiveSegmenter) -> float:
        generator = torch.Generator().manual_seed(0)
        first = simulate_prompts(masks, PromptMix.only(behaviour), generator)
        rounds = simulate(
            lambda said: asked.segment_prompted(image, said, size).logits, masks, first, Annotator(), 2, generator
        )
        return float(rounds.dice.mean())

    assert dice(tuned) > 0.5
    assert dice(tuned) > dice(untuned) + 0.3


def test_prompts_for_one_label_find_that_label(tuned: InteractiveSegmenter):
    slices, masks = scene(tuned)
    size = (slices.shape[-2], slices.shape[-1])
    said = simulate_prompts(masks, PromptMix.only("tight_box"), torch.Generator().manual_seed(0))
    assert said.boxes is not None
    image = tuned.backbone.encode(slices)
    right = tuned.segment_prompted(image, said, size).logits > 0
    swapped = tuned.segment_prompted(image, replace(said, boxes=said.boxes.flip(1)), size).logits > 0
    assert (right & masks).sum() > 3 * (swapped & masks).sum()


def test_an_error_head_suggests_a_click_whose_sign_fits_the_mask(tuned: InteractiveSegmenter):
    slices, masks = scene(tuned)
    size = (slices.shape[-2], slices.shape[-1])
    said = simulate_prompts(masks, PromptMix.only("centre"), torch.Generator().manual_seed(0))
    answer = tuned.segment_prompted(tuned.backbone.encode(slices), said, size)
    assert answer.error is not None
    assert answer.error.shape == answer.logits.shape
    assert bool(((answer.error >= 0) & (answer.error <= 1)).all())
    click = tuned.suggest(answer)
    assert click.points is not None
    assert click.point_labels is not None
    for n in range(len(slices)):
        for k in range(2):
            x, y = click.points[n, k, 0].long().tolist()
            assert bool(answer.logits[n, k, y, x] > 0) == (int(click.point_labels[n, k, 0]) == 0)


def test_the_error_head_knows_wrong_from_right(tuned: InteractiveSegmenter):
    slices, masks = scene(tuned)
    size = (slices.shape[-2], slices.shape[-1])
    said = simulate_prompts(masks, PromptMix.only("uniform"), torch.Generator().manual_seed(0))
    answer = tuned.segment_prompted(tuned.backbone.encode(slices), said, size)
    assert answer.error is not None
    wrong = (answer.logits > 0) != masks
    assert float(answer.error[wrong].mean()) > 1.5 * float(answer.error[~wrong].mean())


def test_without_an_error_head_no_click_is_suggested(brief: InteractiveSegmenter):
    answer = brief.segment_prompted(
        brief.backbone.encode(torch.rand(1, 1, 20, 24)), Prompts(boxes=torch.ones(1, 2, 4)), (20, 24)
    )
    assert answer.error is None
    with pytest.raises(SettingsError, match="error_head=True"):
        brief.suggest(answer)


# Asking.


def test_labels_have_the_same_masks_alone_and_together(brief: InteractiveSegmenter):
    image = brief.backbone.encode(torch.rand(2, 1, 40, 40))
    generator = torch.Generator().manual_seed(0)
    points = 40 * torch.rand(2, 11, 3, 2, generator=generator)
    labels = torch.randint(0, 2, (2, 11, 3), generator=generator)
    boxes = torch.tensor([5.0, 6, 25, 30]) * (torch.arange(11) % 2)[:, None]
    said = Prompts(points, labels, boxes.expand(2, -1, -1), torch.randn(2, 11, 40, 40, generator=generator))
    for prompts in (said, replace(said, masks=None)):
        together = brief.segment_prompted(image, prompts, (40, 40))
        for k in (0, 5, 10):
            parts = (prompts.points, prompts.point_labels, prompts.boxes, prompts.masks)
            one = Prompts(*[None if part is None else part[:, k : k + 1] for part in parts])
            alone = brief.segment_prompted(image, one, (40, 40))
            assert torch.allclose(alone.logits[:, 0], together.logits[:, k], atol=1e-4)
            assert torch.allclose(alone.iou[:, 0], together.iou[:, k], atol=1e-4)


def test_a_box_of_zeros_is_no_box_and_padding_is_no_point(brief: InteractiveSegmenter):
    image = brief.backbone.encode(torch.rand(1, 1, 40, 40))
    click = Prompts(torch.tensor([[[[12.0, 20.0]]]]), torch.tensor([[[1]]]))
    plain = brief.segment_prompted(image, click, (40, 40)).logits
    said_more = Prompts(
        torch.tensor([[[[12.0, 20.0], [30.0, 3.0]]]]), torch.tensor([[[1, PADDING]]]), torch.zeros(1, 1, 4)
    )
    assert torch.equal(brief.segment_prompted(image, said_more, (40, 40)).logits, plain)
    boxed = replace(said_more, boxes=torch.tensor([[[5.0, 6, 25, 30]]]))
    assert not torch.allclose(brief.segment_prompted(image, boxed, (40, 40)).logits, plain)


def test_the_previous_mask_makes_a_difference(brief: InteractiveSegmenter):
    image = brief.backbone.encode(torch.rand(1, 1, 40, 40))
    click = Prompts(torch.tensor([[[[12.0, 20.0]]]]), torch.tensor([[[1]]]))
    plain = brief.segment_prompted(image, click, (40, 40)).logits
    again = brief.segment_prompted(image, replace(click, masks=plain), (40, 40)).logits
    assert again.shape == plain.shape
    assert not torch.allclose(again, plain)


def test_predicted_ious_lie_between_nought_and_one(brief: InteractiveSegmenter):
    iou = brief.segment_prompted(
        brief.backbone.encode(torch.rand(2, 1, 30, 30)), Prompts(boxes=torch.ones(2, 3, 4)), (30, 30)
    ).iou
    assert iou.shape == (2, 3)
    assert bool(((iou >= 0) & (iou <= 1)).all())


def test_as_a_promptable_it_gives_the_same_masks_and_none_without_prompts(brief: InteractiveSegmenter):
    slices = torch.rand(2, 1, 40, 40)
    said = Prompts(boxes=torch.tensor([[[5.0, 6, 25, 30], [0, 0, 0, 0]]]).expand(2, -1, -1))
    promptable = brief.promptable()
    logits = promptable(slices, said)
    expected = brief.segment_prompted(brief.backbone.encode(slices), said, (40, 40)).logits
    assert torch.equal(logits[:, 0], expected[:, 0])
    assert not (logits[:, 1] > 0).any()
    assert promptable.labels == brief.labels


def test_labels_that_the_nearest_slice_lacks_are_not_predicted(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    assert reference is not None
    array = np.where(reference.array == 1, 1, 0).astype(np.int16)
    array[:, 2] = reference.array[:, 2]  # one slice with both labels, the others with the ball alone
    support = SupportSet((replace(case, reference=replace(reference, array=array)),), LABELS)
    found = BRIEF.fit(support, sam).predict(case.read_image())
    assert not (np.delete(found.array, 2, axis=1) == 3).any()


# What trains.


@pytest.mark.parametrize("model", ["sam", "sam2"])
@pytest.mark.parametrize("prompts", ["phpg", "centre"])
def test_decoder_and_prompt_encoder_train_and_the_position_code_does_not(
    model: str, prompts: str, request: pytest.FixtureRequest
):
    backbone = request.getfixturevalue(model)
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    method = replace(BRIEF, prompts=prompts, mask_prompts=1.0, train=moving(2))
    learned = method.fit(support_set(1), backbone).learned()
    assert not [name for name in learned if "shared_embedding" in name or "conv_s0" in name]
    for part in ("mask_decoder.upscale_conv2.weight", "prompt_encoder.mask_embed.conv1.weight"):
        assert not torch.equal(learned[f"tuned/{part}"], before[f"model.{part}"])


def test_an_update_of_zero_iterations_leaves_the_backbone_as_it_is(sam: Backbone):
    segmenter = replace(BRIEF, train=TrainConfig(iterations=0)).fit(support_set(1), sam)
    decoder = dict(sam.mask_decoder.named_parameters())
    name = "upscale_conv2.weight"
    assert torch.equal(segmenter.learned()[f"tuned/mask_decoder.{name}"], decoder[name])
    assert segmenter.pruning_report is None


def test_organs_too_small_for_the_models_input_are_reported(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    assert reference is not None
    wide = np.zeros((1, 300, 6, 300), dtype=np.float32)
    array = np.zeros((300, 6, 300), dtype=np.int16)
    array[5, 2, 5], array[9, 2, 9] = LABELS.values
    geometry = dataclasses.replace(reference.geometry, shape=array.shape)
    lost = replace(
        case,
        image=replace(case.read_image(), array=wide, geometry=geometry),
        reference=replace(reference, array=array, geometry=geometry),
    )
    with pytest.raises(LabelError, match="larger"):
        BRIEF.fit(SupportSet((lost,), LABELS), sam)


# An encoder that learns, too.


LEARNING = replace(BRIEF, encoder_rank=2, error_head=True, train=moving(3))


def test_an_update_of_the_encoder_is_learnt_and_the_backbone_stays_as_it_was(fits: Fits):
    fit = fits("interactive, encoder")
    ups = [value for name, value in fit.learned.items() if name.startswith("tuned/encoder") and "up" in name]
    assert ups
    assert all(value.any() for value in ups)  # they begin as zeros
    assert fit.segmenter.backbone is fit.backbone
    assert fit.backbone.digest() == fit.before.weights
    slices = torch.rand(1, 1, 24, 28)
    with torch.no_grad():
        own, given = (one.encode(slices).main for one in (fit.segmenter.encoder, fit.backbone))
    assert not torch.allclose(own, given, atol=1e-4)


@pytest.mark.parametrize("model", ["sam", "sam2"])
def test_frozen_weights_of_an_encoder_that_learns_are_shared(model: str, request: pytest.FixtureRequest):
    backbone = request.getfixturevalue(model)
    segmenter = replace(LEARNING, train=TrainConfig(iterations=0)).fit(support_set(1), backbone)
    theirs = {id(weight) for weight in backbone.image_encoder.parameters()}
    own = {id(weight) for weight in segmenter.encoder.image_encoder.parameters() if not weight.requires_grad}
    assert own == theirs
    assert not [name for name in segmenter.learned() if "qkv" in name]


def test_a_cache_is_passed_by_where_the_encoder_learns(sam: Backbone, tmp_path: Path):
    kept = cached(sam, tmp_path)
    LEARNING.fit(support_set(1), kept).predict(phantom(7)[0])
    assert (kept.hits, kept.misses) == (0, 0)


def test_losses_and_annotators_are_in_float32_where_the_network_is_in_bfloat16(
    sam: Backbone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("handful.jobs.precision.has_bfloat16", lambda device: True)  # emulated where it is not
    train = TrainConfig(iterations=2, learning_rate=1e-4)
    methods = [replace(BRIEF, error_head=True, train=replace(train, precision=p)) for p in ("float32", "bfloat16")]
    exact, coarse = (method.fit(support_set(1), sam).learned() for method in methods)
    changed = [name for name in exact if not torch.equal(exact[name], coarse[name])]
    assert changed
    assert all(torch.allclose(exact[name], coarse[name], atol=1e-3) for name in exact)


# Pruning.


@pytest.mark.parametrize("rule", ["random", "infobatch", "cbdp"])
def test_pruning_makes_fewer_steps_and_reports_what_it_kept(rule: str, sam: Backbone):
    steps: list[int] = []
    run = Run(report=lambda step, total, note: steps.append(step))
    method = replace(BRIEF, pruning=Pruning(rule=rule, draws=10), train=TrainConfig(iterations=16))
    report = method.fit(support_set(1), sam, run).pruning_report
    assert report is not None
    assert len(steps) == report.steps < 16
    assert report.fraction < 1
    assert any(record.pruned for record in report.epochs)
    assert all(len(record.kept_per_class) == 3 for record in report.epochs)


@pytest.mark.parametrize("rule", ["none", "cbdp"])
def test_a_fit_that_was_killed_after_its_training_reports_the_same_pruning(rule: str, sam: Backbone, tmp_path: Path):
    method = replace(BRIEF, pruning=Pruning(rule=rule), train=TrainConfig(iterations=8))
    first, again = (method.fit(support_set(1), sam, Run(scratch=tmp_path)).pruning_report for _ in range(2))
    assert first is not None
    assert first.steps > 0
    assert again == first


@pytest.mark.parametrize(
    ("name", "value"), [("batch", 0), ("rounds", -1), ("regions", 0), ("mask_prompts", 1.5), ("encoder_rank", -1)]
)
def test_a_number_out_of_range_is_refused_by_name(name: str, value: float):
    with pytest.raises(SettingsError, match=name):
        Interactive(**{name: value})
