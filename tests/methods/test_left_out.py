"""What to expect of a method on unseen scans, by leaving labelled cases out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tiny_models
from handful.backbones.base import Backbone
from handful.data.support import SupportSet
from handful.methods.left_out import mean_of_labels, score_left_out
from handful.methods.nearest_slice import NearestSlice
from phantoms import LABELS, phantom_case, support_set
from scores import mean_dice


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam()


def test_each_case_is_scored_by_a_fit_that_never_had_it(backbone: Backbone):
    scores = score_left_out(NearestSlice(), support_set(3), backbone)
    assert [(one.case, one.label) for one in scores] == [
        (f"phantom-{number}", label) for number in range(3) for label in ("ball", "egg")
    ]
    case = phantom_case(0)
    others = SupportSet((phantom_case(1), phantom_case(2)), LABELS)
    prediction = NearestSlice().fit(others, backbone).predict(case.read_image())
    assert np.mean([one.dice for one in scores[:2]]) == pytest.approx(mean_dice(prediction, case.read_reference()))
    assert max(one.dice for one in scores) < 1  # a fit that had the case would copy its labels


def test_all_cases_of_a_patient_are_left_out_together(backbone: Backbone):
    cases = [phantom_case(seed) for seed in range(3)]
    twin = dataclasses.replace(cases[0], name="again")
    scores = score_left_out(NearestSlice(), SupportSet((*cases, twin), LABELS), backbone)
    assert max(one.dice for one in scores if one.case in ("phantom-0", "again")) < 1


def test_many_patients_share_a_few_fits(backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    fits: list[int] = []
    fit = NearestSlice.fit
    monkeypatch.setattr(NearestSlice, "fit", lambda self, *given: fits.append(len(given[0].cases)) or fit(self, *given))
    scores = score_left_out(NearestSlice(), support_set(5), backbone, folds=2)
    assert fits == [2, 3]
    assert {one.case for one in scores} == {f"phantom-{number}" for number in range(5)}


def test_the_only_case_with_a_label_stays_and_gets_no_score(backbone: Backbone):
    first, second = phantom_case(0), phantom_case(1)
    reference = second.read_reference()
    only_ball = np.where(reference.array == 3, 0, reference.array)
    second = dataclasses.replace(second, reference=dataclasses.replace(reference, array=only_ball))
    scores = score_left_out(NearestSlice(), SupportSet((first, second), LABELS), backbone)
    assert {one.case for one in scores} == {"phantom-1"}


def test_one_patient_gives_no_estimate(backbone: Backbone):
    assert score_left_out(NearestSlice(), support_set(1), backbone) == []
    assert mean_of_labels([]) == {}
