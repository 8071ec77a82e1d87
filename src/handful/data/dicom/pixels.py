"""The grey values of DICOM frames: decoded, rescaled, and without padding."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.headers import Header
from handful.data.dicom.sources import Bounded, refusing
from handful.data.dicom.stack import Stack
from handful.errors import DamagedFile, UnsupportedInput

# fmt: off
_TAGS = [
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
# fmt: on
_ALWAYS_ALLOWED = 64 * 2**20
_MAX_RATIO = 2000
"""Decoded bytes for each byte of a compressed file, above _ALWAYS_ALLOWED."""


def read_voxels(path: Path, stack: Stack, max_bytes: int) -> NDArray[Any]:
    """Voxels (1 or 3, i, j, k) of a stack: integers if no rescale needs fractions, else 32-bit floats.

    Each frame has its own rescale. Padded voxels get the lowest value of all others. The grey values of a MONOCHROME1
    picture are inverted; those of a volume are kept, since they are measurements.
    """
    _require_bounded(path, stack, max_bytes)
    first, _ = stack.slices[0]
    dtype = _dtype(stack)
    voxels = np.empty((first.samples, len(stack.slices), first.rows, first.columns), dtype)
    padded = np.zeros(voxels.shape[1:], bool) if any(header.padding for header, _ in stack.slices) else None
    place = {(id(header), id(frame)): index for index, (header, frame) in enumerate(stack.slices)}
    for header in {id(header): header for header, _ in stack.slices}.values():
        for frame, stored in zip(header.frames, _stored(path, header), strict=True):
            index = place[id(header), id(frame)]
            if padded is not None and header.padding:
                padded[index] = (stored[0] >= header.padding[0]) & (stored[0] <= header.padding[1])
            if dtype.kind == "f":
                voxels[:, index] = stored.astype(np.float64) * frame.slope + frame.intercept
            else:
                voxels[:, index] = stored.astype(dtype) + dtype.type(frame.intercept)
    inverted = stack.is_picture and first.photometric == "MONOCHROME1"
    if inverted:
        voxels = voxels.max() - voxels + voxels.min()
    if padded is not None and padded.any() and not padded.all():
        voxels[:, padded] = voxels[:, ~padded].min()
    return voxels.transpose(0, 3, 2, 1)


def _dtype(stack: Stack) -> np.dtype[Any]:
    """The smallest integer type of all possible values; 32-bit floats if a rescale has fractions."""
    low, high = 0, 0
    for header, frame in stack.slices:
        if frame.slope != 1 or frame.intercept != int(frame.intercept) or abs(frame.intercept) > 2**31:
            return np.dtype(np.float32)
        least = -(2 ** (header.bits_stored - 1)) if header.signed else 0
        low = min(low, least + int(frame.intercept))
        high = max(high, least + 2**header.bits_stored - 1 + int(frame.intercept))
    kinds = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    return np.dtype(
        next((kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), np.int64)
    )


def _require_bounded(path: Path, stack: Stack, max_bytes: int) -> None:
    """Raise DamagedFile, before memory is allocated, if the sizes in the headers do not fit the bytes in the files."""
    headers = {id(header): header for header, _ in stack.slices}.values()
    for header in headers:
        size = header.frame_bytes * len(header.frames)
        if header.encoding == "native" and size > header.source.size:
            raise DamagedFile(_truncated(path, header, size, header.source.size))
        if size > _ALWAYS_ALLOWED + _MAX_RATIO * header.source.size:
            raise DamagedFile(
                f"{path}: {header.source.name} has {header.source.size:,} bytes, but its header declares "
                f"{size:,} bytes of pixels; do not use this file"
            )
    total = 4 * sum(header.rows * header.columns * header.samples * len(header.frames) for header in headers)
    if total > max_bytes:
        raise DamagedFile(
            f"{path}: the headers declare {total:,} bytes of voxels, more than the allowed {max_bytes:,}; "
            "repair the headers, or crop the scan if it really is that large"
        )


def _stored(path: Path, header: Header) -> Iterator[NDArray[Any]]:
    """The stored values (samples, rows, columns) of each frame of a file."""
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    where = f"{path}: {header.source.name}"
    with header.source.open() as file:
        with refusing(where, "unreadable pixel data"):
            dataset = dcmread(Bounded(file, header.source.size), specific_tags=_TAGS)
            _require_complete(path, header, dataset)
        with refusing(where, "pixel data cannot be decoded"):
            for pixels in iter_pixels(dataset):
                yield _plain(where, header, pixels)


def _require_complete(path: Path, header: Header, dataset: Any) -> None:
    where = f"{path}: {header.source.name}"
    if "PixelData" not in dataset:
        raise DamagedFile(f"{where}: no PixelData; copy or export the file again")
    content = dataset["PixelData"].value or b""
    if header.encoding == "native":
        size = header.frame_bytes * len(header.frames)
        if len(content) < size:
            raise DamagedFile(_truncated(path, header, size, len(content)))
        if len(content) > size + size % 2:
            raise DamagedFile(
                f"{where}: {len(content):,} bytes of pixels, but {header.columns} x {header.rows} pixels of "
                f"{header.bits_allocated} bits in {len(header.frames)} frames need {size:,}; export the file again"
            )
        return
    _require_decoder(where, dataset)
    with refusing(where, "compressed pixel data is truncated or damaged"):
        _require_frames(where, header, dataset)


def _require_decoder(where: str, dataset: Any) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        raise UnsupportedInput(f"{where}: no decoder for {syntax.name}; install handful[dicom], or decompress the file")


def _require_frames(where: str, header: Header, dataset: Any) -> None:
    """Raise DamagedFile unless there is a compressed picture of the stated size for each frame."""
    from pydicom.encaps import generate_frames

    count = 0
    for content in generate_frames(dataset.PixelData, number_of_frames=len(header.frames)):
        count += 1
        size = _compressed_size(content, header.encoding)
        if size is not None and size != (header.columns, header.rows):
            raise DamagedFile(
                f"{where}: compressed picture of {size[0]} x {size[1]} pixels, but the header says "
                f"{header.columns} x {header.rows}; export the file again"
            )
    if count != len(header.frames):
        raise DamagedFile(f"{where}: {count} compressed frames of {len(header.frames)}; copy the file again")


def _compressed_size(content: bytes, encoding: str) -> tuple[int, int] | None:
    """Width and height in the header of a compressed picture; None for RLE, which has none."""
    if encoding == "JPEG 2000":
        x1, y1, x0, y0 = struct.unpack_from(">4I", content, content.index(b"\xff\x4f\xff\x51") + 8)
        return x1 - x0, y1 - y0
    if encoding == "RLE":
        return None
    at = 2
    while True:
        mark, length = struct.unpack_from(">HH", content, at)
        if mark in (0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        if mark < 0xFF00:
            raise ValueError("no marker")
        at += 2 + max(length, 2)


def _plain(where: str, header: Header, pixels: NDArray[Any]) -> NDArray[Any]:
    """Values (samples, rows, columns) without the bits that hold no value."""
    expected = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if pixels.shape != expected or pixels.dtype.kind not in "iu":
        raise DamagedFile(f"{where}: decoded to {pixels.shape}, not {expected}; export the file again")
    spare = pixels.dtype.itemsize * 8 - header.bits_stored
    if spare > 0:
        kind = np.dtype(f"{'i' if header.signed else 'u'}{pixels.dtype.itemsize}")
        pixels = pixels.astype(kind) << spare >> spare
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _truncated(path: Path, header: Header, needed: int, found: int) -> str:
    return (
        f"{path}: {header.source.name} is truncated: {found:,} bytes for {needed:,} bytes of pixels "
        f"({header.columns} x {header.rows} in {len(header.frames)} frames); copy the file again"
    )
