"""Choice of the unlabelled slices or cases to label next.

Suggested slices are similar to many unlabelled slices and unlike the labelled ones, by the features of an image encoder
(module `coverage`). With a fitted segmenter, slices with inconsistent predictions rank higher (module `disagreement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer

from handful.backbones.base import Backbone
from handful.curation.coverage import Choice, EncodedCase, Pool, SliceName, candidates, choose, descriptor
from handful.curation.disagreement import SegmentedCase
from handful.data.cases import Case, Cohort
from handful.data.slice_grid import Plane
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError, reason_of
from handful.evaluation.evaluate import Failure
from handful.jobs.digests import digest_of
from handful.jobs.plain_text import counted
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK, Segmenter, has_signal
from handful.methods.cost import estimate, grids_of

UNLIKE = 2 / 3
"""A suggestion is called unlike all labelled slices if its distance to them exceeds that of this fraction of all
candidates."""


@dataclass(frozen=True, kw_only=True)
class SuggestConfig:
    """Options of `suggest`."""

    count: int = 8
    """Number of slices (or cases) to suggest; fewer if fewer are unlabelled."""
    whole_cases: bool = False
    """Suggest whole cases instead of slices."""
    slicer: Slicer = Slicer()
    """Slice plane and intensity window; not used with a segmenter, which has its own."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingsError(f"count must be at least 1, got {self.count}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Suggestion:
    """A slice to label next; for a whole case, its most representative slice."""

    slice: SliceName
    plane: Plane
    axis: int
    """The axis of the voxel array (i, j, k) that counts the slices."""
    score: float
    """The coverage; with a segmenter, coverage × (1 + u) / 2, where u is the fraction of candidates with a smaller
    disagreement. It decreases from one suggestion to the next."""
    coverage: float
    """The fraction by which the suggestion reduces the mean distance of the unlabelled slices to the nearest labelled
    one, given the suggestions before it."""
    disagreement: float | None
    """1 - Dice (smoothed) between the predictions for the scan and for a slightly altered scan, averaged over the
    predicted labels; 0 without any; None without a segmenter. At least 1 - the agreement on the case in
    self-training, if the model learned from it."""
    nearest: SliceName | None
    """The most similar labelled slice; None if nothing is labelled."""
    reason: str
    """The reasons for the suggestion, for the user. A slice represents the unlabelled slices that are more similar to
    it than to any labelled slice or earlier suggestion."""
    predicted: Integer[np.ndarray[Any, Any], "h w"] | None
    """The label values that the segmenter predicts on the slice; None without a segmenter."""


@dataclass(frozen=True, eq=False)
class SuggestResult:
    """The suggestions, most helpful first, and the numbers of slices they were chosen from."""

    suggestions: tuple[Suggestion, ...]
    candidates: int
    """Number of unlabelled slices (or cases)."""
    labelled: int
    """Number of labelled slices."""
    whole_cases: bool
    labels: Labels | None
    """The labels of the segmenter, else of the cohort."""
    slicer: Slicer
    """Slice plane and intensity window."""
    failures: tuple[Failure, ...]
    """Cases that could not be read; they are ignored."""


def suggest(
    cohort: Cohort,
    backbone: Backbone,
    segmenter: Segmenter | None = None,
    config: SuggestConfig | None = None,
    report: Report = silent,
    agreement: Mapping[str, float] = MappingProxyType({}),
) -> SuggestResult:
    """Suggest the unlabelled slices or cases whose labels would help most, in this order.

    A slice counts as labelled if its reference has any labelled voxel, also of the background. Constant slices are
    never suggested. `agreement` has the agreement of opinions in self-training, from 0 to 1, by SHA-256 of the voxels
    of a scan (`SavedModel.agreement`); the lower it is, the more inconsistent a case counts as. One volume is in memory
    at a time. Cases that fail are listed in the result. Raises InputError if no case can be read or nothing is left to
    label, LabelError if the labels of segmenter and cohort differ.
    """
    config = config or SuggestConfig()
    if not cohort.cases:
        raise InputError(f"cohort {cohort.name!r} is empty; add scans")
    if segmenter is not None:
        _require_same_labels(cohort, segmenter)
    slicer = segmenter.slicer if segmenter is not None else config.slicer.resolve(_images(cohort))
    slicer = replace(slicer, neighbours=False)
    report(0, len(cohort.cases), str(estimate(backbone, grids_of(cohort.cases, slicer)) or ""))
    encoded: list[EncodedCase] = []
    failures: list[Failure] = []
    for number, case in enumerate(cohort.cases, start=1):
        try:
            encoded.append(_encoded(case, backbone, segmenter, slicer, agreement, config.whole_cases))
        except Exception as error:  # any error concerns this case only: it is listed, and the others continue
            failures.append(Failure.of(case, error))
        report(number, len(cohort.cases), case.name)
    if not encoded:
        raise InputError(
            f"no case can be used; the first of {counted(len(failures), 'case')} failed with: {failures[0].reason}"
        )
    pool = Pool.of(cohort.name, encoded, config.whole_cases)
    return SuggestResult(
        suggestions=tuple(_suggestion(pool, choice) for choice in choose(pool, config.count)),
        candidates=len(pool.groups),
        labelled=int(sum(case.labelled.sum() for case in encoded)),
        whole_cases=config.whole_cases,
        labels=segmenter.labels if segmenter is not None else cohort.labels,
        slicer=slicer.for_display(),
        failures=tuple(failures),
    )


