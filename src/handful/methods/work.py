"""What a fit has to do, counted by each method: slices to encode and training steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handful.data.support import SupportSet
    from handful.methods.base import Method


@dataclass(frozen=True)
class Work:
    """The work of one fit of a method that does not consist of others."""

    method: Method
    """With all settings that the support set or the backbone decides."""
    size: tuple[int, int]
    """Rows and columns of the largest slices."""
    labels: int
    """Number of labels."""
    encoded: int = 0
    """Slices that the frozen encoder encodes, each augmented view counted."""
    steps: int = 0
    """Training steps."""
    segmented: int = 0
    """Slices that are segmented during the fit."""
    retrieved: int = 1
    """Labelled slices that are used for each predicted slice."""
    neighbours: int = 0
    """Predicted slices that are used for each predicted slice."""

    @classmethod
    def of(cls, method: Method, support: SupportSet, *, encoded: int = 0, steps: int = 0) -> Work:
        """The work of `method` on the slices of a support set."""
        slicer = support.resolve(method.slicer)
        sizes = [slicer.grid(facts.geometry).size for facts in support.facts]
        largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
        return cls(method, largest, len(support.labels), encoded, steps)


def labelled_slices(method: Method, support: SupportSet) -> int:
    """The number of labelled slices, as the method cuts them."""
    slicer = support.resolve(method.slicer)
    return sum(facts.labelled_slices(slicer) for facts in support.facts)
