"""Which unlabelled slices or cases to label next: those that stand for most of what no label covers yet.

A slice is seen as the image encoder sees it. Labels cover what looks like them, so the next slice is the one that
brings the unlabelled slices nearest to a labelled one, on average: facility location, chosen greedily, which is within
1 - 1/e of the best choice (Nemhauser, Wolsey and Fisher 1978). A fitted segmenter adds where it contradicts itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.cases import Case, Cohort
from handful.data.slicing import Plane, Slicer, SliceView
from handful.data.volume import IGNORE, Labels, Volume
from handful.errors import HandfulError, InputError, LabelError, SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK, Segmenter, has_signal
from handful.methods.cost import estimate

CELLS = 4
"""Cells along the feature maps that are compared place by place: few, so that a cohort of them fits into memory."""
CLIENTS = 1024
"""Unlabelled slices that each choice is judged by, at most: an even sample of them all."""
SHIFT = 0.03
"""How far the second look at a scan is moved, as a share of rows and of columns."""
GAMMA = 0.75
"""How the second look is relit, on values from 0 to 1."""
STEADY = 0.25
"""Share of a label's usual area that both looks are taken to agree on, so that a speck contradicts little."""
UNLIKE = 2 / 3
"""Slices are told to look unlike anything labelled where this share of the candidates looks less so."""
CONTRADICTS = 0.05
"""Disagreement below which no contradiction is given as a reason."""


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


@dataclass(frozen=True)
class SliceName:
    """A slice of the cohort."""

    case: str
    number: int
    """Counted from 0, as the slicer cuts them."""
    slices: int
    """Of the case."""

    def __str__(self) -> str:
        """As people count: from 1; a picture of one slice has no number."""
        return f"{self.case}, slice {self.number + 1}" if self.slices > 1 else self.case


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
    """1 - Dice, somewhat steadied, between two looks of the segmenter, mean over the labels it sees; 0 where it sees
    none; None without a segmenter."""
    nearest: SliceName | None
    """The labelled slice that looks most alike; None where nothing is labelled."""
    reason: str
    """In words; it stands for the unlabelled slices that look more like it than like any labelled or suggested before
    it."""
    predicted: Integer[np.ndarray[Any, Any], "h w"] | None
    """What the segmenter makes of the slice, label values; None without one."""


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
    """Cases that could not be looked at; nothing is suggested of them, and nothing counts as labelled in them."""


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
    slicer = replace(slicer, neighbours=False)
    report(0, len(cohort.cases), str(estimate(backbone, cohort.cases, slicer) or ""))
    seen: list[_Seen] = []
    failures: list[Failure] = []
    for number, case in enumerate(cohort.cases, start=1):
        try:
            seen.append(_seen(case, backbone, segmenter, slicer))
        except Exception as error:  # whatever it is, it is this case's: listed, and the next one goes on
            failures.append(Failure(case.name, str(error)))
        report(number, len(cohort.cases), case.name)
    if not seen:
        raise InputError(f"none of {len(failures)} cases can be looked at, the first for: {failures[0].reason}")
    pool = _Pool.of(cohort.name, seen, config.whole_cases)
    return SuggestResult(
        suggestions=tuple(_suggestion(pool, choice) for choice in _chosen(pool, config.count)),
        candidates=len(pool.groups),
        labelled=int(sum(one.labelled.sum() for one in seen)),
        whole_cases=config.whole_cases,
        labels=segmenter.labels if segmenter is not None else cohort.labels,
        slicer=slicer,
        failures=tuple(failures),
    )


