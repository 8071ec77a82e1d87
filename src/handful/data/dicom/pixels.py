"""The grey values of DICOM frames: decoded, rescaled, and without padding."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from handful.data.dicom.headers import Header
from handful.data.dicom.sources import Bounded, refusing
from handful.data.dicom.stack import Stack
from handful.errors import DamagedFile
from handful.jobs.scratch import zeros

# fmt: off
_TAGS = [
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
# fmt: on
_END = b"\xff\xd9"
"""The last bytes of JPEG, JPEG-LS and JPEG 2000 pictures."""
_UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends with a delimiter."""
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations whose length has four bytes."""


def read_voxels(path: Path, stack: Stack, max_bytes: int) -> NDArray[Any]:
    """Voxels (1 or 3, i, j, k) of a stack: integers if no rescale needs fractions, else 32-bit floats.

    Each frame has its own rescale. Padded voxels get the lowest value of all others. The grey values of a MONOCHROME1
    picture are inverted; those of a volume are kept, since they are measurements.
    """
    _require_bounded(path, stack, max_bytes)
    first, _ = stack.slices[0]
    dtype = _dtype(stack)
    voxels = zeros((first.samples, len(stack.slices), first.rows, first.columns), dtype)
    padded = zeros(voxels.shape[1:], bool) if any(header.padding for header, _ in stack.slices) else None
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
        slices = np.moveaxis(voxels, 1, 0)
        lowest = min(one[:, ~where].min() for one, where in zip(slices, padded, strict=True) if not where.all())
        for one, where in zip(slices, padded, strict=True):
            one[:, where] = lowest
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


def most_decoded(held: int) -> int:
    """Bytes that a compressed file of `held` bytes may decode to: 2,000 times as many, and 64 MiB for any file."""
    return 64 * 2**20 + 2000 * held


def _require_bounded(path: Path, stack: Stack, max_bytes: int) -> None:
    """Raise DamagedFile, before memory is allocated, if the sizes in the headers do not fit the bytes in the files."""
    headers = {id(header): header for header, _ in stack.slices}.values()
    for header in headers:
        size = header.frame_bytes * len(header.frames)
        if header.encoding == "native" and size > header.source.size:
            raise DamagedFile(_truncated(path, header, size, header.source.size))
        if size > most_decoded(header.source.size):
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

    where = f"{path}: {header.source.name}"
    with header.source.open() as file:
        with refusing(where, "unreadable pixel data"):
            dataset = dcmread(Bounded(file, header.source.size), specific_tags=_TAGS)
            require_end(where, file, dataset, header.source.size)
            _require_complete(path, header, dataset)
        with refusing(where, "pixel data cannot be decoded"):
            for pixels in _decoded(header, dataset):
                yield _plain(where, header, pixels)


def _decoded(header: Header, dataset: Any) -> Iterator[NDArray[Any]]:
    """Values (rows, columns) or (rows, columns, 3) of each frame. GDCM, as pydicom uses it, aborts on damaged JPEG."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels import iter_pixels

    if header.encoding in ("native", "RLE"):
        yield from iter_pixels(dataset)
        return
    for content in generate_frames(dataset.PixelData, number_of_frames=len(header.frames)):
        yield _decompressed(header, content)


def _decompressed(header: Header, content: bytes) -> NDArray[Any]:
    from pydicom.pixels import convert_color_space

    pixels: NDArray[Any]
    if header.encoding == "JPEG":
        colours = "RGB" if header.photometric == "RGB" else "YCBCR"
        options: dict[str, Any] = {"colorspace": colours, "outcolorspace": "RGB"} if header.samples == 3 else {}
        pixels = imagecodecs.jpeg8_decode(content, **options)
        return pixels
    decode = imagecodecs.jpegls_decode if header.encoding == "JPEG-LS" else imagecodecs.jpeg2k_decode
    pixels = decode(content)
    return convert_color_space(pixels, "YBR_FULL", "RGB") if header.photometric == "YBR_FULL" else pixels


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
    with refusing(where, "compressed pixel data is truncated or damaged"):
        _require_frames(where, header, dataset)


