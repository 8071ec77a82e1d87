"""Arrays as the nnInteractive clients send and expect them (format NNIA, version 1): a header, then Blosc2 chunks.

Nothing is allocated before the declared sizes, the sizes of the chunks and the limit agree. Chunks that would need a
codec or a filter from a plugin are refused, because Blosc2 loads plugins by running code.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import blosc2
import numpy as np
from numpy.typing import NDArray

from handful.errors import InputError

MAGIC, VERSION, ZSTD = b"NNIA", 1, 1
TYPES = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
CHUNK = 2**30
"""Largest number of bytes of a chunk, before compression."""
FRAME = struct.Struct("<BBBBiii6sBB6sBB")
"""Header of a Blosc2 chunk: version, codec version, flags, item size, length, block length, packed length, filters,
codec, option of the codec, options of the filters, two more bytes of flags."""
EXTENDED = 0b101
"""Bits of the flags of each chunk with a header of 32 bytes."""
LZ4_ZSTD = {1, 5}
ONLY_SHUFFLED = {0, 1}
PLAIN, ALL_ZERO = 0, 0x10
"""The last byte of flags that a client sets; others name dictionaries, other files and memory that nobody has set."""


def packed(array: NDArray[np.generic]) -> bytes:
    """The array in the clients' format."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode()
    raw = array.reshape(-1).view(np.uint8).data
    parts = [
        struct.pack(
            f"<4sBBBB{len(name)}s{array.ndim}q", MAGIC, VERSION, ZSTD, array.ndim, len(name), name, *array.shape
        )
    ]
    starts = range(0, len(raw), CHUNK)
    parts.append(struct.pack("<I", len(starts)))
    for start in starts:
        piece = raw[start : start + CHUNK]
        chunk = blosc2.compress2(
            piece, typesize=array.itemsize, codec=blosc2.Codec.ZSTD, clevel=3, filters=[blosc2.Filter.NOFILTER]
        )
        parts += [struct.pack("<QQ", len(piece), len(chunk)), chunk]
    return b"".join(parts)


def unpacked_array(content: bytes, most_bytes: int, shape: tuple[int, ...] | None = None) -> NDArray[np.generic]:
    """The array that a client sent. Raises InputError unless it is sound, small enough and of that shape, if given."""
    try:
        kind, declared, offset = _header(content)
    except (struct.error, UnicodeDecodeError) as error:
        raise InputError(f"an array whose header ends early or is damaged ({error}); send it again") from error
    if shape is not None and declared != shape:
        raise InputError(f"an array of shape {declared}; send one of shape {shape}")
    size = math.prod(declared) * kind.itemsize
    if size > most_bytes:
        raise InputError(f"an array of {size} bytes; the most is {most_bytes}. Crop or downsample the scan")
    chunks = list(_chunks(content, offset, size))
    out = np.empty(size, np.uint8)
    start = 0
    for chunk, length in chunks:
        try:
            blosc2.decompress2(chunk, dst=out[start : start + length])
        except (RuntimeError, ValueError) as error:
            raise InputError(f"an array with a damaged chunk ({error}); send it again") from error
        start += length
    return out.view(kind).reshape(declared)


def _header(content: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """Type and shape as declared, and where the chunks start."""
    magic, version, _, axes, length = struct.unpack_from("<4sBBBB", content)
    if magic != MAGIC or version != VERSION:
        raise InputError("no array of format NNIA, version 1; use an nnInteractive client of version 2")
    name = content[8 : 8 + length].decode("ascii")
    if name not in TYPES or not 1 <= axes <= 4:
        raise InputError(f"an array of type {name[:20]!r} with {axes} axes; send numbers or bool, with 1 to 4 axes")
    shape = struct.unpack_from(f"<{axes}q", content, 8 + length)
    if min(shape) < 1:
        raise InputError(f"an array of shape {shape}; send at least one voxel along each axis")
    return np.dtype(name), shape, 8 + length + 8 * axes


def _chunks(content: bytes, offset: int, size: int) -> Iterator[tuple[memoryview, int]]:
    """Each chunk with its number of bytes after decompression; all sizes are checked."""
    view, left = memoryview(content), size
    try:
        (count,) = struct.unpack_from("<I", content, offset)
        offset += 4
        for _ in range(count):
            length, packed_length = struct.unpack_from("<QQ", content, offset)
            offset += 16
            chunk = view[offset : offset + packed_length]
            _require_sound(chunk, length, packed_length)
            offset, left = offset + packed_length, left - length
            if left < 0:
                break
            yield chunk, length
    except struct.error as error:
        raise InputError("an array that ends early; send it again") from error
    if left or offset != len(content):
        raise InputError("an array whose chunks have another size than its shape; send it again")


def _require_sound(chunk: memoryview, length: int, packed_length: int) -> None:
    """Raises InputError unless the chunk's own header repeats both sizes and needs no plugin and no other file."""
    if len(chunk) != packed_length or len(chunk) < FRAME.size or not 0 < length <= CHUNK:
        raise InputError("an array with a chunk of an impossible size; send it again")
    _, _, flags, _, own_length, _, own_packed_length, filters, codec, _, _, more, last = FRAME.unpack_from(chunk)
    if (own_length, own_packed_length) != (length, packed_length):
        raise InputError("an array with a chunk that contradicts its header; send it again")
    usual = flags & EXTENDED == EXTENDED and codec in LZ4_ZSTD and set(filters) <= ONLY_SHUFFLED
    if not usual or more or last not in (PLAIN, ALL_ZERO):
        raise InputError("an array with an unusual compression; use an nnInteractive client of version 2")