def descriptor(image: ImageEmbeddings) -> Float[Tensor, "n p"]:
    """What slices are compared by, unit vectors: the mean of the main features, and the means over 4 × 4 places."""
    whole = F.normalize(F.adaptive_avg_pool2d(image.main, 1).flatten(1), dim=1)
    places = F.normalize(F.adaptive_avg_pool2d(image.main, CELLS).flatten(2), dim=1).flatten(1) / CELLS
    return torch.cat([whole, places], dim=1) / math.sqrt(2)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of a case of n slices."""

    name: str
    plane: Plane
    axis: int
    index: NDArray[np.intp]
    """Of each slice along the axis of the voxel array."""
    descriptors: Float[Tensor, "n p"]
    """In half precision."""
    labelled: Bool[np.ndarray[Any, Any], " n"]
    lit: Bool[np.ndarray[Any, Any], " n"]
    """Whether there is any signal in a slice."""
    answer: _Answer | None

    def slice(self, number: int) -> SliceName:
        return SliceName(self.name, number, len(self.index))


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the segmenter made of the slices of a case."""

    labels: Labels
    apart: Float[np.ndarray[Any, Any], "n k"]
    """How far its two looks lie apart in each slice and label; nan where neither found it."""
    packed: tuple[bytes, ...]
    """The label values of each slice, some hundred bytes."""
    size: tuple[int, int]

    @classmethod
    def of(cls, segmenter: Segmenter, volume: Volume, view: SliceView) -> _Answer:
        first = view.of(segmenter.predict(volume).array).astype(np.int32)
        moved, down, across = _second_look(volume, view)
        second = view.of(segmenter.predict(moved).array)
        height, width = view.size
        both = first[:, : height - down, : width - across], second[:, down:, across:]
        packed = tuple(zlib.compress(np.ascontiguousarray(classes).tobytes(), 1) for classes in first)
        return cls(segmenter.labels, _contradictions(*both, segmenter.labels), packed, view.size)

    def predicted(self, number: int) -> NDArray[np.int32]:
        return np.frombuffer(zlib.decompress(self.packed[number]), dtype=np.int32).reshape(self.size)

    @property
    def disagreement(self) -> NDArray[np.float64]:
        """Of each slice: mean over the labels found in it, 0 without any."""
        found = ~np.isnan(self.apart)
        mean: NDArray[np.float64] = np.nansum(self.apart, axis=1) / np.maximum(found.sum(axis=1), 1)
        return mean

    def worst(self, numbers: Sequence[int]) -> str:
        """The name of the label that is contradicted most in these slices."""
        return self.labels.names[int(np.nansum(self.apart[list(numbers)], axis=0).argmax())]


@torch.no_grad()
def _seen(case: Case, backbone: Backbone, segmenter: Segmenter | None, slicer: Slicer) -> _Seen:
    volume = case.read_image()
    view = slicer.view(volume)
    parts, lit = [], []
    for start in range(0, len(view), CHUNK):
        slices = view.cut(start, start + CHUNK)
        parts.append(descriptor(backbone.encode(slices.to(backbone.device))).half().cpu())
        lit.append(has_signal(slices).numpy())
    reference = case.read_reference()
    labelled = np.zeros(len(view), dtype=bool)
    if reference is not None:
        labelled = (view.of(reference.array) != IGNORE).any(axis=(1, 2))
    wanted = segmenter is not None and not labelled.all()
    answer = _Answer.of(segmenter, volume, view) if segmenter is not None and wanted else None
    axis, index = _along(view)
    return _Seen(case.name, view.plane, axis, index, torch.cat(parts), labelled, np.concatenate(lit), answer)


def _along(view: SliceView) -> tuple[int, NDArray[np.intp]]:
    """The axis of the voxel array across which the slices lie, and the place of each slice along it."""
    shape = view.volume.geometry.shape
    for axis in (2, 1, 0):
        places = np.arange(shape[axis]).reshape([-1 if other == axis else 1 for other in range(3)])
        index: NDArray[np.intp] = view.of(np.broadcast_to(places, shape))[:, 0, 0]
        if len(set(index.tolist())) == shape[axis] == len(index):
            return axis, index
    raise AssertionError("slices lie across some axis")


