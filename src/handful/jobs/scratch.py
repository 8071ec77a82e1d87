"""Large arrays in temporary files instead of memory, and work on them block by block.

The files have no name and vanish with their array, also when the process is killed. They are in the folder for
temporary files (TMPDIR), and the operating system writes their pages out when memory is needed.

Functions that make such a file raise InputError if the disk is full or the folder cannot be written.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handful.errors import InputError
from handful.jobs.files import reserved

LARGE = 2**28
"""Bytes from which on an array is in a file: those of a CT of 512 x 512 x 512 voxels."""
BLOCK = 2**24
"""Bytes of a block, at most."""
_COPY, _TILE = 2**25, 2**18
"""Bytes of a copy in another memory order, and of the tiles that it is made in."""


def is_large(size: int) -> bool:
    """Whether an array of so many bytes is in a file."""
    return size >= LARGE


def zeros(shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """An array of zeros, in a file if it is large."""
    dtype = np.dtype(kind)
    if is_large(int(np.prod(shape, dtype=object)) * dtype.itemsize):
        return zeros_in_file(shape, dtype)
    return np.zeros(shape, dtype)


def zeros_in_file(shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """An array of zeros in a file."""
    with _explained(), tempfile.TemporaryFile(prefix="handful-") as file:
        return reserved(file, np.dtype(kind), shape)


def bytes_in_file(pieces: Iterable[bytes | memoryview]) -> NDArray[np.uint8]:
    """All bytes, at least one, in a file that grows as they come."""
    with _explained():
        file = tempfile.TemporaryFile(prefix="handful-", buffering=0)  # noqa: SIM115 - closed below
    with file:
        for piece in pieces:
            with _explained():
                _write(file, piece)
        return np.memmap(file, np.uint8, "r+")


def zeros_like(array: NDArray[Any], kind: DTypeLike) -> NDArray[Any]:
    """Zeros of another type in the same memory order as an array, in a file if they are large."""
    order = slowest_first(array)
    return zeros(tuple(array.shape[axis] for axis in order), kind).transpose(np.argsort(order))


def converted(
    array: NDArray[Any], kind: DTypeLike, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> NDArray[Any]:
    """The voxels as `change` makes them, block by block, with this type; in a file if they are large.

    Without `change`, an array of this type is returned as it is.
    """
    if change is None and np.dtype(kind) == array.dtype:
        return array
    out = zeros_like(array, kind)
    for source, target in paired_blocks(array, out):
        target[...] = source if change is None else change(source)
    return out


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views that together are the whole array, each of at most BLOCK bytes, in the order of memory."""
    return (block for block, _ in paired_blocks(array, array))


def counts(array: NDArray[Any]) -> dict[int, int]:
    """How often each value occurs in an array of whole numbers."""
    found: dict[int, int] = {}
    for block in blocks(array):
        for value, count in zip(*np.unique(block, return_counts=True), strict=True):
            found[int(value)] = found.get(int(value), 0) + int(count)
    return found


def row_major_blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Contiguous copies of an array of any memory order that together are its elements in row-major order.

    A copy has at most 32 MiB, or one element of the first axis if that has more. If the array is large, it is read once
    from its beginning to its end, so that its own disk is not read again and again where memory is scarce.
    """
    if array.ndim > 2 and array.nbytes > _COPY * len(array):
        for inner in array:
            yield from row_major_blocks(inner)
        return
    axis = slowest_first(array)[0]
    parts = list(_row_major_parts(array, axis)) if is_large(array.nbytes) and axis > 0 else [array]
    step = max(1, _COPY * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        pieces = [part[start : start + step] for part in parts]
        yield _row_major(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces, axis)


def _row_major_parts(array: NDArray[Any], axis: int) -> Iterator[NDArray[Any]]:
    """The array cut along this axis, each part in row-major order in a file."""
    step = max(1, _COPY * array.shape[axis] // array.nbytes)
    for start in range(0, array.shape[axis], step):
        part = _row_major(np.moveaxis(np.moveaxis(array, axis, 0)[start : start + step], 0, axis))
        yield bytes_in_file([part.reshape(-1).view(np.uint8).data]).view(part.dtype).reshape(part.shape)


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy, made in tiles that fit into the processor's cache."""
    out = np.empty(array.shape, array.dtype)
    tiles = [(array, out)]
    while tiles:
        source, target = tiles.pop()
        if source.nbytes <= _TILE:
            target[...] = source.copy(order="K")
            continue
        axis = int(np.argmax(source.shape))
        middle = source.shape[axis] // 2
        for half in (slice(middle), slice(middle, None)):
            place = (*(slice(None),) * axis, half)
            tiles.append((source[place], target[place]))
    return out


def slowest_first(array: NDArray[Any]) -> list[int]:
    """The axes by their steps in memory, the longest first."""
    steps = [abs(step) if length > 1 else 0 for step, length in zip(array.strides, array.shape, strict=True)]
    return sorted(range(array.ndim), key=lambda axis: -steps[axis])


def paired_blocks(first: NDArray[Any], second: NDArray[Any]) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    """The same blocks of two arrays of one shape."""
    if max(first.nbytes, second.nbytes) <= BLOCK or first.ndim <= 1:
        yield first, second
        return
    axis = slowest_first(first)[0]
    for one, other in zip(np.moveaxis(first, axis, 0), np.moveaxis(second, axis, 0), strict=True):
        yield from paired_blocks(one, other)


def _write(file: io.FileIO, piece: bytes | memoryview) -> None:
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "the folder for temporary files"
        raise InputError(
            f"{folder}: a temporary file for a large scan cannot be written ({error.strerror or error}); free space "
            "there, or name another folder with the environment variable TMPDIR"
        ) from error
