"""Simulated scribbles: strokes of a pen inside each piece of a label, made from whole masks for experiments.

One stroke runs along the middle of each connected piece of a label in a slice, another one through the background
around the labels; all other pixels become unlabelled. A stroke is the longest way through the pixels that are at least
half as deep inside the piece as its deepest one, on a random path that keeps to the middle. The form follows the
scribbles that are published for ACDC by Valvano, Leo and Tsaftaris, "Learning to segment from scribbles using
multi-scale adversarial attention gates" (IEEE TMI 2021); the algorithm is our own.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from handful.data.cases import Case
from handful.data.pieces import numbered_pieces
from handful.data.slice_grid import SliceGrid, best_plane
from handful.data.volume import IGNORE, LabelMap
from handful.errors import LabelError, SettingsError

WIDTH = 3
"""Pixels across a stroke, where nobody says another width."""
MOST_NODES = 96
"""Pixels along the longer side of a piece among which a path is searched; larger pieces are searched on a lattice."""
AROUND = 0.5
"""How far the background stroke may lie from the labels, as a share of the size of their box."""
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


def scribbled(case: Case, seed: int, width: int = WIDTH) -> Case:
    """The case with simulated scribbles in place of its reference; the same for the same name, seed and width.

    Each slice of the plane with the finest pixels gets its own strokes; one without labels gets a background stroke.
    Raises LabelError if the case has no reference.
    """
    reference = case.read_reference()
    if reference is None:
        raise LabelError(f"case {case.name!r} has no reference to make scribbles from; label it or leave it out")
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    array = np.full(reference.array.shape, IGNORE, dtype=np.int32)
    grid = SliceGrid(reference.geometry, best_plane(reference.geometry))
    target, whole = grid.of(array), grid.of(reference.array)
    for number in range(len(grid)):
        target[number] = scribbles_of(whole[number], rng, width)
    return replace(case, reference=LabelMap(array, reference.geometry, reference.labels), ignore=None)


def scribbles_of(
    classes: Integer[np.ndarray[Any, Any], "h w"], rng: np.random.Generator, width: int = WIDTH
) -> Integer[np.ndarray[Any, Any], "h w"]:
    """Strokes of `width` pixels in a slice of label values: the values on them, IGNORE elsewhere.

    Strokes never leave the region of their label. Raises SettingsError for a width below 1.
    """
    if width < 1:
        raise SettingsError(f"a stroke must be at least 1 pixel wide, got {width}")
    found = np.full(classes.shape, IGNORE, dtype=np.int32)
    for value in np.unique(classes[classes > 0]).tolist():
        pieces, sizes = numbered_pieces(classes == value)
        boxes = ndimage.find_objects(pieces)
        for number, box in enumerate(boxes[: len(sizes)], start=1):
            found[box][stroke(pieces[box] == number, rng, width)] = value
    box = _around_labels(classes)
    background = classes[box] == 0
    if background.any():
        found[box][stroke(background, rng, width)] = 0
    return found


def stroke(region: Bool[np.ndarray, "h w"], rng: np.random.Generator, width: int) -> Bool[np.ndarray, "h w"]:
    """One stroke along the middle of the region, which must hold a pixel; all of it lies in the region."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    step = max(1, min(math.ceil(max(region.shape) / MOST_NODES), int(depth.max() / 3)))
    start = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) % step
    lattice = depth[start[0] :: step, start[1] :: step]
    points = _middle_line(lattice, rng) * step + start
    line = np.zeros(region.shape, dtype=bool)
    for one, other in pairwise(points):
        steps = int(np.abs(other - one).max()) + 1
        rows, columns = np.linspace(one, other, steps).round().astype(int).T
        line[rows, columns] = True
    line[tuple(points[0])] = True
    if width > 1:
        distance = ndimage.distance_transform_edt(~line)
        line = distance <= (width - 1) / 2
    inside: NDArray[np.bool_] = line & region
    return inside


def _middle_line(depth: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows and columns of a path (p, 2) between two far ends of the deep part; it keeps to the middle."""
    deep, _ = ndimage.label(depth >= depth.max() / 2, np.ones((3, 3)))
    core = deep == deep[np.unravel_index(int(depth.argmax()), depth.shape)]
    rows, columns = np.nonzero(core)
    if len(rows) == 1:
        return np.stack([rows, columns], axis=1)
    number = np.full(depth.shape, -1)
    number[core] = np.arange(len(rows))
    pace = rng.uniform(0.5, 1.5, len(rows)) * (depth.max() / depth[core]) ** 2
    plain, winding = _graph(number, np.ones(len(rows))), _graph(number, pace)
    far = _distances(plain, int(rng.integers(len(rows))))[0]
    first = int(far.argmax())
    last = int(_distances(plain, first)[0].argmax())
    before = _distances(winding, first)[1]
    path = [last]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return np.stack([rows[path], columns[path]], axis=1)


def _graph(number: NDArray[Any], pace: NDArray[np.float64]) -> Any:
    """Neighbouring pixels, the numbered ones, and what a step between them costs: its length times the mean pace."""
    ends, costs = [], []
    framed = np.pad(number, 1, constant_values=-1)
    height, width = number.shape
    for down, across in _STEPS:
        other = framed[1 + down : 1 + down + height, 1 + across : 1 + across + width]
        joined = (number >= 0) & (other >= 0)
        pair = np.stack([number[joined], other[joined]])
        ends.append(pair)
        costs.append(math.hypot(down, across) * pace[pair].mean(axis=0))
    one, two = np.concatenate(ends, axis=1)
    return sparse.coo_array((np.concatenate(costs), (one, two)), shape=(len(pace), len(pace))).tocsr()


def _distances(graph: Any, first: int) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """The distance of each pixel from the first one, and the pixel before it on the shortest way."""
    distances, before = csgraph.dijkstra(graph, False, np.array([first]), True)
    return distances[0], before[0]


def _around_labels(classes: Integer[np.ndarray[Any, Any], "h w"]) -> tuple[slice, slice]:
    """The box of the labels with a margin, within the slice; all of a slice without labels."""
    inside = classes > 0
    if not inside.any():
        return slice(None), slice(None)
    ranges = []
    for axis, length in enumerate(classes.shape):
        held = np.flatnonzero(inside.any(axis=1 - axis))
        low, high = int(held[0]), int(held[-1]) + 1
        margin = max(8, math.ceil(AROUND * (high - low)))
        ranges.append(slice(max(0, low - margin), min(length, high + margin)))
    return ranges[0], ranges[1]
