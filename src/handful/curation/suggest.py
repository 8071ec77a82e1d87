"""Which unlabelled slices or cases to label next: those that stand for most of what no label covers yet.

Slices are compared by the features of an image encoder (`coverage`); a fitted segmenter adds where it contradicts
itself (`disagreement`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer

from handful.backbones.base import Backbone
from handful.curation.coverage import Choice, EncodedCase, Pool, SliceName, choose, descriptor
from handful.curation.disagreement import SegmentedCase
from handful.data.cases import Case, Cohort
from handful.data.slice_grid import Plane
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, Labels, Volume
from handful.errors import HandfulError, InputError, LabelError, SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK, Segmenter, has_signal
from handful.methods.cost import estimate, grids_of

UNLIKE = 2 / 3
"""A suggestion is said to look unlike anything labelled if it is newer than this share of the candidates."""


@dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """What to suggest, and how many of them."""

    count: int = 8
    """Slices, or cases; fewer come back where fewer are unlabelled."""
    whole_cases: bool = False
    """Suggest cases to be labelled throughout, in place of slices."""
    slicer: Slicer = Slicer()
    """Plane and window; with a segmenter its own are taken."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingsError(f"count must be at least 1, got {self.count}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Suggestion:
    """A slice that should be labelled next, or a case, shown by the slice that stands for most of it."""

    slice: SliceName
    plane: Plane
    axis: int
    """Of the voxel array (i, j, k), across which the slice lies."""
    index: int
    """Of the slice along that axis, from 0, as a `.slices.json` names it."""
    score: float
    """Coverage, or coverage × (1 + u) / 2, where u is the share of the candidates of less disagreement; it falls from
    one suggestion to the next."""
    coverage: float
    """By what share the mean distance of the unlabelled slices to what is labelled shrinks, beyond what the
    suggestions before this one do."""
    disagreement: float | None
    """1 - Dice, somewhat steadied, between the predictions for the scan and for a slightly altered one, mean over the
    labels found; 0 where none is; None without a segmenter."""
    nearest: SliceName | None
    """The most similar labelled slice; None where nothing is labelled."""
    reason: str
    """In words; it stands for the unlabelled slices that resemble it more than any labelled or suggested before it."""
    predicted: Integer[np.ndarray[Any, Any], "h w"] | None
    """What the segmenter predicts for the slice, label values; None without one."""


@dataclass(frozen=True, eq=False)
class SuggestResult:
    """What to label next, the most helpful first, and out of what it was chosen."""

    suggestions: tuple[Suggestion, ...]
    candidates: int
    """Unlabelled slices, or cases, that there were to choose from."""
    labelled: int
    """Slices that are labelled already."""
    whole_cases: bool
    labels: Labels | None
    """Of the segmenter, else of the cohort."""
    slicer: Slicer
    """Plane and window of the slices."""
    failures: tuple[Failure, ...]
    """Cases that could not be read; nothing is suggested of them, and nothing counts as labelled in them."""


def suggest(
    cohort: Cohort,
    backbone: Backbone,
    segmenter: Segmenter | None = None,
    config: SuggestConfig | None = None,
    report: Report = silent,
) -> SuggestResult:
    """The unlabelled slices or cases whose labels would help most, the first one first.

    A slice is labelled where the reference of its case says anything of it, be it background; slices of one value
    throughout are never suggested. Volumes stream through, descriptors stay. A case that fails is listed, the others go
    on. Raises InputError where no case can be read or nothing is left to label, LabelError where the segmenter knows
    other labels than the cohort.
    """
    config = config or SuggestConfig()
    if not cohort.cases:
        raise InputError(f"cohort {cohort.name!r} is empty; give it scans")
    if segmenter is not None:
        _require_same_labels(cohort, segmenter)
    slicer = segmenter.slicer if segmenter is not None else config.slicer.resolve(_images(cohort))
    slicer = slicer.for_display()
    report(0, len(cohort.cases), str(estimate(backbone, grids_of(cohort.cases, slicer)) or ""))
    encoded: list[EncodedCase] = []
    failures: list[Failure] = []
    for number, case in enumerate(cohort.cases, start=1):
        try:
            encoded.append(_encoded(case, backbone, segmenter, slicer))
        except Exception as error:  # whatever it is, it is this case's: listed, and the next one goes on
            failures.append(Failure(case.name, str(error)))
        report(number, len(cohort.cases), case.name)
    if not encoded:
        raise InputError(f"none of {len(failures)} cases can be looked at, the first for: {failures[0].reason}")
    pool = Pool.of(cohort.name, encoded, config.whole_cases)
    return SuggestResult(
        suggestions=tuple(_suggestion(pool, choice) for choice in choose(pool, config.count)),
        candidates=len(pool.groups),
        labelled=int(sum(one.labelled.sum() for one in encoded)),
        whole_cases=config.whole_cases,
        labels=segmenter.labels if segmenter is not None else cohort.labels,
        slicer=slicer,
        failures=tuple(failures),
    )


