"""Stacks of neighbouring slices: those of a support in one square, and blocks that go through a network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handful.backbones.framing import into_square
from handful.data.slicing import Slicer, SliceView
from handful.data.support import LabelledSlices, SupportSet
from handful.jobs.digests import digest_of
from handful.methods.base import CHUNK

UNKNOWN = -1
"""Class number of pixels that nobody has labelled."""
LABELS_AT_ONCE = 4
"""Labels whose masks of a few slices are in memory together."""


def blocks(count: int, depth: int) -> Iterator[tuple[range, list[int]]]:
    """Numbers of the slices to be answered, half a stack at a time, and of those shown: a quarter more either side."""
    for start in range(0, count, depth // 2):
        kept = range(start, min(start + depth // 2, count))
        window = [min(max(start - depth // 4 + place, 0), count - 1) for place in range(depth)]
        yield kept, window


def windows(count: int, depth: int) -> Iterator[tuple[range, range]]:
    """Numbers of the slices to be segmented, and of the stack of up to `depth` slices that they are encoded in.

    A quarter of the stack on either side is context; there is less of it at the ends of the volume.
    """
    margin = (depth + 1) // 4
    step = depth - 2 * margin
    for start in range(0, count, step):
        kept = range(start, min(start + step, count))
        yield kept, range(max(0, start - margin), min(kept.stop + margin, count))


@dataclass(frozen=True, eq=False)
class StackedSupport:
    """The support's slices in a square; where stacks are wanted, those without labels too."""

    slices: Float[Tensor, "v c s s"]
    """Half precision, to hold many."""
    classes: Int[Tensor, "v s s"]
    """0 for background, else 1 + the label's index, or UNKNOWN."""
    first: Int[Tensor, " v"]
    """Row of the first slice of the same case."""
    last: Int[Tensor, " v"]
    scribbled: Bool[Tensor, " v"]
    """Which slices have scribbles, not whole masks."""

    @classmethod
    def of(cls, support: SupportSet, slicer: Slicer, side: int, depth: int) -> StackedSupport:
        """Reads the labelled slices, and for stacks (`depth` above 1) their neighbours, one volume at a time."""
        slices: list[Tensor] = []
        classes: list[Tensor] = []
        ends: list[tuple[int, int]] = []
        scribbled: list[Tensor] = []
        for scan in support.scans(slicer):
            labelled, view = scan.labelled(), scan.view
            numbers, strokes = class_numbers(labelled, side), labelled.scribbled
            if depth == 1:
                slices.append(_in_square(labelled.slices, side))
            else:
                slices.append(slices_in_square(view, range(len(view)), side))
                every = torch.full((len(view), side, side), UNKNOWN, dtype=numbers.dtype)
                every[list(labelled.index)] = numbers
                of_slice = torch.zeros(len(view), dtype=torch.bool)
                of_slice[list(labelled.index)] = strokes
                numbers, strokes = every, of_slice
            start = sum(map(len, classes))
            classes.append(numbers)
            scribbled.append(strokes)
            ends += [(start, start + len(numbers) - 1)] * len(numbers)
        first, last = torch.tensor(ends).unbind(1)
        return cls(with_equal_channels(slices), torch.cat(classes), first, last, torch.cat(scribbled))

    @property
    def labelled(self) -> Int[Tensor, " r"]:
        """Rows with any labelled pixel."""
        return torch.nonzero((self.classes != UNKNOWN).flatten(1).any(1))[:, 0]

    def holds(self, labels: int) -> Bool[Tensor, "v k"]:
        """Which of so many labels is in which row."""
        return torch.stack([(self.classes == label + 1).flatten(1).any(1) for label in range(labels)], dim=1)

    def around(self, rows: Int[Tensor, " b"], depth: int) -> tuple[Float[Tensor, "b c d s s"], Int[Tensor, "b d s s"]]:
        """Stacks with these rows in the middle; what a case's end makes them repeat is unknown."""
        wanted = rows[:, None] + torch.arange(depth) - depth // 2
        index = torch.minimum(torch.maximum(wanted, self.first[rows, None]), self.last[rows, None])
        classes = self.classes[index].masked_fill((index != wanted)[..., None, None], UNKNOWN)
        return rearrange(self.slices[index].float(), "b d c h w -> b c d h w"), classes

    def digest(self) -> str:
        """SHA-256 of all that training sees."""
        return digest_of(self.slices, self.classes, self.first)