def require_end(where: str, file: io.BufferedIOBase, dataset: Any, size: int) -> None:
    """Raise DamagedFile unless a file of `size` bytes ends with its pixels, or with whole elements behind them.

    Bytes that were inserted among the pixels would shift them, and leave as many at the end. No element of `dataset`
    may have been accessed before.
    """
    if "PixelData" not in dataset:
        return
    pixels = dataset.get_item("PixelData")
    delimiter = 8 if pixels.length == _UNDEFINED else 0
    at = pixels.value_tell + len(pixels.value or b"") + delimiter
    order = "<" if pixels.is_little_endian else ">"
    while at < size:
        file.seek(at)
        start = file.read(12).ljust(12, b"\0")
        group, element = struct.unpack_from(f"{order}HH", start)
        long = not pixels.is_implicit_VR and start[4:6] in _LONG
        short = not pixels.is_implicit_VR and not long
        length = struct.unpack_from(f"{order}{'H' if short else 'I'}", start, 8 if long else 6 if short else 4)[0]
        known = pixels.is_implicit_VR or start[4:6].isalpha()
        if not known or (group, element) <= (0x7FE0, 0x0010) or length == _UNDEFINED:
            break
        at += (12 if long else 8) + length
    if at != size:
        problem = "are behind its last element" if at < size else "are missing at its end"
        raise DamagedFile(f"{where}: {abs(size - at):,} bytes {problem}; copy or export the file again")


def _require_frames(where: str, header: Header, dataset: Any) -> None:
    """Raise DamagedFile unless there is a compressed picture of the stated size for each frame."""
    from pydicom.encaps import generate_frames

    count = 0
    for content in generate_frames(dataset.PixelData, number_of_frames=len(header.frames)):
        count += 1
        if header.encoding == "RLE":
            continue
        width, height, samples = _compressed_size(content, header.encoding)
        if (width, height, samples) != (header.columns, header.rows, header.samples):
            raise DamagedFile(
                f"{where}: compressed picture of {width} x {height} pixels and {samples} samples, but the header says "
                f"{header.columns} x {header.rows} and {header.samples}; export the file again"
            )
        if not content.rstrip(b"\0").endswith(_END):
            raise DamagedFile(f"{where}: a compressed picture ends before its end mark; copy the file again")
    if count != len(header.frames):
        raise DamagedFile(f"{where}: {count} compressed frames of {len(header.frames)}; copy the file again")


def _compressed_size(content: bytes, encoding: str) -> tuple[int, int, int]:
    """Width, height and samples per pixel in the header of a compressed picture."""
    if encoding == "JPEG 2000":
        start = content.index(b"\xff\x4f\xff\x51")
        x1, y1, x0, y0 = struct.unpack_from(">4I", content, start + 8)
        return x1 - x0, y1 - y0, struct.unpack_from(">H", content, start + 40)[0]
    at = 2
    while True:
        mark, length = struct.unpack_from(">HH", content, at)
        if mark in (0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7):
            height, width, samples = struct.unpack_from(">HHB", content, at + 5)
            return width, height, samples
        if mark < 0xFF00:
            raise ValueError("no marker")
        at += 2 + max(length, 2)


def _plain(where: str, header: Header, pixels: NDArray[Any]) -> NDArray[Any]:
    """Values (samples, rows, columns) without the bits that hold no value."""
    expected = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if pixels.shape != expected or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize * 8 > header.bits_allocated:
        raise DamagedFile(
            f"{where}: decoded to {pixels.shape} of {pixels.dtype}, not {expected}; export the file again"
        )
    spare = header.bits_allocated - header.bits_stored
    kind = np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    pixels = pixels.astype(kind, copy=False) << spare >> spare if spare else pixels.astype(kind, copy=False)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _truncated(path: Path, header: Header, needed: int, found: int) -> str:
    return (
        f"{path}: {header.source.name} is truncated: {found:,} bytes for {needed:,} bytes of pixels "
        f"({header.columns} x {header.rows} in {len(header.frames)} frames); copy the file again"
    )