def _second_look(volume: Volume, view: SliceView) -> tuple[Volume, int, int]:
    """The scan as another day might show it: relit within its window and moved; and by how many rows and columns."""
    height, width = view.size
    down, across = round(SHIFT * height), round(SHIFT * width)
    rows, columns = np.maximum(np.arange(height) - down, 0), np.maximum(np.arange(width) - across, 0)
    array = np.empty_like(volume.array)
    for old, new in zip(volume.array, array, strict=True):
        target = view.of(new)
        for number, values in enumerate(view.of(old)):
            target[number] = _relit(values[rows][:, columns], view.low, view.high)
    return replace(volume, array=array), down, across


def _relit(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Values inside the window in another light, the others as they were, so that the window stays the same."""
    if low == high:
        return values
    shown = (values.astype(np.float32) - low) / (high - low)
    changed = low + (high - low) * np.clip(shown, 0, 1) ** GAMMA
    if values.dtype.kind in "iu":
        changed = np.rint(changed)
    return np.where((shown > 0) & (shown < 1), changed, values).astype(values.dtype)


def _contradictions(first: NDArray[Any], second: NDArray[Any], labels: Labels) -> NDArray[np.float64]:
    """(n, k): voxels in one look only over those in both together and a share of the label's usual number of them."""
    columns = []
    for value in labels.values:
        one, other = first == value, second == value
        found = one.sum(axis=(1, 2)) + other.sum(axis=(1, 2))
        apart = (one != other).sum(axis=(1, 2))
        usual = found[found > 0].mean() if found.any() else 0.0
        columns.append(np.where(found > 0, apart / np.maximum(found + STEADY * usual, 1), np.nan))
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class _Pool:
    """The slices (c of them, lit and unlabelled) that may be suggested, in groups that are labelled together."""

    seen: list[_Seen]
    at: list[tuple[int, int]]
    """Case and slice of each candidate."""
    groups: list[NDArray[np.intp]]
    """Candidates that are suggested as one: each for itself, or all of a case."""
    apart: Float[np.ndarray[Any, Any], "c m"]
    """Distances to the unlabelled slices that choices are judged by."""
    uncovered: Float[np.ndarray[Any, Any], " m"]
    """The distance of each of them to what is labelled."""
    newness: Float[np.ndarray[Any, Any], " c"] | None
    """The distance of each candidate to what is labelled; None where nothing is."""
    nearest: list[SliceName | None]
    """The labelled slice that each candidate looks most like."""
    disagreement: Float[np.ndarray[Any, Any], " c"] | None

    @classmethod
    def of(cls, cohort: str, seen: list[_Seen], whole_cases: bool) -> _Pool:
        free = [one.lit & ~one.labelled & ~(whole_cases & one.labelled.any()) for one in seen]
        at = [(case, number) for case, mask in enumerate(free) for number in np.flatnonzero(mask).tolist()]
        if not at:
            what = "case" if whole_cases else "slice"
            raise InputError(f"cohort {cohort!r} has no unlabelled {what} left to suggest; add scans without labels")
        places = [(case, number) for case, one in enumerate(seen) for number in np.flatnonzero(one.labelled).tolist()]
        owners = np.array([case for case, _ in at])
        groups = (
            [np.flatnonzero(owners == case) for case in np.unique(owners)]
            if whole_cases
            else [np.array([row]) for row in range(len(at))]
        )
        candidates = torch.cat([one.descriptors[mask] for one, mask in zip(seen, free, strict=True)])
        sample = np.unique(np.linspace(0, len(at) - 1, min(CLIENTS, len(at))).round().astype(np.intp))
        apart = np.concatenate(list(_distances(candidates, candidates[sample])))
        newness = None
        nearest: list[SliceName | None] = [None] * len(at)
        uncovered = np.full(len(sample), apart.max())
        if places:
            known = torch.cat([one.descriptors[one.labelled] for one in seen])
            newness, most_alike = _nearest(candidates, known)
            nearest = [seen[places[row][0]].slice(places[row][1]) for row in most_alike.tolist()]
            uncovered = newness[sample]
        answers = [one.answer for one in seen]
        said = [a.disagreement[mask] for a, mask in zip(answers, free, strict=True) if a is not None]
        disagreement = np.concatenate(said) if said else None
        return cls(seen, at, groups, apart, uncovered, newness, nearest, disagreement)

    def slices_of(self, group: int) -> tuple[_Seen, list[int]]:
        """The case of a group, and which slices of it these are."""
        rows = self.groups[group]
        return self.seen[self.at[rows[0]][0]], [self.at[row][1] for row in rows]


def _distances(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> Iterator[NDArray[np.float32]]:
    """Between descriptors, in full precision, some rows at a time."""
    other = theirs.float()
    for some in torch.split(ours, 1024):
        yield torch.cdist(some.float(), other).numpy()


def _nearest(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The distance of each of ours to the nearest of theirs, and which that is."""
    found = [(apart.min(axis=1), apart.argmin(axis=1)) for apart in _distances(ours, theirs)]
    distance, index = zip(*found, strict=True)
    return np.concatenate(distance), np.concatenate(index)


@dataclass(frozen=True)
class _Choice:
    """A group that is suggested, and what was known of it at that time."""

    rank: int
    """From 0."""
    group: int
    row: int
    """The candidate that stands for most of it."""
    score: float
    coverage: float
    disagreement: float | None
    contradicts: bool
    """Whether the segmenter disagrees with itself more here than in half of the groups."""
    share: float
    """Of the unlabelled slices, which look more like it than like any labelled or suggested before it."""


def _chosen(pool: _Pool, count: int) -> Iterator[_Choice]:
    """Greedily: the group of the highest score, then the best beside it, and so on."""
    reach = np.stack([pool.apart[rows].min(axis=0) for rows in pool.groups])
    disagreement, weight = _weighed(pool)
    left, start = pool.uncovered, max(float(pool.uncovered.mean()), 1e-9)
    open_ = np.ones(len(reach), dtype=bool)
    for rank in range(min(count, len(reach))):
        coverage = np.maximum(left - reach, 0).mean(axis=1) / start
        score = coverage * weight
        best = int(np.where(open_, score, -1).argmax())
        yield _Choice(
            rank=rank,
            group=best,
            row=max(pool.groups[best].tolist(), key=lambda row: float(np.maximum(left - pool.apart[row], 0).mean())),
            score=float(score[best]),
            coverage=float(coverage[best]),
            disagreement=None if disagreement is None else float(disagreement[best]),
            contradicts=disagreement is not None and bool(weight[best] >= 0.75 and disagreement[best] >= CONTRADICTS),
            share=float((reach[best] < left).mean()),
        )
        open_[best] = False
        left = np.minimum(left, reach[best])


def _weighed(pool: _Pool) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """The disagreement of each group, and what its coverage counts: from a half, where it is least, to 1."""
    if pool.disagreement is None:
        return None, np.ones(len(pool.groups))
    own = [pool.disagreement[rows] for rows in pool.groups]
    disagreement = np.array([some[some > 0].mean() if (some > 0).any() else 0.0 for some in own])
    less = (rankdata(disagreement, "min") - 1) / max(len(disagreement) - 1, 1)
    return disagreement, (1 + less) / 2


def _suggestion(pool: _Pool, choice: _Choice) -> Suggestion:
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
        predicted=None if case.answer is None else case.answer.predicted(number),
    )


def _reasons(pool: _Pool, choice: _Choice) -> Iterator[str]:
    """Why this one, the strongest reason first."""
    case, numbers = pool.slices_of(choice.group)
    if choice.contradicts:
        assert case.answer is not None
        yield f"the model contradicts itself about {case.answer.worst(numbers)}"
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
