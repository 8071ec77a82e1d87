"""Learning from scribbles: what counts as one, the losses, the coverage rule, and what a fit makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.checkpoint.model import open_model, save
from handful.checkpoint.record import describe_support
from handful.curation.quality import QualityConfig, predict_quality
from handful.data.cases import Case
from handful.data.scribbles import scribbled
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap
from handful.errors import LabelError
from handful.methods.catalog import METHODS, build_method
from handful.methods.left_out import score_left_out
from handful.methods.self_training.method import SelfTraining
from handful.methods.self_training.pool import Pool, labels_in_one_piece
from handful.methods.stacks import UNKNOWN, StackedSupport, class_numbers
from handful.methods.unet.choice import chosen_side
from handful.methods.unet.method import UNet
from handful.methods.unet.network import Encoder, NetPlan, StackShape
from handful.methods.unet.scribbles import covering, inconsistency, points_along, second_side
from handful.methods.unet.training import exits_loss
from handful.methods.wrappers.largest_piece import OnePiece
from handful.methods.wrappers.roi_margin import region_is_large
from handful.tuning.loop import TrainConfig
from handful.tuning.losses import dice_ce, partial_ce, with_scribbles
from phantoms import LABELS, phantom, phantom_case, support_set
from scores import mean_dice

SMALL = UNet(encoder="none", channels=4, batch=2, side=32, train=TrainConfig(iterations=2))


def scribbled_set(n: int = 2, width: int = 1) -> SupportSet:
    return SupportSet(tuple(scribbled(phantom_case(seed), 0, width) for seed in range(n)), LABELS)


def only_whole_slices(case: Case, *labelled: int) -> Case:
    reference = case.read_reference()
    assert reference is not None
    array = np.full_like(reference.array, IGNORE)
    array[:, list(labelled)] = reference.array[:, list(labelled)]
    return replace(case, reference=replace(reference, array=array))


# What counts as a scribble.


def test_few_labelled_pixels_are_scribbles_and_few_labelled_slices_are_not():
    whole, slices = support_set(1).facts[0], SupportSet((only_whole_slices(phantom_case(0), 2, 3),), LABELS).facts[0]
    strokes = scribbled_set(1).facts[0]
    assert [facts.scribbled for facts in (whole, slices, strokes)] == [False, False, True]
    assert (whole.labelled_share, slices.labelled_share) == (1.0, 1.0)
    assert 0.01 < strokes.labelled_share < 0.3


def test_scribbled_slices_are_marked_one_by_one():
    case = scribbled(phantom_case(0), 0, 1)
    assert isinstance(case.reference, LabelMap)
    whole = phantom_case(0).read_reference()
    assert whole is not None
    case.reference.array[:, 2] = whole.array[:, 2]
    labelled = next(SupportSet((case,), LABELS).slices(Slicer()))
    whole_ones = torch.nonzero(~labelled.scribbled)[:, 0].tolist()
    assert [labelled.grid.index_in_array(labelled.index[row]) for row in whole_ones] == [2]


def test_a_stroke_of_one_pixel_survives_a_coarse_square():
    support = scribbled_set(1)
    labelled = next(support.slices(support.resolve(Slicer())))
    large = replace(
        labelled,
        grid=replace(labelled.grid, geometry=replace(labelled.grid.geometry, shape=(96, 6, 112))),
        slices=torch.zeros(6, 1, 96, 112),
        classes=torch.zeros(6, 96, 112, dtype=torch.int16),
        valid_mask=torch.zeros(6, 96, 112, dtype=torch.bool),
    )
    large.classes[:, 20, 10:90], large.valid_mask[:, 20, 10:90] = 1, True
    large.valid_mask[:, 70, 10:90] = True
    found = class_numbers(large, 32)[0]
    assert 15 < (found == 1).sum() < 80
    assert 15 < (found == 0).sum() < 80
    assert (found == UNKNOWN).float().mean() > 0.8
    assert not (found[:14] == 0).any()  # what is not labelled is no background


# The losses.


def test_the_partial_cross_entropy_is_that_of_labelled_pixels_with_all_classes_alike():
    logits = torch.tensor([[[[3.0, -3.0, 0.0, 9.0]]]])
    target, known = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]]), torch.tensor([[[True, True, True, False]]])
    inside = torch.nn.functional.softplus(torch.tensor(-3.0))
    outside = (torch.nn.functional.softplus(torch.tensor(-3.0)) + np.log(2)) / 2
    assert partial_ce(logits, target, known) == pytest.approx(float((inside + outside) / 2), rel=1e-5)
    assert partial_ce(logits, target, torch.zeros_like(known)) == 0


def test_whole_masks_keep_their_loss_and_scribbles_have_no_dice():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 8, 8, generator=generator)
    target = (torch.rand(3, 2, 8, 8, generator=generator) > 0.9).float()
    known = torch.rand(3, 8, 8, generator=generator) > 0.5
    strokes = torch.tensor([False, True, False])
    none = with_scribbles(dice_ce, logits, target, known, torch.zeros(3, dtype=torch.bool))
    assert none == dice_ce(logits, target, known)
    mixed = with_scribbles(dice_ce, logits, target, known, strokes)
    expected = partial_ce(logits[1:2], target[1:2], known[1:2]) + 2 * dice_ce(
        logits[[0, 2]], target[[0, 2]], known[[0, 2]]
    )
    assert float(mixed) == pytest.approx(float(expected / 3), rel=1e-5)


def test_coarser_exits_learn_from_thin_strokes():
    masks, known = torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    masks[..., 5, :], known[..., 5, :] = 1, True
    coarse = torch.zeros(1, 1, 1, 4, 4, requires_grad=True)
    exits_loss([torch.zeros(1, 1, 1, 16, 16), coarse], masks, known, scribbled=torch.tensor([True])).backward()
    assert coarse.grad is not None
    assert (coarse.grad < 0).any()


def test_two_scales_that_agree_cost_nothing():
    logits = torch.zeros(1, 1, 1, 16, 16)
    logits[..., 4:12, 4:12] = 8.0
    same, other = logits[..., ::2, ::2], -logits[..., ::2, ::2]
    assert inconsistency(logits, same) < 1e-4
    assert inconsistency(logits, other) > 0.05


@pytest.mark.parametrize(("side", "second"), [(128, 64), (144, 64), (160, 64), (256, 128), (96, 48)])
def test_the_second_scale_is_one_that_the_net_can_halve(side: int, second: int):
    plan = NetPlan.of([StackShape(1, (side, side), 1.0)], side, 1)
    assert second_side(plan) == second


@pytest.mark.parametrize("encoder", ["none", "imagenet"])
def test_a_net_takes_a_smaller_square(encoder: Encoder):
    plan = NetPlan.of([StackShape(1, (128, 128), 1.0)], 128, 1, 2, encoder)
    net = UNet(encoder=encoder, channels=2).net(plan, 1, pretrained=False).train()
    assert net.exits(torch.rand(1, 1, 1, 64, 64))[0].shape == (1, 1, 1, 64, 64)


# The coverage rule.


def test_masks_are_accepted_where_they_cover_their_stroke_and_leave_others_alone():
    stroke, others = torch.zeros(4, 10, 30, dtype=torch.bool), torch.zeros(4, 10, 30, dtype=torch.bool)
    stroke[:, 2, :10], others[:, 7, :20] = True, True
    masks = torch.zeros(4, 10, 30, dtype=torch.bool)
    masks[0, 1:4, :5] = True  # half of the stroke
    masks[1, 1:4, :4] = True  # less than half of it
    masks[2, 1:8, :2] = True
    masks[2, 2, :10] = True  # all of it, and two of twenty pixels of other strokes
    masks[3, 1:8, :10] = True  # all of it, and ten of them
    assert covering(masks, stroke, others).tolist() == [True, False, True, False]


def test_points_lie_on_their_stroke():
    strokes = torch.zeros(2, 20, 20, dtype=torch.bool)
    strokes[0, 4, 2:18], strokes[1, 10:13, 7] = True, True
    prompts = points_along(strokes)
    assert prompts.points is not None
    assert prompts.point_labels is not None
    assert (prompts.point_labels == 1).sum(dim=2).tolist() == [[8, 3]]
    for label in range(2):
        for (x, y), kind in zip(prompts.points[0, label].long(), prompts.point_labels[0, label], strict=True):
            assert kind != 1 or strokes[label, y, x]


# What else depends on the labels.


def test_nothing_is_concluded_from_the_form_of_strokes(sam: Backbone):
    support = scribbled_set()
    slicer = support.resolve(Slicer())
    assert OnePiece.of(support, slicer) == OnePiece((), ())
    assert OnePiece.of(support_set(), slicer).whole_volumes == (1, 3)
    decision = region_is_large(support, slicer)
    assert decision is not None
    assert decision.margin is None
    assert chosen_side(support, slicer, 1024) == chosen_side(support_set(2), slicer, 1024)
    stacked = StackedSupport.of(support, slicer, 32, 1)
    assert labels_in_one_piece(stacked, 2) == ()
    assert score_left_out(SMALL, scribbled_set(3), sam) == []


def test_scribbled_slices_are_unlabelled_ones_for_self_training():
    support = scribbled_set(1)
    assert len(Pool.of(support, support.resolve(Slicer()), 32)) == 6
    assert len(Pool.of(support_set(1), support.resolve(Slicer()), 32)) == 0


@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if kind.needs_whole_masks))
def test_methods_that_copy_masks_say_that_they_need_them(name: str, handful_tiny: Backbone):
    with pytest.raises(LabelError, match="whole masks, but 2 of 2 cases have scribbles"):
        build_method(name, {}).fit(scribbled_set(), handful_tiny)


def test_methods_that_copy_masks_use_the_whole_ones_among_scribbles(sam: Backbone):
    whole = phantom_case(5)
    support = SupportSet((scribbled(phantom_case(0), 0, 1), whole), LABELS)
    alone = build_method("nearest-slice", {}).fit(SupportSet((whole,), LABELS), sam)
    mixed = build_method("nearest-slice", {}).fit(support, sam)
    volume = phantom(9)[0]
    assert (mixed.predict(volume).array == alone.predict(volume).array).all()


def test_a_fit_says_that_it_learned_from_scribbles(sam: Backbone):
    said = " ".join(SMALL.fit(scribbled_set(), sam).decisions)
    assert "scribbles" in said
    assert "masks that" in said
    assert "scribbles" not in " ".join(SMALL.fit(support_set(1), sam).decisions)


def test_the_record_has_the_share_of_labelled_pixels():
    support = SupportSet((scribbled(phantom_case(0), 0, 1), phantom_case(1)), LABELS)
    share = pytest.approx(support.facts[0].labelled_share, abs=1e-6)
    assert describe_support(support)["scribbles"] == {"phantom-0": share}
    assert "scribbles" not in describe_support(support_set(1))


def test_a_model_of_scribbles_is_saved_and_opened(sam: Backbone, tmp_path: Path):
    support = scribbled_set(1)
    segmenter = SMALL.fit(support, sam)
    save(segmenter, tmp_path / "m", method_name="unet", method=SMALL, provenance=describe_support(support))
    assert open_model(tmp_path / "m").fitted_on == {"phantom-0": support.facts[0].image_sha256}


def test_a_quality_is_estimated_by_whole_masks_alone(sam: Backbone):
    segmenter, case = SMALL.fit(scribbled_set(1), sam), phantom_case(3)
    prediction = segmenter.predict(case.read_image())
    config = QualityConfig(reverse="none", confidence=False)
    with pytest.raises(LabelError, match="an estimate of the quality needs whole masks"):
        predict_quality(segmenter, scribbled_set(1), [(case, prediction)], config=config)
    mixed = SupportSet((scribbled(phantom_case(0), 0, 1), phantom_case(5)), LABELS)
    whole = SupportSet((phantom_case(5),), LABELS)
    one, other = (
        predict_quality(segmenter, support, [(case, prediction)], config=config) for support in (mixed, whole)
    )
    assert [label.signals.consistency for label in one[0].labels] == pytest.approx(
        [label.signals.consistency for label in other[0].labels], nan_ok=True
    )


def test_the_same_seed_gives_the_same_net(sam: Backbone):
    one, other = (SMALL.fit(scribbled_set(), sam).learned() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", [replace(SMALL, dims=3, depth=4), replace(SMALL, augmentation="always")])
def test_stacks_and_the_other_augmentation_learn_from_scribbles(method: UNet, sam: Backbone):
    assert method.fit(scribbled_set(1), sam).predict(phantom(1)[0]).array.shape == phantom(1)[0].geometry.shape


def test_self_training_learns_from_scribbles_with_labels_of_its_own(sam: Backbone):
    method = SelfTraining(encoder="none", channels=4, batch=2, side=32, train=TrainConfig(iterations=4, ema=0.9))
    said = " ".join(method.fit(scribbled_set(1), sam).decisions)
    assert "learned from 1 unlabelled scan:" in said


LESSONS: dict[str, dict[str, object]] = {
    "unet": {"encoder": "none", "channels": 4, "batch": 4, "side": 32, "train.iterations": 120}
    | {"train.learning_rate": 2e-2},
    "self-training": {"encoder": "none", "channels": 4, "batch": 4, "side": 32, "train.iterations": 120}
    | {"train.learning_rate": 2e-2},
    "know-sam": {"encoder": "none", "channels": 4, "batch": 4, "side": 32, "train.iterations": 120, "distillation": 0.0}
    | {"train.learning_rate": 2e-2},
    "auto-sam-unet": {"views": 2, "train.iterations": 60, "train.learning_rate": 1e-2},
    "few-shot-prompts": {"views": 2, "batch": 4, "train.iterations": 200, "train.learning_rate": 3e-3},
}


@pytest.mark.learning
@pytest.mark.parametrize("name", LESSONS)
def test_a_fit_on_scribbles_finds_the_labels_of_a_new_phantom(name: str, sam: Backbone):
    method = build_method(name, {"roi_margin": "none", **LESSONS[name]})
    image, truth = phantom(7)
    found = mean_dice(method.fit(scribbled_set(3), sam).predict(image), truth)
    assert found > 0.4, "after a single step it is 0.1 to 0.2"
