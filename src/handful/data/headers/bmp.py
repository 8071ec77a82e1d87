"""Headers of BMP files. Source: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from handful.errors import DamagedFile

_RUN_LENGTHS = (1, 2)
_PADDING = 3
"""Zeros that programs add to reach a multiple of four bytes."""


@dataclass(frozen=True)
class Bmp:
    """The header of a BMP file: where its pixels are, and how they are stored."""

    width: int
    height: int
    bits: int
    """Per pixel."""
    offset: int
    """First byte of the pixels."""
    downwards: bool
    """Whether the first row is the upper one."""
    run_lengths: bool
    """Whether the pixels are compressed."""

    @property
    def stride(self) -> int:
        """Bytes of a row that is not compressed."""
        return (self.width * self.bits + 31) // 32 * 4


def read_bmp(content: bytes, path: Path) -> Bmp:
    """The header. Raises DamagedFile unless the pixels are as many as it declares."""
    if len(content) < 26:
        raise _damaged(path, f"{len(content)} bytes")
    offset, header = struct.unpack_from("<II", content, 10)
    if header == 12:
        width, height, planes, bits = struct.unpack_from("<HHHH", content, 18)
        compression = 0
    elif 40 <= header <= 124 and len(content) >= 54:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", content, 18)
    else:
        raise _damaged(path, f"a header of {header} bytes")
    bmp = Bmp(width, abs(height), bits, offset, height < 0, compression in _RUN_LENGTHS)
    if width < 1 or bmp.height < 1 or planes != 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise _damaged(path, f"{width} x {bmp.height} pixels of {bits} bits")
    end = offset + bmp.height * bmp.stride
    if offset < 14 + header or offset > len(content):
        raise _damaged(path, f"pixels from byte {offset}")
    padded = len(content) <= end + _PADDING and not any(content[end:])
    if not bmp.run_lengths and not (end <= len(content) and padded):
        raise _damaged(path, f"{len(content):,} bytes, must be {end:,}")
    return bmp


def _damaged(path: Path, finding: str) -> DamagedFile:
    return DamagedFile(f"{path}: truncated or damaged picture ({finding}); copy the file again")
