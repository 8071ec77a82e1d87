"""What studies measure of a prediction: means over the labels of a case, and absent labels that are found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Labels
from handful.evaluation.evaluate import score_case


@dataclass(frozen=True)
class Score:
    """Of one case, over the labels that are not absent."""

    dice: float
    """Mean; a missed label counts as 0."""
    hd95: float
    """Mean; a missed label counts with the largest distance in its scan."""
    missed: int


def score(prediction: LabelMap, case: Case, labels: Labels) -> Score:
    rows = score_case(case.name, prediction, reference_of(case), labels=labels)
    rows = [row for row in rows if row.status != "absent"]
    dice, hd95 = (float(np.mean([getattr(row, name) for row in rows])) for name in ("dice", "hd95"))
    return Score(dice, hd95, sum(row.status == "missed" for row in rows))


def called_present(slicer: Slicer, case: Case, prediction: LabelMap) -> tuple[int, int, int]:
    """Pairs of slice and label of which the reference holds nothing; those in which something is found; its voxels."""
    view = slicer.view(case.read_image())
    truth, shown = view.of(reference_of(case).array), view.of(prediction.array)
    pairs = called = voxels = 0
    for value in prediction.labels.values:
        absent = (truth != IGNORE).any(axis=(1, 2)) & ~(truth == value).any(axis=(1, 2))
        false_positive = ((shown == value) & (truth != IGNORE)).sum(axis=(1, 2))[absent]
        pairs += int(absent.sum())
        called += int((false_positive > 0).sum())
        voxels += int(false_positive.sum())
    return pairs, called, voxels


def reference_of(case: Case) -> LabelMap:
    """Of a case that has one, as unseen cases of a study do."""
    reference = case.read_reference()
    assert reference is not None, case.name
    return reference
