"""PNG files: every chunk is checked, and its pixels are counted, before a library decodes them.

Source: https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handful.data.headers.tiff import exif_orientation
from handful.errors import DamagedFile, UnsupportedInput

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOUR: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), COLOUR_ALPHA: (8, 16)}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of the seven passes of an interlaced picture."""
_PIECE = 2**20


@dataclass(frozen=True)
class Png:
    """The header of a PNG file, and the chunks that hold its pixels."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    orientation: int
    palette: bytes
    stream: bytes
    """The compressed pixels."""

    @property
    def raw_size(self) -> int:
        """Bytes of the pixels with one byte per row for its filter."""
        bits = self.depth * _CHANNELS[self.colour]
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for column, row, step_x, step_y in passes:
            width, height = -((column - self.width) // step_x), -((row - self.height) // step_y)
            if width > 0 and height > 0:
                total += height * (1 + -(-width * bits // 8))
        return total


def read_png(content: bytes, path: Path) -> Png:
    """The chunks of a file, whose checksums are verified. Raises DamagedFile or UnsupportedInput."""
    header, palette, pieces, orientation = b"", b"", [], 1
    for number, (name, data) in enumerate(_chunks(content, path)):
        if (number == 0) != (name == b"IHDR"):
            raise _damaged(path, "its header is not the first chunk")
        if name == b"IHDR":
            header = data
        elif name == b"PLTE":
            palette = data
        elif name == b"IDAT":
            pieces.append(data)
        elif name == b"eXIf":
            orientation = exif_orientation(data, path)
        elif name == b"acTL":
            raise UnsupportedInput(f"{path}: a stack of pictures (animated PNG); save one picture")
        elif not name[0] & 32 and name != b"IEND":
            raise UnsupportedInput(f"{path}: unknown kind of PNG (chunk {name!r}); save the picture again")
    return _parsed(path, header, palette, b"".join(pieces), orientation)


def plain_png(png: Png, path: Path) -> bytes:
    """The picture as a file of verified chunks only, with its pixels stored uncompressed.

    Raises DamagedFile unless the compressed pixels are exactly those of the header.
    """
    raw = _inflated(png, path)
    kind = struct.pack(">IIBBBBB", png.width, png.height, png.depth, png.colour, 0, 0, int(png.interlaced))
    palette = _chunk(b"PLTE", png.palette) if png.colour == PALETTE else b""
    return b"".join(
        (SIGNATURE, _chunk(b"IHDR", kind), palette, _chunk(b"IDAT", zlib.compress(raw, 0)), _chunk(b"IEND", b""))
    )


def _chunks(content: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        size, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + size
        if end > len(content) or not name.isalpha():
            break
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise _damaged(path, f"chunk {name.decode('latin1')} has a wrong checksum")
        yield name, content[at + 8 : end - 4]
        if name == b"IEND":
            if end != len(content):
                raise DamagedFile(
                    f"{path}: {len(content) - end:,} bytes follow the end of the picture; save the picture again"
                )
            return
        at = end
    raise _damaged(path, f"ends inside a chunk, at byte {at:,} of {len(content):,}")


def _parsed(path: Path, header: bytes, palette: bytes, stream: bytes, orientation: int) -> Png:
    if len(header) != 13:
        raise _damaged(path, f"a header of {len(header)} bytes")
    width, height, depth, colour, compression, method, interlace = struct.unpack(">IIBBBBB", header)
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise _damaged(path, f"{width} x {height} pixels")
    if depth not in _DEPTHS.get(colour, ()) or compression or method or interlace > 1:
        raise _damaged(path, f"impossible pixels: depth {depth}, colour type {colour}, interlace {interlace}")
    if colour == PALETTE and (len(palette) % 3 or not 3 <= len(palette) <= 3 * 2**depth):
        raise _damaged(path, f"a palette of {len(palette)} bytes")
    return Png(width, height, depth, colour, bool(interlace), orientation, palette, stream)


def _inflated(png: Png, path: Path) -> bytes:
    inflater, raw, rest = zlib.decompressobj(), bytearray(), png.stream
    try:
        while not inflater.eof and rest and len(raw) <= png.raw_size:
            raw += inflater.decompress(rest, _PIECE)
            rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise _damaged(path, f"damaged compressed stream, {error}") from error
    if len(raw) > png.raw_size:
        raise DamagedFile(f"{path}: holds more pixels than its header declares; save the picture again")
    if not inflater.eof or len(raw) < png.raw_size:
        raise _damaged(path, f"{len(raw):,} of {png.raw_size:,} bytes of pixels")
    if inflater.unused_data:
        raise _damaged(path, f"{len(inflater.unused_data):,} bytes follow the pixels")
    return bytes(raw)


def _chunk(name: bytes, data: bytes) -> bytes:
    return b"".join((len(data).to_bytes(4, "big"), name, data, zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big")))


def _damaged(path: Path, finding: str) -> DamagedFile:
    return DamagedFile(f"{path}: truncated or damaged picture ({finding}); copy the file again")
