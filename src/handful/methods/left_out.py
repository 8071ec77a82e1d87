"""The Dice to expect on unseen scans: a method is fitted without some labelled cases and scored on these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.support import SupportFacts, SupportSet, require_reference
from handful.data.volume import IGNORE
from handful.errors import LabelError
from handful.evaluation.metrics import overlap
from handful.jobs.progress import Report, Run, silent
from handful.methods.base import Method, Segmenter

FOLDS = 8
"""Maximum number of fits; with more labelled patients, several are left out at a time."""


@dataclass(frozen=True)
class LeftOutScore:
    """Dice of one label of a case; 0 if the label is missed or a false positive."""

    case: str
    label: str
    dice: float


def score_left_out(
    method: Method, support: SupportSet, backbone: Backbone, report: Report = silent, folds: int = FOLDS
) -> list[LeftOutScore]:
    """Scores of every labelled case from fits without its patient, in at most `folds` fits.

    A patient who is the only one with some label stays in every fit and gets no score, so there are no scores for a
    single patient. Unlabelled voxels are ignored, and so are labels that are in neither label map. Cases with scribbles
    get no score, since a Dice needs whole masks.
    """
    groups = [group for group in _groups(support, folds) if _others(support, group) is not None]
    groups = [group for group in groups if not all(_is_scribbled(support, case) for case in group)]
    scores: list[LeftOutScore] = []
    for number, group in enumerate(groups):
        report(number, len(groups), f"fitting without {', '.join(case.name for case in group)}")
        scores += score_group(method, support, backbone, group)
    return scores


def score_group(
    method: Method,
    support: SupportSet,
    backbone: Backbone,
    group: Sequence[Case],
    run: Run = Run(),  # noqa: B008
) -> list[LeftOutScore]:
    """Scores of the cases of a group from one fit without them. LabelError if some label is then in no case."""
    others = _others(support, group)
    if others is None:
        names = ", ".join(case.name for case in group)
        raise LabelError(f"without {names} some label is in no case; label it in another case")
    return scores_on(group, method.fit(others, backbone, run), support)


def scores_on(cases: Sequence[Case], segmenter: Segmenter, support: SupportSet) -> list[LeftOutScore]:
    """Scores of a segmenter on cases of the support set; none for cases with scribbles."""
    scored = [case for case in cases if not _is_scribbled(support, case)]
    return [score for case in scored for score in _scores(case, support, segmenter.predict(case.read_image()).array)]


def one_left_out(support: SupportSet) -> list[Case] | None:
    """The cases of a quarter of the patients, at least one, without whom every label is still in some case.

    One of them shows a label in whole masks, since there is no Dice without. None if there are no such patients, as for
    a single one, and if all labels are scribbles.
    """
    shown = {facts.case.name for facts in support.facts if not facts.scribbled and _holds_any(facts, support)}
    patients = len({case.patient_key for case in support.cases})
    groups = [group for group in _groups(support, min(4, patients)) if any(case.name in shown for case in group)]
    return next((group for group in groups if _others(support, group) is not None), None)


def mean_dice(scores: Sequence[LeftOutScore]) -> float:
    """The mean over labels of their mean Dice over cases; 0 without scores."""
    by_label = mean_of_labels(scores)
    return fmean(by_label.values()) if by_label else 0.0


def mean_of_labels(scores: Sequence[LeftOutScore]) -> dict[str, float]:
    """The mean Dice over cases, {label name: Dice}."""
    names = dict.fromkeys(score.label for score in scores)
    return {name: round(fmean(score.dice for score in scores if score.label == name), 4) for name in names}


def _groups(support: SupportSet, folds: int) -> list[list[Case]]:
    """The groups of cases that are left out together: those of one patient, or of several if there are many."""
    patients: dict[str, list[Case]] = {}
    for case in support.cases:
        patients.setdefault(case.patient_key, []).append(case)
    members = list(patients.values())
    count = min(folds, len(members))
    return [[case for patient in members[place::count] for case in patient] for place in range(count)]


def _others(support: SupportSet, group: Sequence[Case]) -> SupportSet | None:
    """The support set without a group; None if some label is then in no case."""
    names = {case.name for case in group}
    facts = tuple(entry for entry in support.facts if entry.case.name not in names)
    if not all(any(value in entry.voxels for entry in facts) for value in support.labels.values):
        return None
    return replace(support, cases=tuple(entry.case for entry in facts), known_facts=facts)


def _holds_any(facts: SupportFacts, support: SupportSet) -> bool:
    return any(value in facts.voxels for value in support.labels.values)


def _is_scribbled(support: SupportSet, case: Case) -> bool:
    return any(facts.case.name == case.name for facts in support.scribbled)


def _scores(case: Case, support: SupportSet, predicted: NDArray[np.integer]) -> Iterator[LeftOutScore]:
    reference = require_reference(case)
    valid = reference.array != IGNORE
    for value, name in support.labels.as_dict().items():
        counts = overlap(predicted == value, reference.array == value, valid)
        if counts.n_pred or counts.n_ref:
            yield LeftOutScore(case.name, name, counts.dice)
