"""Which slices stand for most of what no label covers yet: facility location over the descriptors of an image encoder.

Labels cover the slices that resemble them. The next slice is the one that brings the unlabelled slices nearest to a
labelled one, on average; chosen greedily, which is within 1 - 1/e of the best choice (Nemhauser, Wolsey and Fisher
1978). Where a segmenter contradicts itself, coverage counts up to twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from handful.backbones.base import ImageEmbeddings
from handful.curation.disagreement import SegmentedCase
from handful.data.slice_grid import Plane
from handful.errors import InputError

CELLS = 4
"""Cells along the feature maps that are compared place by place: few, so that a cohort of them fits into memory."""
CLIENTS = 1024
"""Unlabelled slices that each choice is judged by, at most: an even sample of them all."""
CONTRADICTS = 0.05
"""Disagreement below which a choice is not said to contradict itself."""


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


@dataclass(frozen=True, eq=False)
class EncodedCase:
    """What is kept of a case of n slices."""

    name: str
    plane: Plane
    axis: int
    index: NDArray[np.intp]
    """Of each slice along the axis of the voxel array."""
    descriptors: Float[Tensor, "n p"]
    """In half precision."""
    labelled: Bool[np.ndarray[Any, Any], " n"]
    has_signal: Bool[np.ndarray[Any, Any], " n"]
    segmented: SegmentedCase | None
    """Of the segmenter; None without one, and where all slices are labelled."""

    def slice(self, number: int) -> SliceName:
        """The name of one of its slices."""
        return SliceName(self.name, number, len(self.index))


def descriptor(image: ImageEmbeddings) -> Float[Tensor, "n p"]:
    """What slices are compared by, unit vectors: the mean of the main features, and the means over 4 × 4 places."""
    whole = F.normalize(F.adaptive_avg_pool2d(image.main, 1).flatten(1), dim=1)
    places = F.normalize(F.adaptive_avg_pool2d(image.main, CELLS).flatten(2), dim=1).flatten(1) / CELLS
    return torch.cat([whole, places], dim=1) / math.sqrt(2)


@dataclass(frozen=True, eq=False)
class Pool:
    """The unlabelled slices with any signal, c candidates, in groups that are labelled together."""

    cases: list[EncodedCase]
    at: list[tuple[int, int]]
    """Case and slice of each candidate."""
    groups: list[NDArray[np.intp]]
    """Candidates that are suggested as one: each for itself, or all of a case."""
    distances: Float[np.ndarray[Any, Any], "c m"]
    """To the unlabelled slices that choices are judged by."""
    uncovered: Float[np.ndarray[Any, Any], " m"]
    """The distance of each of them to what is labelled."""
    newness: Float[np.ndarray[Any, Any], " c"] | None
    """The distance of each candidate to what is labelled; None where nothing is."""
    nearest: list[SliceName | None]
    """The labelled slice that each candidate resembles most."""
    disagreement: Float[np.ndarray[Any, Any], " c"] | None

    @classmethod
    def of(cls, cohort: str, cases: list[EncodedCase], whole_cases: bool) -> Pool:
        """InputError, which names the cohort, where there is no candidate."""
        free = [one.has_signal & ~one.labelled & ~(whole_cases & one.labelled.any()) for one in cases]
        at = [(case, number) for case, mask in enumerate(free) for number in np.flatnonzero(mask).tolist()]
        if not at:
            what = "case" if whole_cases else "slice"
            raise InputError(f"cohort {cohort!r} has no unlabelled {what} left to suggest; add scans without labels")
        candidates = torch.cat([one.descriptors[mask] for one, mask in zip(cases, free, strict=True)])
        sample = np.unique(np.linspace(0, len(at) - 1, min(CLIENTS, len(at))).round().astype(np.intp))
        distances = np.concatenate(list(_distances(candidates, candidates[sample])))
        labelled = [one.slice(number) for one in cases for number in np.flatnonzero(one.labelled).tolist()]
        newness = None
        nearest: list[SliceName | None] = [None] * len(at)
        uncovered = np.full(len(sample), distances.max())
        if labelled:
            newness, most_alike = _nearest(candidates, torch.cat([one.descriptors[one.labelled] for one in cases]))
            nearest = [labelled[row] for row in most_alike.tolist()]
            uncovered = newness[sample]
        segmented = zip((one.segmented for one in cases), free, strict=True)
        known = [one.disagreement[mask] for one, mask in segmented if one is not None]
        disagreement = np.concatenate(known) if known else None
        return cls(cases, at, _groups(at, whole_cases), distances, uncovered, newness, nearest, disagreement)

    def slices_of(self, group: int) -> tuple[EncodedCase, list[int]]:
        """The case of a group, and which slices of it these are."""
        rows = self.groups[group]
        return self.cases[self.at[rows[0]][0]], [self.at[row][1] for row in rows]


def _groups(at: list[tuple[int, int]], whole_cases: bool) -> list[NDArray[np.intp]]:
    if not whole_cases:
        return [np.array([row]) for row in range(len(at))]
    owners = np.array([case for case, _ in at])
    return [np.flatnonzero(owners == case) for case in np.unique(owners)]


def _distances(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> Iterator[NDArray[np.float32]]:
    """Between descriptors, in full precision, some rows at a time."""
    other = theirs.float()
    for some in torch.split(ours, 1024):
        yield torch.cdist(some.float(), other).numpy()


def _nearest(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The distance of each of ours to the nearest of theirs, and which that is."""
    found = [(distances.min(axis=1), distances.argmin(axis=1)) for distances in _distances(ours, theirs)]
    distance, index = zip(*found, strict=True)
    return np.concatenate(distance), np.concatenate(index)


@dataclass(frozen=True)
class Choice:
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
    """Of the unlabelled slices, which resemble it more than any labelled or suggested before it."""


def choose(pool: Pool, count: int) -> Iterator[Choice]:
    """Greedily: the group of the highest score, then the best in addition to it, and so on."""
    reach = np.stack([pool.distances[rows].min(axis=0) for rows in pool.groups])
    disagreement, weight = _weighed(pool)
    left, start = pool.uncovered, max(float(pool.uncovered.mean()), 1e-9)
    open_ = np.ones(len(reach), dtype=bool)
    for rank in range(min(count, len(reach))):
        coverage = np.maximum(left - reach, 0).mean(axis=1) / start
        score = coverage * weight
        best = int(np.where(open_, score, -1).argmax())
        gains = {row: float(np.maximum(left - pool.distances[row], 0).mean()) for row in pool.groups[best].tolist()}
        yield Choice(
            rank=rank,
            group=best,
            row=max(gains, key=lambda row: gains[row]),
            score=float(score[best]),
            coverage=float(coverage[best]),
            disagreement=None if disagreement is None else float(disagreement[best]),
            contradicts=disagreement is not None and bool(weight[best] >= 0.75 and disagreement[best] >= CONTRADICTS),
            share=float((reach[best] < left).mean()),
        )
        open_[best] = False
        left = np.minimum(left, reach[best])


def _weighed(pool: Pool) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """The disagreement of each group, and what its coverage counts: from a half, where it is least, to 1."""
    if pool.disagreement is None:
        return None, np.ones(len(pool.groups))
    own = [pool.disagreement[rows] for rows in pool.groups]
    disagreement = np.array([some[some > 0].mean() if (some > 0).any() else 0.0 for some in own])
    less = (rankdata(disagreement, "min") - 1) / max(len(disagreement) - 1, 1)
    return disagreement, (1 + less) / 2
