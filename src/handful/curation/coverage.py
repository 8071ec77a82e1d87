"""Choice of representative unlabelled slices: facility location over the descriptors of an image encoder.

Each choice reduces the mean distance of the unlabelled slices to the nearest labelled or chosen slice as much as
possible. The greedy choice reaches at least 1 - 1/e of the best possible reduction (Nemhauser, Wolsey and Fisher 1978).
With a segmenter, the reduction counts up to twice as much for slices with inconsistent predictions.
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
from handful.data.slice_grid import Plane, evenly_spaced
from handful.errors import InputError

CELLS = 4
"""Width and height to which feature maps are pooled; small, so that the descriptors of a cohort fit into memory."""
CLIENTS = 1024
"""Maximum number of unlabelled slices over which the mean distance is computed: an even sample of all."""
INCONSISTENT = 0.05
"""Minimum disagreement for a prediction to be called inconsistent."""


@dataclass(frozen=True)
class SliceName:
    """A slice of the cohort."""

    case: str
    number: int
    """Number of the slice in the order of the slicer, from 0."""
    index: int
    """Its index along the axis of the voxel array that counts the slices, from 0."""
    slices: int
    """Number of slices of the case."""

    def __str__(self) -> str:
        """The name for users: case and index. A picture of one slice has no index."""
        return f"{self.case}, slice {self.index}" if self.slices > 1 else self.case


@dataclass(frozen=True, eq=False)
class EncodedCase:
    """The descriptors of a case of n slices."""

    name: str
    plane: Plane
    axis: int
    """The axis of the voxel array that counts the slices."""
    index: NDArray[np.intp]
    """Index of each slice along that axis."""
    descriptors: Float[Tensor, "n p"]
    """In half precision."""
    labelled: Bool[np.ndarray[Any, Any], " n"]
    """Whether each slice is labelled."""
    has_signal: Bool[np.ndarray[Any, Any], " n"]
    """Whether each slice is not constant."""
    segmented: SegmentedCase | None
    """The segmenter's predictions; None without a segmenter, or if no slice may be suggested."""
    agreement: float | None = None
    """Agreement of opinions on the case in self-training, from 0 to 1; None if it was not learned from."""

    @property
    def disagreement(self) -> NDArray[np.float64]:
        """That of the predictions of each slice, or in training, if that is larger."""
        assert self.segmented is not None
        return np.maximum(self.segmented.disagreement, 0.0 if self.agreement is None else 1 - self.agreement)

    def slice(self, number: int) -> SliceName:
        """The name of one of its slices."""
        return SliceName(self.name, number, int(self.index[number]), len(self.index))


def candidates(
    labelled: Bool[np.ndarray[Any, Any], " n"], has_signal: Bool[np.ndarray[Any, Any], " n"], whole_cases: bool
) -> Bool[np.ndarray[Any, Any], " n"]:
    """Whether each slice of a case may be suggested; none of a case with a labelled slice, if whole cases are."""
    found: NDArray[np.bool_] = has_signal & ~labelled & ~(whole_cases & labelled.any())
    return found


def descriptor(image: ImageEmbeddings) -> Float[Tensor, "n p"]:
    """Unit vectors to compare slices by: the mean of the main features, and the means over 4 × 4 regions."""
    whole = F.normalize(F.adaptive_avg_pool2d(image.main, 1).flatten(1), dim=1)
    regions = F.normalize(F.adaptive_avg_pool2d(image.main, CELLS).flatten(2), dim=1).flatten(1) / CELLS
    return torch.cat([whole, regions], dim=1) / math.sqrt(2)