@torch.no_grad()
def _encoded(case: Case, backbone: Backbone, segmenter: Segmenter | None, slicer: Slicer) -> EncodedCase:
    volume = case.read_image()
    view = slicer.view(volume)
    descriptors, signal = [], []
    for start in range(0, len(view), CHUNK):
        slices = view.cut(start, start + CHUNK)
        descriptors.append(descriptor(backbone.encode(slices.to(backbone.device))).half().cpu())
        signal.append(has_signal(slices).numpy())
    reference = case.read_reference()
    labelled = np.zeros(len(view), dtype=bool)
    if reference is not None:
        labelled = (view.of(reference.array) != IGNORE).any(axis=(1, 2))
    wanted = segmenter is not None and not labelled.all()
    segmented = SegmentedCase.of(segmenter, volume, view) if segmenter is not None and wanted else None
    index = np.array([view.grid.index_in_array(number) for number in range(len(view))])
    lit = np.concatenate(signal)
    return EncodedCase(case.name, view.plane, view.grid.axis, index, torch.cat(descriptors), labelled, lit, segmented)


def _suggestion(pool: Pool, choice: Choice) -> Suggestion:
    case, _ = pool.slices_of(choice.group)
    number = pool.at[choice.row][1]
    return Suggestion(
        slice=case.slice(number),
        plane=case.plane,
        axis=case.axis,
        index=int(case.index[number]),
        score=choice.score,
        coverage=choice.coverage,
        disagreement=choice.disagreement,
        nearest=pool.nearest[choice.row],
        reason="; ".join(_reasons(pool, choice)),
        predicted=None if case.segmented is None else case.segmented.predicted(number),
    )


def _reasons(pool: Pool, choice: Choice) -> Iterator[str]:
    """Why this one, the strongest reason first."""
    case, numbers = pool.slices_of(choice.group)
    if choice.contradicts:
        assert case.segmented is not None
        yield f"the model contradicts itself about {case.segmented.worst(numbers)}"
    share = f"stands for {_percent(choice.share)} of the unlabelled slices"
    if pool.newness is None:
        yield share if choice.rank else "the most typical, as nothing is labelled yet"
        return
    if pool.newness[choice.row] >= max(float(np.quantile(pool.newness, UNLIKE)), 1e-3):
        yield f"looks unlike anything labelled so far (nearest: {pool.nearest[choice.row]})"
    yield share


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{round(100 * share)} %"


def _require_same_labels(cohort: Cohort, segmenter: Segmenter) -> None:
    if cohort.labels is not None and cohort.labels != segmenter.labels:
        raise LabelError(
            f"the model finds {segmenter.labels.as_dict()}, but cohort {cohort.name!r} is labelled with "
            f"{cohort.labels.as_dict()}; fit a model on this cohort, or leave the model out"
        )


def _images(cohort: Cohort) -> Iterator[Volume]:
    """What plane and window are chosen by: labelled cases where there are any, as for a fit, else all.

    Cases that cannot be read have no say here, and fail by name when their turn comes; InputError where all are so.
    """
    readable, reasons = 0, []
    for wanted in (True, False):
        for case in cohort.cases:
            if (case.reference is not None) == wanted:
                try:
                    volume = case.read_image()
                except HandfulError as error:
                    reasons.append(str(error))
                    continue
                readable += 1
                yield volume
        if readable:
            return
    raise InputError(f"none of {len(reasons)} cases can be read, the first for: {reasons[0]}")
