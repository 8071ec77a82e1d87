"""Scans without labels that a method may learn from as well: images alone, each read when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from handful.data.cases import Case
from handful.data.volume import Volume
from handful.jobs.digests import digest_of


@dataclass(frozen=True, eq=False)
class UnlabelledScans:
    """Cases of which no label is ever read; one volume is in memory at a time."""

    cases: tuple[Case, ...] = ()
    changes: tuple[Callable[[Volume], Volume], ...] = ()
    """What is done to each scan after it was read, such as cutting a window out of it."""

    @classmethod
    def of(cls, cases: tuple[Case, ...]) -> UnlabelledScans:
        """The images of these cases, whatever references they have."""
        return cls(tuple(replace(case, reference=None) for case in cases))

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[tuple[str, Volume]]:
        """Name and image of each case; reads its file."""
        for case in self.cases:
            yield case.name, self._changed(case.read_image())

    def changed(self, change: Callable[[Volume], Volume]) -> UnlabelledScans:
        """The same scans with one more change."""
        return UnlabelledScans(self.cases, (*self.changes, change))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the voxels of each image as they are stored; reads each file once."""
        return tuple(digest_of(case.read_image().array) for case in self.cases)

    def _changed(self, volume: Volume) -> Volume:
        for change in self.changes:
            volume = change(volume)
        return volume