@torch.no_grad()
def _encoded(
    case: Case,
    backbone: Backbone,
    segmenter: Segmenter | None,
    slicer: Slicer,
    agreement: Mapping[str, float],
    whole_cases: bool,
) -> EncodedCase:
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
    with_signal = np.concatenate(signal)
    use_segmenter = segmenter is not None and candidates(labelled, with_signal, whole_cases).any()
    return EncodedCase(
        name=case.name,
        plane=view.plane,
        axis=view.grid.axis,
        index=np.array([view.grid.index_in_array(number) for number in range(len(view))]),
        descriptors=torch.cat(descriptors),
        labelled=labelled,
        has_signal=with_signal,
        segmented=SegmentedCase.of(segmenter, volume, view) if segmenter is not None and use_segmenter else None,
        agreement=agreement.get(digest_of(volume.array)) if agreement else None,
    )


def _suggestion(pool: Pool, choice: Choice) -> Suggestion:
    case, _ = pool.slices_of(choice.group)
    number = pool.at[choice.row][1]
    return Suggestion(
        slice=case.slice(number),
        plane=case.plane,
        axis=case.axis,
        score=choice.score,
        coverage=choice.coverage,
        disagreement=choice.disagreement,
        nearest=pool.nearest[choice.row],
        reason="; ".join(_reasons(pool, choice)),
        predicted=None if case.segmented is None else case.segmented.predicted(number),
    )


def _reasons(pool: Pool, choice: Choice) -> Iterator[str]:
    """The reasons for a choice, strongest first."""
    case, numbers = pool.slices_of(choice.group)
    if choice.inconsistent:
        assert case.segmented is not None
        if case.agreement is not None and 1 - case.agreement >= case.segmented.disagreement[numbers].max():
            yield f"the model was uncertain about this case in training (agreement {case.agreement:.2f})"
        else:
            yield f"the model predicts {case.segmented.worst(numbers)} inconsistently"
    share = f"represents {_percent(choice.share)} of the unlabelled slices"
    if pool.newness is None:
        yield share if choice.rank else "the most typical slice (nothing is labelled yet)"
        return
    if pool.newness[choice.row] >= max(float(np.quantile(pool.newness, UNLIKE)), 1e-3):
        yield f"unlike all labelled slices (nearest: {pool.nearest[choice.row]})"
    yield share


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{round(100 * share)} %"


def _require_same_labels(cohort: Cohort, segmenter: Segmenter) -> None:
    if cohort.labels is not None and not segmenter.labels.as_dict().items() <= cohort.labels.as_dict().items():
        raise LabelError(
            f"the model has the labels {segmenter.labels.as_dict()}, but cohort {cohort.name!r} has "
            f"{cohort.labels.as_dict()}; fit a model on this cohort, or leave the model out"
        )


def _images(cohort: Cohort) -> Iterator[Volume]:
    """The images by which plane and window are chosen: those of labelled cases, as for a fit, else all.

    Cases that cannot be read are passed over here and listed as failures later. Raises InputError if none can be read.
    """
    readable, reasons = 0, []
    for labelled in (True, False):
        for case in cohort.cases:
            if (case.reference is not None) == labelled:
                try:
                    volume = case.read_image()
                except Exception as error:  # a library may raise anything for a broken file
                    reasons.append(reason_of(error))
                    continue
                readable += 1
                yield volume
        if readable:
            return
    raise InputError(f"no case can be read; the first of {counted(len(reasons), 'case')} failed with: {reasons[0]}")