@dataclass(frozen=True, eq=False)
class Pool:
    """The c candidates: unlabelled slices that are not constant, in groups that are suggested together."""

    cases: list[EncodedCase]
    at: list[tuple[int, int]]
    """(index of the case, number of the slice) of each candidate."""
    groups: list[NDArray[np.intp]]
    """Candidates that are suggested together: single slices, or all candidates of a case."""
    distances: Float[np.ndarray[Any, Any], "c m"]
    """Distances between candidates and the sample of m unlabelled slices."""
    uncovered: Float[np.ndarray[Any, Any], " m"]
    """Distance of each slice of the sample to the nearest labelled slice."""
    newness: Float[np.ndarray[Any, Any], " c"] | None
    """Distance of each candidate to the nearest labelled slice; None if nothing is labelled."""
    nearest: list[SliceName | None]
    """The most similar labelled slice of each candidate."""
    disagreement: Float[np.ndarray[Any, Any], " c"] | None
    """See `EncodedCase.disagreement`; None without a segmenter."""

    @classmethod
    def of(cls, cohort: str, cases: list[EncodedCase], whole_cases: bool) -> Pool:
        """The candidates of the cases. Raises InputError, with the name of the cohort, if there are none."""
        free = [candidates(case.labelled, case.has_signal, whole_cases) for case in cases]
        at = [(case, number) for case, mask in enumerate(free) for number in np.flatnonzero(mask).tolist()]
        if not at:
            kind = "case" if whole_cases else "slice"
            raise InputError(f"cohort {cohort!r} has no unlabelled {kind} left to suggest; add scans without labels")
        descriptors = torch.cat([case.descriptors[mask] for case, mask in zip(cases, free, strict=True)])
        sample = evenly_spaced(len(at), CLIENTS)
        distances = np.concatenate(list(_distances(descriptors, descriptors[sample])))
        labelled = [case.slice(number) for case in cases for number in np.flatnonzero(case.labelled).tolist()]
        newness = None
        nearest: list[SliceName | None] = [None] * len(at)
        uncovered = np.full(len(sample), distances.max())
        if labelled:
            newness, rows = _nearest(descriptors, torch.cat([case.descriptors[case.labelled] for case in cases]))
            nearest = [labelled[row] for row in rows.tolist()]
            uncovered = newness[sample]
        by_case = [case.disagreement[mask] for case, mask in zip(cases, free, strict=True) if case.segmented]
        disagreement = np.concatenate(by_case) if by_case else None
        return cls(cases, at, _groups(at, whole_cases), distances, uncovered, newness, nearest, disagreement)

    def slices_of(self, group: int) -> tuple[EncodedCase, list[int]]:
        """The case of a group, and the numbers of its slices in the group."""
        rows = self.groups[group]
        return self.cases[self.at[rows[0]][0]], [self.at[row][1] for row in rows]


def _groups(at: list[tuple[int, int]], whole_cases: bool) -> list[NDArray[np.intp]]:
    if not whole_cases:
        return [np.array([row]) for row in range(len(at))]
    owners = np.array([case for case, _ in at])
    return [np.flatnonzero(owners == case) for case in np.unique(owners)]


def _distances(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> Iterator[NDArray[np.float32]]:
    """Distances between descriptors in full precision, in blocks of rows."""
    other = theirs.float()
    for block in torch.split(ours, 1024):
        yield torch.cdist(block.float(), other).numpy()


def _nearest(ours: Float[Tensor, "n p"], theirs: Float[Tensor, "m p"]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The distance of each row of `ours` to the nearest row of `theirs`, and the index of that row."""
    blocks = [(distances.min(axis=1), distances.argmin(axis=1)) for distances in _distances(ours, theirs)]
    distance, index = zip(*blocks, strict=True)
    return np.concatenate(distance), np.concatenate(index)


@dataclass(frozen=True)
class Choice:
    """A suggested group and its scores when it was chosen."""

    rank: int
    """Rank of the suggestion, from 0."""
    group: int
    row: int
    """The most representative candidate of the group."""
    score: float
    coverage: float
    disagreement: float | None
    inconsistent: bool
    """Whether the disagreement is larger than in half of the groups, and at least INCONSISTENT."""
    share: float
    """Fraction of the unlabelled slices that are more similar to it than to any labelled slice or earlier choice."""


def choose(pool: Pool, count: int) -> Iterator[Choice]:
    """Choose groups greedily, each with the highest score given the choices before it."""
    reach = np.stack([pool.distances[rows].min(axis=0) for rows in pool.groups])
    disagreement, weight = _weights(pool)
    uncovered, start = pool.uncovered, max(float(pool.uncovered.mean()), 1e-9)
    available = np.ones(len(reach), dtype=bool)
    for rank in range(min(count, len(reach))):
        coverage = np.maximum(uncovered - reach, 0).mean(axis=1) / start
        score = coverage * weight
        best = int(np.where(available, score, -1).argmax())
        gains = {
            row: float(np.maximum(uncovered - pool.distances[row], 0).mean()) for row in pool.groups[best].tolist()
        }
        inconsistent = disagreement is not None and bool(weight[best] >= 0.75 and disagreement[best] >= INCONSISTENT)
        yield Choice(
            rank=rank,
            group=best,
            row=max(gains, key=lambda row: gains[row]),
            score=float(score[best]),
            coverage=float(coverage[best]),
            disagreement=None if disagreement is None else float(disagreement[best]),
            inconsistent=inconsistent,
            share=float((reach[best] < uncovered).mean()),
        )
        available[best] = False
        uncovered = np.minimum(uncovered, reach[best])


def _weights(pool: Pool) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """The disagreement of each group, and the weight of its coverage: from 0.5 (least disagreement) to 1."""
    if pool.disagreement is None:
        return None, np.ones(len(pool.groups))
    by_group = [pool.disagreement[rows] for rows in pool.groups]
    disagreement = np.array([values[values > 0].mean() if (values > 0).any() else 0.0 for values in by_group])
    less = (rankdata(disagreement, "min") - 1) / max(len(disagreement) - 1, 1)
    return disagreement, (1 + less) / 2
