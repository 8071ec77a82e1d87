"""The backbone as it is, asked with prompts of labelled slices, or with those of an oracle."""

import dataclasses

import pytest
import torch

from handful.backbones.base import Backbone
from handful.errors import SettingsError
from handful.evaluation.evaluate import Report, evaluate, evaluate_cases
from handful.methods.promptable import oracle
from handful.methods.zero_shot import ZeroShot
from handful.prompts.prompts import Prompts
from phantoms import LABELS, phantom_case, support_set

UNSEEN = [phantom_case(seed) for seed in (7, 8)]


def mean_dice(report: Report) -> float:
    return report.summary()[-1].estimates["dice"].mean


def test_boxes_of_an_oracle_beat_boxes_carried_over(handful_tiny: Backbone) -> None:
    method = ZeroShot()
    carried = mean_dice(evaluate(method.fit(support_set(3), handful_tiny).predict, UNSEEN))
    true = mean_dice(evaluate_cases(oracle(method.promptable(LABELS, handful_tiny)), UNSEEN))
    assert true > carried + 0.01
    assert carried > 0.8


def test_an_oracle_whose_hand_shakes_is_worse_than_one_whose_does_not(handful_tiny: Backbone) -> None:
    promptable = ZeroShot().promptable(LABELS, handful_tiny)
    steady, shaking = (mean_dice(evaluate_cases(oracle(promptable, jitter=j), UNSEEN)) for j in (0.0, 0.4))
    assert steady > shaking


def test_a_case_without_a_reference_is_listed_as_ever(handful_tiny: Backbone) -> None:
    bare = dataclasses.replace(UNSEEN[0], reference=None, name="bare")
    segment = oracle(ZeroShot().promptable(LABELS, handful_tiny))
    report = evaluate_cases(segment, [bare, UNSEEN[1]])
    assert [(one.case, "has no reference" in one.reason) for one in report.failures] == [("bare", True)]
    assert {row.case for row in report.rows} == {"phantom-8"}


@pytest.mark.parametrize("kind", ["points-1", "points-3", "points-5"])
def test_points_find_the_labels_too(kind: str, handful_tiny: Backbone) -> None:
    segmenter = ZeroShot(prompt=kind).fit(support_set(3), handful_tiny)
    assert mean_dice(evaluate(segmenter.predict, UNSEEN)) > 0.6


def test_a_closer_look_finds_the_labels_too(handful_tiny: Backbone) -> None:
    segmenter = ZeroShot(box_crop=True).fit(support_set(3), handful_tiny)
    assert mean_dice(evaluate(segmenter.predict, UNSEEN)) > 0.8


def test_the_best_of_the_candidates_is_another_answer(sam: Backbone) -> None:
    slices = torch.rand(1, 1, 24, 28)
    boxes = Prompts(boxes=torch.tensor([[[4.0, 5.0, 14.0, 15.0], [2.0, 3.0, 20.0, 21.0]]]))
    single, best = (ZeroShot(multimask=m).promptable(LABELS, sam)(slices, boxes) for m in (False, True))
    assert not torch.allclose(single, best, atol=1e-3)


def test_no_slice_of_a_patient_is_kept_but_as_a_thumbnail(sam: Backbone) -> None:
    learned = ZeroShot().fit(support_set(2), sam).learned()
    assert {name: tuple(tensor.shape) for name, tensor in learned.items()} == {
        "thumbnails": (12, 32 * 32),
        "sizes": (12, 2),
        "boxes": (12, 2, 4),
    }


def test_a_box_crop_needs_boxes_and_the_single_mask(sam: Backbone) -> None:
    with pytest.raises(SettingsError, match="box_crop needs boxes, but prompt is 'points-3'"):
        ZeroShot(box_crop=True, prompt="points-3")
    with pytest.raises(SettingsError, match="box_crop uses the single mask"):
        ZeroShot(box_crop=True, multimask=True)
    promptable = ZeroShot(box_crop=True).promptable(LABELS, sam)
    points = Prompts(points=torch.ones(1, 2, 1, 2), point_labels=torch.ones(1, 2, 1, dtype=torch.int64))
    with pytest.raises(SettingsError, match="the prompts have none"):
        promptable(torch.rand(1, 1, 24, 28), points)
