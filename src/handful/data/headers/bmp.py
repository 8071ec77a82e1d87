"""Headers of BMP files. Source: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage."""

from __future__ import annotations

import struct
from pathlib import Path

from handful.errors import DamagedFile

_RUN_LENGTHS = (1, 2)
_PADDING = 3
"""Zeros that programs add to reach a multiple of four bytes."""


def bmp_size(content: bytes, path: Path) -> tuple[int, int]:
    """Width and height. Raises DamagedFile unless the pixels are as many as the header declares."""
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
    height = abs(height)
    if width < 1 or height < 1 or planes != 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise _damaged(path, f"{width} x {height} pixels of {bits} bits")
    end = offset + height * ((width * bits + 31) // 32 * 4)
    if offset < 14 + header or offset > len(content):
        raise _damaged(path, f"pixels from byte {offset}")
    padded = len(content) <= end + _PADDING and not any(content[end:])
    if compression not in _RUN_LENGTHS and not (end <= len(content) and padded):
        raise _damaged(path, f"{len(content):,} bytes, must be {end:,}")
    return width, height


def _damaged(path: Path, finding: str) -> DamagedFile:
    return DamagedFile(f"{path}: truncated or damaged picture ({finding}); copy the file again")
