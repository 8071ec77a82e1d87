"""Pixels of TIFF files, decoded strip by strip (or tile by tile) from verified headers."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from handful.data.headers.tiff import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    JPEG_COMPRESSIONS,
    LZW,
    OLD_DEFLATE,
    PACKBITS,
    PALETTE,
    RGB,
    UNCOMPRESSED,
    WHITE_IS_ZERO,
    YCBCR,
    Segment,
    TiffHeader,
)
from handful.errors import DamagedFile, UnsupportedInput

_ZSTD, _LZMA = 50000, 34925
_LOSSLESS = {UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, _ZSTD, _LZMA}
_FAX = (2, 3, 4)
_PICTURES = (*JPEG_COMPRESSIONS, 22610, 33003, 33004, 33005, 34712, 34887, 34933, 34934, 50001, 50002, 52546)
"""Compressions of whole pictures: JPEG, JPEG XR, JPEG 2000, LERC, PNG, WebP and JPEG XL."""
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
"""Channels without alpha, by photometric interpretation."""


def tiff_pixels(content: bytes, header: TiffHeader, path: Path) -> NDArray[Any]:
    """Pixels (y, x), or (y, x, channels) with the alpha channel if there is one, as stored.

    CMYK becomes RGB. Raises DamagedFile or UnsupportedInput.
    """
    colours = _require_known_channels(header, path)
    if header.compression in _LOSSLESS:
        if header.photometric == YCBCR:
            raise UnsupportedInput(f"{path}: colours are YCbCr without JPEG; save the picture as RGB")
        pixels = _decoded(content, header, path)
    elif header.compression in _PICTURES or (header.compression in _FAX and header.bits == header.samples == 1):
        pixels = _decoded_by_tifffile(content, header, path)
    else:
        raise UnsupportedInput(
            f"{path}: {header.bits}-bit pixels of compression {header.compression}; save the picture uncompressed"
        )
    if colours == 4:
        if pixels.dtype != np.uint8:
            raise UnsupportedInput(f"{path}: {header.bits}-bit CMYK colours; save the picture as RGB")
        plain = np.ascontiguousarray(pixels[..., :4])
        return np.asarray(Image.frombytes("CMYK", (header.width, header.height), plain.tobytes()).convert("RGB"))
    return pixels if header.samples > 1 else pixels[..., 0]


def _require_known_channels(header: TiffHeader, path: Path) -> int:
    """The number of channels that are grey or colour. Raises UnsupportedInput unless all others are alpha."""
    if header.photometric not in _COLOURS:
        raise UnsupportedInput(
            f"{path}: unknown colours (PhotometricInterpretation {header.photometric}); save grey values or RGB"
        )
    colours = _COLOURS[header.photometric]
    others = header.samples - colours
    if others < 0:
        raise DamagedFile(f"{path}: {header.samples} channels, but its colours have {colours}; save the picture again")
    alpha = header.extra in ((1,), (2,)) and header.photometric != PALETTE
    if others > 1 or (others == 1 and not alpha):
        raise UnsupportedInput(
            f"{path}: {header.samples} channels, of which {colours} are grey or colour and none is declared as alpha; "
            "save one grey or three colour channels"
        )
    return colours


def _decoded(content: bytes, header: TiffHeader, path: Path) -> NDArray[Any]:
    """Pixels (y, x, channels); each segment must decode to exactly the bytes that its pixels need."""
    pixels: NDArray[Any] | None = None
    for number, segment in enumerate(header.segments, start=1):
        try:
            part = _segment(content, header, segment)
        except (zlib.error, RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise DamagedFile(
                f"{path}: damaged TIFF (strip {number} of {len(header.segments)}: {error}); copy the file again"
            ) from error
        if pixels is None:  # memory is taken once there are pixels
            pixels = np.empty((header.height, header.width, header.samples), part.dtype)
        rows = min(part.shape[0], header.height - segment.row)
        columns = min(part.shape[1], header.width - segment.column)
        channels = slice(segment.plane, segment.plane + 1) if header.planar else slice(None)
        place = slice(segment.row, segment.row + rows), slice(segment.column, segment.column + columns)
        pixels[(*place, channels)] = part[:rows, :columns]
    assert pixels is not None
    return pixels


def _segment(content: bytes, header: TiffHeader, segment: Segment) -> NDArray[Any]:
    """One strip or tile, (rows, columns, channels), in native byte order."""
    rows, columns = header.rows_of(segment), header.segment_shape[1]
    channels = 1 if header.planar else header.samples
    expected = rows * -(-columns * channels * header.bits // 8)
    stored = content[segment.offset : segment.offset + segment.count]
    if expected > segment.count * header.greatest_ratio:
        raise ValueError(f"{segment.count:,} bytes cannot hold {expected:,}")
    if header.reversed_bits:
        stored = bytes(imagecodecs.bitorder_decode(stored))
    data = _inflated(stored, header.compression, expected)
    if len(data) != expected:
        count = f"more than {expected:,}" if len(data) > expected else f"{len(data):,}"
        raise ValueError(f"{count} bytes, must be {expected:,}")
    shape = rows, columns, channels
    if header.bits not in (8, 16, 32, 64):
        if header.predictor != 1:
            raise ValueError(f"a predictor for {header.bits} bits")
        kind = np.uint8 if header.bits < 8 else np.uint16
        unpacked: NDArray[Any] = imagecodecs.packints_decode(data, kind, header.bits, runlen=columns * channels)
        return unpacked.reshape(shape)
    order = "=" if header.predictor == 3 else header.byteorder  # the predictor stores bytes in an order of its own
    dtype = np.dtype(f"{order}{header.kind}{header.bits // 8}")
    array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)
    if header.predictor == 2:
        return np.cumsum(array, axis=1, dtype=array.dtype)
    if header.predictor == 3:
        unpredicted: NDArray[Any] = imagecodecs.floatpred_decode(array, axis=-2)
        return unpredicted
    return array


def _inflated(stored: bytes, compression: int, expected: int) -> bytes:
    """The decompressed bytes; at most one more than expected."""
    if compression == UNCOMPRESSED:
        return stored
    if compression in (DEFLATE, OLD_DEFLATE):
        inflater = zlib.decompressobj()
        data = inflater.decompress(stored, expected + 1)
        if len(data) <= expected and not inflater.eof:
            raise ValueError("ends before its checksum")
        return data
    decode = {LZW: imagecodecs.lzw_decode, PACKBITS: imagecodecs.packbits_decode, _ZSTD: imagecodecs.zstd_decode}
    return bytes(decode.get(compression, imagecodecs.lzma_decode)(stored, out=expected + 1))


def _decoded_by_tifffile(content: bytes, header: TiffHeader, path: Path) -> NDArray[Any]:
    """Pixels (y, x, channels) of JPEG, fax and other compressions."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            page = tiff.pages.first
            pixels, axes = page.asarray(), page.axes
    except Exception as error:  # of any codec
        raise DamagedFile(f"{path}: damaged TIFF ({type(error).__name__}: {error}); copy the file again") from error
    if axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape != (header.height, header.width, header.samples):
        raise DamagedFile(f"{path}: pixels are missing; copy the file again")
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
