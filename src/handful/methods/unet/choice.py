"""What a U-Net is by default: its square, width, encoder, length of training and mirroring, chosen from the support."""

from __future__ import annotations

import math
import re
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Integer

from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels

GRANULE = 32
"""Pixels that a chosen side is a multiple of."""
SMALLEST, PLENTY, LARGEST = 64, 128, 256
"""Pixels along the square: the fewest, enough unless a structure is thin, and the most, for the sake of time."""
THIN = 5.0
"""Pixels across the thinnest structure that a side is to leave."""
FEW_LABELS = 3
SIDED = re.compile(r"(?<![a-z])(left|right|lt|rt|l|r|links|rechts|gauche|droite?|sinister|dexter)(?![a-z])", re.I)


def chosen_side(support: SupportSet, slicer: Slicer, most: int) -> int:
    """The longest edge of the slices of a typical case at most, and at least what the thinnest structure needs.

    Cases are stretched onto the square, so one large case among many should not make training of all more costly: the
    edge is the median of the cases, as the pixel size that nnU-Net takes. `most` is the backbone's own side, so that
    all methods see as many pixels.
    """
    edges: list[int] = []
    needed: list[float] = []
    for scan in support.scans(slicer):
        edges.append(max(scan.view.size))
        if scan.facts.scribbled:
            continue  # strokes are thinner than what they are in
        needed.append(edges[-1] * min(1.0, THIN / thickness(scan.classes, support.labels)))
    longest = median(edges)
    wanted = max(SMALLEST, _rounded_up(max(min(longest, PLENTY), min(longest, max(needed, default=0.0)))))
    return min(wanted, LARGEST, max(32, most // 16 * 16))


def thickness(classes: Integer[np.ndarray[Any, Any], "n h w"], labels: Labels) -> float:
    """Pixels across the thinnest label: twice the area over the perimeter, the median over its slices.

    That is the width of a strip, and four tenths of the diameter of a disc. Infinite where no label is there.
    """
    found = []
    for value in labels.values:
        inside = classes == value
        held = inside[inside.any(axis=(1, 2))]
        if len(held):
            framed = np.pad(held, ((0, 0), (1, 1), (1, 1)))
            edges = sum((framed != np.roll(framed, 1, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
            found.append(float(np.median(2 * held.sum(axis=(1, 2)) / edges)))
    return min(found, default=math.inf)


def chosen_channels(labels: Labels) -> int:
    """Channels of the finest stage; more where there are many labels."""
    return 16 if len(labels) <= FEW_LABELS else 24


def are_pictures(support: SupportSet) -> bool:
    """Whether most cases are single slices of unknown pixel size, as photographs and ultrasound images are."""
    flat = [facts.geometry.unit == "pixel" and min(facts.geometry.shape) == 1 for facts in support.facts]
    return 2 * sum(flat) > len(flat)


def may_mirror(support: SupportSet) -> bool:
    """Whether left and right may change places: in pictures, unless a label's name has a side."""
    return are_pictures(support) and not any(SIDED.search(name) for name in support.labels.names)


def _rounded_up(edge: float) -> int:
    return math.ceil(edge / GRANULE) * GRANULE
