"""Several sequences of one scan, such as T1, T2 and FLAIR: in one file each, or in one file with a fourth axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handful.data.formats import read_geometry, read_volume
from handful.data.volume import Geometry, Volume
from handful.data.voxel_order import turned
from handful.jobs.digests import Digest


@dataclass(frozen=True)
class SequenceFiles:
    """The files of one scan with several sequences."""

    files: tuple[str | Path, ...]
    """One file per sequence, or a single file that holds all sequences along its last axis."""
    names: tuple[str, ...]
    """Name of each sequence, in their order."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, none of them as a string."""
        return tuple(map(Path, self.files))

    def read(self, digest: Digest | None = None) -> Volume:
        """All sequences as channels of one volume. Names and bytes of the files are added to a `digest`.

        Those whose voxels are stored in another order than those of the first one are turned. Raises GeometryMismatch
        if two sequences are on grids that differ by more than half a voxel.
        """
        self._add_names(digest)
        files = self.paths
        if len(files) == 1:
            return read_volume(files[0], digest=digest, sequences=self.names)
        volumes = [read_volume(file, digest=digest) for file in files]
        for file, volume in zip(files, volumes, strict=True):
            volume.require_grey(file.name)
        grid = volumes[0].geometry
        channels = [volumes[0].array[0]]
        for file, name, volume in zip(files[1:], self.names[1:], volumes[1:], strict=True):
            array, own = turned(volume.array[0], volume.geometry, grid)
            grid.require_same(own, f"sequences {self.names[0]} and {name} ({files[0].name}, {file.name})")
            channels.append(array)
        return Volume(np.stack(channels), grid, sequences=self.names)

    def add_to(self, digest: Digest) -> None:
        """Add what `read` adds to a digest, without decoding any voxels."""
        self._add_names(digest)
        for path in self.paths:
            digest.add_file(path)

    def absolute(self) -> SequenceFiles:
        """The same files with absolute paths."""
        return SequenceFiles(tuple(path.absolute() for path in self.paths), self.names)

    def geometry(self) -> Geometry:
        """The grid of the first sequence, from its header."""
        return read_geometry(self.files[0], sequences=len(self.names) if len(self.files) == 1 else 1)

    def _add_names(self, digest: Digest | None) -> None:
        if digest is not None:
            digest.add(repr(self.names))


def different_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of sequences; a name that several have gets the number of the sequence behind it."""
    return tuple(f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names))


def are_numbers(names: Sequence[str]) -> bool:
    """Whether sequences have only the numbers of their files as names, since nobody stated any."""
    return bool(names) and all(name.isdecimal() and len(name) == 4 for name in names)
