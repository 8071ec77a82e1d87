"""Common parts of MetaImage and NRRD headers, which are lines of text before the voxels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.volume import Geometry
from handful.errors import DamagedFile, InputError, UnsupportedInput

MODALITY = "0008|0060"
"""Key of the DICOM modality in the headers that ITK writes."""
_MAX_HEADER = 16 * 2**20
_MAX_VALUE = 1000
"""Length of a value that places, scales or names voxels. Descriptions may be longer."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")


@dataclass(frozen=True)
class StoredVolume:
    """The voxels that a header describes, and where they are."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """(4, 4), to RAS coordinates in mm."""
    dtype: np.dtype[Any]
    """With its byte order."""
    file: Path
    offset: int
    compressed: bool
    compressed_size: int | None
    """Bytes of the compressed stream, if the header states them."""
    modality: str | None
    sequences: int = 1
    """Number of values per voxel."""
    axis: int = 3
    """Where they are among the axes of the file, the fastest being 0."""

    @property
    def size(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.sequences * self.dtype.itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Lengths of the axes of the file, the fastest first."""
        return (*self.shape[: self.axis], self.sequences, *self.shape[self.axis :])

    def geometry(self, path: Path) -> Geometry:
        """The grid. Raises UnsupportedInput, with `path` in the message, if the affine is impossible."""
        try:
            return Geometry(self.shape, self.affine)
        except UnsupportedInput as error:
            raise UnsupportedInput(f"{path}: {error}") from error


def header_lines(file: BufferedReader, path: Path) -> Iterator[str]:
    """The lines of a header without their ends, to the end of the file. Raises DamagedFile if there are too many."""
    left = _MAX_HEADER
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise DamagedFile(f"{path}: has a header of more than {_MAX_HEADER:,} bytes; check where it came from")
        yield line.decode("latin1").rstrip("\r\n")


@dataclass(frozen=True)
class Fields:
    """The fields of one header; each access checks what it finds."""

    path: Path
    values: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str, default: str | None = None) -> str:
        """The value of a field. Raises DamagedFile if it is missing and has no default, or is too long."""
        value = self.values.get(name, default)
        if value is None:
            raise DamagedFile(f"{self.path}: no {name} in the header; add it, or save the file again")
        if len(value) > _MAX_VALUE:
            raise self.wrong(name, "of at most 1,000 characters")
        return value

    def whole_numbers(self, name: str, count: int, high: int = 2**31 - 1) -> tuple[int, ...]:
        """The `count` whole numbers of a field, from 1 to `high`."""
        parts = self.text(name).split()
        if not parts or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise self.wrong(name, "whole numbers")
        numbers = tuple(int(part) for part in parts)
        if len(numbers) != count:
            raise self.wrong(name, f"{count} whole numbers")
        if not all(1 <= number <= high for number in numbers):
            raise self.wrong(name, f"from 1 to {high:,}")
        return numbers

    def numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """The `count` finite numbers of a field."""
        return self.parsed(name, self.text(name).split(), count)

    def parsed(self, name: str, parts: list[str], count: int) -> NDArray[np.float64]:
        """The numbers of the field `name`, cut into `parts` before."""
        if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
            raise self.wrong(name, f"{count} numbers")
        numbers = np.array([float(part) for part in parts])
        if not np.isfinite(numbers).all():
            raise self.wrong(name, "finite numbers")
        return numbers

    def flag(self, name: str, default: str | None = None) -> bool:
        """A field that is true or false."""
        value = self.text(name, default).lower()
        if value not in ("true", "t", "1", "false", "f", "0"):
            raise self.wrong(name, "True or False")
        return value in ("true", "t", "1")

    def wrong(self, name: str, expected: str) -> DamagedFile:
        """The error that a field is not as expected."""
        value = self.values[name]
        shown = value if len(value) <= 60 else f"{value[:60]}... ({len(value):,} characters)"
        return DamagedFile(f"{self.path}: {name} is {shown!r}, must be {expected}; repair the header")


def require_one_volume(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The first three of all sizes. Raises UnsupportedInput if there are several volumes, or only a line of voxels."""
    if len(shape) < 2:
        raise UnsupportedInput(f"{path}: 1D, {shape[0]} voxels in a line, but a volume is expected; give a scan")
    require_volumes(path, shape, shape[3:], 1)
    i, j, k = (*shape, 1)[:3]
    return i, j, k


def require_volumes(path: Path, shape: tuple[int, ...], further: tuple[int, ...], sequences: int) -> None:
    """Raise UnsupportedInput unless the axes that are not in space hold so many volumes; `shape` is of all axes."""
    there = [n for n in further if n != 1]
    if there == [sequences] or (not there and sequences == 1):
        return
    if sequences > 1:
        raise UnsupportedInput(
            f"{path}: shape {shape}, but {sequences} sequences are expected; give a file (or numbered files) with all "
            "of them, or correct channel_names in dataset.json (or --channels)"
        )
    raise UnsupportedInput(
        f"{path}: {len(shape)}D, shape {shape}, but one volume is expected; if the last axis of a scan counts "
        "sequences such as T1 and FLAIR, name them (channel_names in dataset.json, or --channels); if it is time, "
        "split it into 3D files, one per frame; a label map has one label per voxel"
    )


def affine_of(columns: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine (4, 4) of 2 to 4 axes: the step along axis i is `columns[:, i]`. Axes beyond the third are dropped."""
    axes = min(len(origin), 3)
    affine = np.eye(4)
    affine[:axes, :axes] = columns[:axes, :axes]
    affine[:axes, 3] = origin[:axes]
    return affine


def sibling(path: Path, name: str) -> Path:
    """The file of voxels in the folder of the header; voxels elsewhere or in several files are refused."""
    if name.upper().startswith("LIST") or "%" in name or "\0" in name or not name or Path(name).name != name:
        raise UnsupportedInput(f"{path}: voxels are in {name!r}; save header and voxels in one .nrrd or .mha file")
    if not (file := path.parent / name).is_file():
        raise InputError(f"{path}: its voxels should be in {name!r}, which is not there; copy that file, too")
    return file