def evenly(count: int, most: int) -> list[int]:
    """Numbers below `count`: all, or `most` of them, those in the middle of as many equal parts.

    The ends of a scan seldom hold a label, so a few slices of it must not be its ends.
    """
    parts = min(most, count)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def slices_in_square(view: SliceView, index: Sequence[int], side: int) -> Float[Tensor, "n c s s"]:
    """Slices of a volume in the square, a few of native size in memory at a time."""
    parts = [index[start : start + CHUNK] for start in range(0, len(index), CHUNK)]
    return torch.cat([_in_square(view.take(part), side) for part in parts])


def _in_square(slices: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c s s"]:
    return into_square(slices, side).clamp(0, 1).half()


def class_numbers(labelled: LabelledSlices, side: int) -> Int[Tensor, "n s s"]:
    """What covers most of each pixel of the square; UNKNOWN where any of it is not labelled.

    A stroke of a scribble is thinner than a pixel of the square may be: there, what covers most of the labelled part.
    """
    found = []
    thinnest = least_of_stroke(labelled.grid.size, side)
    for classes, known, strokes in zip(
        torch.split(labelled.classes, CHUNK),
        torch.split(labelled.valid_mask, CHUNK),
        torch.split(labelled.scribbled, CHUNK),
        strict=True,
    ):
        background = (classes == 0) & (known | ~strokes[:, None, None])
        winner = _covering_most(classes, background, labelled.labels, side)
        least = torch.where(strokes, thinnest, 0.999)[:, None, None]
        found.append(winner.masked_fill(into_square(known[:, None].float(), side)[:, 0] < least, UNKNOWN))
    return torch.cat(found)


def least_of_stroke(size: tuple[int, int], side: int) -> float:
    """Share of a pixel of the square from which a stroke labels it: half of what a stroke of one pixel covers."""
    return 0.5 / max(1.0, max(size) / side)


def with_equal_channels(slices: Sequence[Tensor]) -> Tensor:
    """All slices; grey ones become colour where others are in colour."""
    most = max(part.shape[1] for part in slices)
    return torch.cat([part.expand(-1, most, -1, -1) for part in slices])


def classes_in_square(classes: Int[Tensor, "n h w"], labels: int, side: int) -> Int[Tensor, "n s s"]:
    """Class numbers of whole slices in the square: what covers most of each pixel, UNKNOWN where any of it is."""
    found = []
    for some in torch.split(classes, CHUNK):
        winner = _covering_most(some, some == 0, labels, side)
        known = into_square((some != UNKNOWN)[:, None].float(), side)[:, 0]
        found.append(winner.masked_fill(known < 0.999, UNKNOWN))
    return torch.cat(found)


def _covering_most(
    classes: Int[Tensor, "n h w"], background: Bool[Tensor, "n h w"], labels: int, side: int
) -> Int[Tensor, "n s s"]:
    """The class number, 0 for background, that covers most of each pixel of the square."""
    most = into_square(background[:, None].float(), side)[:, 0]
    winner = torch.zeros(most.shape, dtype=torch.int16)
    for first in range(1, labels + 1, LABELS_AT_ONCE):  # each label needs memory
        numbers = torch.arange(first, min(first + LABELS_AT_ONCE, labels + 1), dtype=classes.dtype)
        shares = into_square((classes[:, None] == numbers[:, None, None]).float(), side)
        share, place = shares.max(dim=1)
        winner = torch.where(share > most, (first + place).to(torch.int16), winner)
        most = torch.maximum(most, share)
    return winner
