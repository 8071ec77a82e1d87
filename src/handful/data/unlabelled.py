"""Scans without labels that a method may learn from as well: images alone, each read when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

from handful.data.cases import Case
from handful.data.slice_grid import Block, cropped_label_map, cropped_volume
from handful.data.volume import LabelMap, Volume
from handful.errors import UnsupportedInput
from handful.jobs.digests import digest_of
from handful.jobs.progress import Report, silent


@dataclass(frozen=True, eq=False)
class UnlabelledScans:
    """Cases of which no label is ever read; one volume is in memory at a time."""

    cases: tuple[Case, ...] = ()
    windows: tuple[Callable[[Volume], Block], ...] = ()
    """The blocks to which each scan is cropped, one after the other."""
    labels: Mapping[str, LabelMap] = field(default_factory=dict)
    """Uncertain labels by name of the case, such as masks made from boxes, on the grid of the whole scan. Voxels of
    value IGNORE are unknown. Either all cases have some, or none has."""
    known_digests: tuple[str, ...] | None = field(default=None, repr=False)
    """`digests` where they are known already, so that no file is read for them again."""

    @classmethod
    def of_readable(
        cls, cases: tuple[Case, ...], report: Report = silent, sequences: tuple[str, ...] = ()
    ) -> tuple[UnlabelledScans, dict[str, Exception]]:
        """The images of those cases that can be read and have all of these sequences, and the errors of the others by
        name; reads each file once."""
        digests: dict[str, str] = {}
        errors: dict[str, Exception] = {}
        for number, case in enumerate(cases, start=1):
            try:
                image = case.read_image()
                if missing := [name for name in sequences if name not in image.sequences]:
                    raise UnsupportedInput(f"this scan has no {', '.join(missing)}, which the labelled ones have")
                digests[case.name] = digest_of(image.array)
            except Exception as error:  # any error concerns this case only
                errors[case.name] = error
            report(number, len(cases), case.name)
        scans = cls.of(tuple(case for case in cases if case.name in digests))
        return replace(scans, known_digests=tuple(digests.values())), errors

    @classmethod
    def of(cls, cases: tuple[Case, ...]) -> UnlabelledScans:
        """The images of these cases, whatever references they have."""
        return cls(tuple(replace(case, reference=None) for case in cases))

    def without_names(self) -> UnlabelledScans:
        """The same scans with numbers as their names."""
        names = {case.name: f"unlabelled-{number}" for number, case in enumerate(self.cases, start=1)}
        cases = tuple(replace(case, name=names[case.name], patient=None) for case in self.cases)
        return replace(self, cases=cases, labels={names[name]: labels for name, labels in self.labels.items()})

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[tuple[str, Volume]]:
        """Name and image of each case; reads its file. Errors of the windows name the case."""
        for case in self.cases:
            volume = case.read_image()
            with naming(case.name):
                for window in self.windows:
                    volume = cropped_volume(volume, window(volume))
            yield case.name, volume

    def with_labels(self) -> Iterator[tuple[str, Volume, LabelMap]]:
        """Name, image and uncertain labels of each case; reads its file."""
        for case in self.cases:
            volume, label_map = case.read_image(), self.labels[case.name]
            for window in self.windows:
                block = window(volume)
                volume, label_map = cropped_volume(volume, block), cropped_label_map(label_map, block)
            yield case.name, volume, label_map

    def cropped(self, window: Callable[[Volume], Block]) -> UnlabelledScans:
        """The same scans, each cropped to a block of its voxels."""
        return replace(self, windows=(*self.windows, window))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the voxels of each image as they are stored; reads each file once."""
        if self.known_digests is not None:
            return self.known_digests
        return tuple(digest_of(case.read_image().array) for case in self.cases)

    @cached_property
    def labels_digest(self) -> str:
        """SHA-256 of the uncertain labels; "" without any."""
        return digest_of(*(self.labels[name].array for name in sorted(self.labels))) if self.labels else ""


@contextmanager
def naming(case: str) -> Iterator[None]:
    """Put the name of an unlabelled case in front of the reason why its scan is not supported."""
    try:
        yield
    except UnsupportedInput as error:
        raise UnsupportedInput(f"unlabelled case {case!r}: {error}") from error
