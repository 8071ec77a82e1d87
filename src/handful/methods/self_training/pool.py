"""The slices that self-training learns from without labels, and the largest-piece rule for what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handful.data.pieces import ONE_PIECE, keep_largest_pieces, shares_in_largest_piece
from handful.data.slicing import Slicer, SliceView
from handful.data.support import LabelledSlices, SupportSet
from handful.data.volume import Volume
from handful.jobs.digests import digest_of
from handful.methods.base import has_signal
from handful.methods.stacks import StackedSupport, evenly, slices_in_square, with_equal_channels

MOST_SLICES = 4096
"""Slices held in memory; of larger cohorts evenly spaced ones."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Slices without labels, in a square."""

    names: tuple[str, ...]
    """Of the cases that the slices are from."""
    places: tuple[int, ...]
    """Number of each of these cases among `scans_of` the support."""
    slices: Float[Tensor, "v c s s"]
    """Half precision, to hold many."""
    case: Int[Tensor, " v"]
    """Number of the case of each slice."""
    number: Int[Tensor, " v"]
    """Number of each slice among the slices of its case."""

    @classmethod
    def of(cls, support: SupportSet, slicer: Slicer, side: int) -> Pool:
        """The slices of the unlabelled scans, and those of labelled scans without whole masks."""
        most = max(1, MOST_SLICES // (len(support.cases) + len(support.unlabelled)))
        names: list[str] = []
        places: list[int] = []
        parts: list[tuple[Tensor, list[int]]] = []
        for place, (name, view, free) in enumerate(_views(support, slicer)):
            numbers = [free[place] for place in evenly(len(free), most)] if free else []
            slices = slices_in_square(view, numbers, side) if numbers else torch.zeros(0, 1, side, side)
            shown = has_signal(slices) if numbers else torch.zeros(0, dtype=torch.bool)
            if shown.any():
                names.append(name)
                places.append(place)
                parts.append((slices[shown], [n for n, one in zip(numbers, shown.tolist(), strict=True) if one]))
        if not parts:
            return cls((), (), torch.zeros(0, 1, side, side), torch.zeros(0).long(), torch.zeros(0).long())
        return cls(
            tuple(names),
            tuple(places),
            with_equal_channels([slices for slices, _ in parts]),
            torch.cat([torch.full((len(numbers),), case) for case, (_, numbers) in enumerate(parts)]),
            torch.tensor([number for _, numbers in parts for number in numbers]),
        )

    def __len__(self) -> int:
        return len(self.slices)

    def digest(self) -> str:
        """SHA-256 of all that training sees."""
        return digest_of(self.slices, self.case, self.number)


def scans_of(support: SupportSet) -> Iterator[tuple[str, Volume]]:
    """The scans that slices of a pool are from: name and image, one at a time."""
    yield from support.unlabelled
    for facts in support.facts:
        if not facts.complete:
            yield facts.case.name, facts.case.read_image()


def _views(support: SupportSet, slicer: Slicer) -> Iterator[tuple[str, SliceView, Sequence[int]]]:
    """Each scan, and the numbers of its slices without any label, or with scribbles."""
    for name, view in support.unlabelled_views(slicer):
        yield name, view, range(len(view))
    if support.unlabelled.labels:  # only what has uncertain labels is learned from
        return
    for scan in support.scans(slicer):
        if not scan.facts.complete:
            labelled = set(_with_whole_masks(scan.labelled()))
            yield scan.facts.case.name, scan.view, [n for n in range(len(scan.view)) if n not in labelled]


def _with_whole_masks(labelled: LabelledSlices) -> list[int]:
    """Numbers of the slices whose labels are whole masks."""
    return [number for number, part in zip(labelled.index, labelled.scribbled.tolist(), strict=True) if not part]


def labels_in_one_piece(stacked: StackedSupport, labels: int) -> tuple[int, ...]:
    """Class numbers of the labels that are one piece on the labelled slices of every case; scribbles do not count."""
    classes = stacked.classes.numpy()
    shares = [
        shares_in_largest_piece(
            classes[((stacked.first == first) & ~stacked.scribbled).numpy()], range(1, labels + 1), per_slice=True
        )
        for first in sorted(set(stacked.first.tolist()))
    ]
    found = {number: [of_case[number] for of_case in shares if number in of_case] for number in range(1, labels + 1)}
    return tuple(number for number, of_label in found.items() if of_label and min(of_label) >= ONE_PIECE)


def largest_pieces(classes: Int[Tensor, "b s s"], numbers: Sequence[int]) -> Int[Tensor, "b s s"]:
    """Of each of these classes only the largest piece in each slice; the rest becomes background."""
    kept = classes.cpu().numpy().copy()
    keep_largest_pieces(kept, numbers, per_slice=True)
    return torch.from_numpy(kept).to(classes.device)
