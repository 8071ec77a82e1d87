"""The decision whether to crop scans to the labelled region, and how wide, from the support set and without any fit.

Each labelled case is left out in turn (each labelled slice, if there is one case), and its labels are compared with the
window that the others give it. A margin is safe if no left-out case loses more than 1 % of its labelled voxels; the
smallest safe margin is used. Only thumbnails of slices are compared, so this takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from handful.data.slice_grid import SliceGrid
from handful.data.slicing import Slicer
from handful.data.support import LabelledScan, SupportSet
from handful.data.volume import IGNORE
from handful.methods.promptable import TransferredPrompts, thumbnails_of
from handful.methods.wrappers.roi_window import Region, Windows, labelled_region

MARGINS = (1.4, 1.7, 2.0, 2.5)
"""Margins that are tried, the smallest first."""
LEAST_OF_ONE_CASE = 2.0
"""Smallest margin for a single labelled case, which does not show how much organs vary between patients."""
LOST = 0.01
"""Maximum fraction of a left-out case's labelled voxels outside of its window."""
MOST_OF_SLICE = 0.7
"""Maximum side of a window as a fraction of the slice's; a larger window is not worth its risk."""


@dataclass(frozen=True)
class Decision:
    """Whether to crop."""

    margin: float | None
    """Side of the window divided by that of the labelled region; None for whole slices."""
    reason: str
    """One sentence for the user."""


def region_is_large(support: SupportSet, slicer: Slicer) -> Decision | None:
    """The decision not to crop if it needs no reading; None if the scans have to be read.

    That is the case if even the smallest window is most of a slice, and if some labels are scribbles.
    """
    if support.scribbled:
        return Decision(None, "no crop: scribbles do not show how far the labels reach")
    share = _share(support, slicer)
    if _least(support) * share <= MOST_OF_SLICE:
        return None
    return Decision(None, f"no crop: the labelled region spans {share:.0%} of a slice")


def decide_margin(support: SupportSet, slicer: Slicer) -> Decision:
    """The smallest safe margin for a method that is fitted on this support set.

    `slicer` must be resolved. Each case is read.
    """
    share, least = _share(support, slicer), _least(support)
    left_out = _parts(support, slicer)
    if len(left_out) < 2:
        return Decision(None, "no crop: a single labelled slice does not show how much positions vary")
    for margin in (candidate for candidate in MARGINS if candidate >= least and candidate * share <= MOST_OF_SLICE):
        worst = max(_lost(left_out, number, margin) for number in range(len(left_out)))
        if worst <= LOST:
            unit = "case" if len(support.facts) > 1 else "slice"
            return Decision(
                margin,
                f"crop to {margin:g} times the labelled region, which spans {share:.0%} of a slice: "
                f"each labelled {unit}, left out in turn, keeps {1 - worst:.0%} of its labels",
            )
    return Decision(None, f"no crop: the labelled region spans {share:.0%} of a slice, but its place varies too much")


def _share(support: SupportSet, slicer: Slicer) -> float:
    """The longest side of a labelled region, as a fraction of its slice."""
    regions = [labelled_region(facts, slicer) for facts in support.facts]
    return max(max(region.sides) / max(region.grid.size) for region in regions)


def _least(support: SupportSet) -> float:
    return MARGINS[0] if len(support.facts) > 1 else LEAST_OF_ONE_CASE


@dataclass(frozen=True, eq=False)
class _Part:
    """A case (or a slice of the only case) that is left out in turn."""

    region: Region
    boxes: TransferredPrompts
    """Boxes around its labels."""
    thumbnails: Float[Tensor, "n p"]
    """Thumbnails of the slices in which a window is placed."""
    labelled: NDArray[np.int64]
    """Number of labelled voxels at each row and column."""


def _parts(support: SupportSet, slicer: Slicer) -> list[_Part]:
    if len(support.facts) > 1:
        return [_case(scan, labelled_region(scan.facts, slicer)) for scan in support.scans(slicer)]
    return [part for scan in support.scans(slicer) for part in _slices(scan)]


def _case(scan: LabelledScan, region: Region) -> _Part:
    boxes = TransferredPrompts.of([scan.labelled()], "box", seed=0)
    classes = scan.view.of(scan.reference.array)
    return _Part(region, boxes, thumbnails_of(scan.view), _count(classes))


def _slices(scan: LabelledScan) -> list[_Part]:
    boxes = TransferredPrompts.of([scan.labelled()], "box", seed=0)
    classes = scan.view.of(scan.reference.array)
    parts = []
    for row, number in enumerate(scan.labelled().index):
        counts = _count(classes[number][None])
        if not counts.any():
            continue
        rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
        region = Region(scan.view.grid, int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        parts.append(_Part(region, boxes.rows([row]), boxes.thumbnails[[row]], counts))
    return parts


def _count(classes: NDArray[np.generic]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.count_nonzero((classes != 0) & (classes != IGNORE), axis=0)
    return counts


def _lost(parts: Sequence[_Part], left_out: int, margin: float) -> float:
    """Fraction of the labelled voxels of a part outside of the window that the other parts give it."""
    left, others = parts[left_out], [part for number, part in enumerate(parts) if number != left_out]
    total = int(left.labelled.sum())
    if not total:
        return 0.0
    grid: SliceGrid = left.region.grid
    windows = Windows.of([part.region for part in others], margin)
    boxes = TransferredPrompts.joined([part.boxes for part in others]).nearest(left.thumbnails, grid.size).boxes
    window = windows.around_boxes(grid, boxes)
    inside = left.labelled[int(window.top) : int(window.bottom), int(window.left) : int(window.right)]
    return 1.0 - int(inside.sum()) / total
