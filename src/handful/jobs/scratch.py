"""Large arrays in temporary files instead of memory, and work on them block by block.

The files have no name and vanish with their array. They are in the folder for temporary files (TMPDIR), and the
operating system writes their pages out when memory is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from handful.jobs.files import reserved

LARGE = 2**28
"""Bytes from which on an array is in a file: those of a CT of 512 x 512 x 512 voxels."""
BLOCK = 2**24
"""Bytes of a block, at most."""


def zeros(shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """An array of zeros, in a file if it is large. Raises OSError if the disk is full."""
    dtype = np.dtype(kind)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize < LARGE:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="handful-") as file:
        return reserved(file, dtype, shape)


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
