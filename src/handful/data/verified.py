"""Reading of file contents in one pass with bounded memory.

Truncated files, surplus bytes and wrong checksums are detected. Memory is taken as bytes come, whatever a header says.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from handful.errors import DamagedFile
from handful.jobs.digests import Digest
from handful.jobs.files import open_file
from handful.jobs.scratch import bytes_in_file, is_large

MAX_BYTES = 8 * 2**30
"""Default maximum size of the decompressed voxels of one file: a 512 x 512 x 4000 CT in 64-bit floats."""
_CHUNK = 2**20
_GREATEST_RATIO = 1032
"""Bytes that one byte of a gzip or zlib stream can become."""


@runtime_checkable
class Stream(Protocol):
    """Bytes that are read in order."""

    def read(self, size: int, /) -> bytes: ...


@contextmanager
def open_stream(path: Path, digest: Digest | None = None) -> Iterator[Stream]:
    """The content of a file from its start, decompressed if it begins with gzip's magic bytes, whatever its name.

    If a `digest` is given, all bytes of the file are added to it in the same pass.
    """
    with open_file(path) as file:
        source = _Digested(file, digest) if digest else file
        yield Inflated(source, path) if is_gzip(file) else source
        while digest and source.read(_CHUNK):
            pass


def read_verified(
    stream: Stream, path: Path, head: bytes, size: int, max_bytes: int, offset: int = 0
) -> NDArray[np.uint8]:
    """All `size` bytes of a stream of the file `path`; `head` are those that were read before.

    Many bytes are not in memory: those of a compressed stream are decompressed into a temporary file, and others are
    read from the file `path` when they are needed, from `offset` on, where the content begins.

    Raises DamagedFile if `size` is larger than `max_bytes`, or if the stream holds fewer or more bytes. No memory is
    reserved for bytes that the file cannot hold, and none is filled before its bytes are there.
    """
    _require_bounded(path, size, max_bytes)
    possible = size <= path.stat().st_size * _GREATEST_RATIO
    filled = min(len(head), size)
    pieces = _pieces(stream, path, size, filled)
    if possible and is_large(size):
        if isinstance(stream, Inflated):
            return bytes_in_file(itertools.chain([head[:size]], pieces))
        deque(pieces, maxlen=0)  # verified
        return np.memmap(path, np.uint8, "c", offset, size)
    content = np.empty(size if possible else 0, np.uint8)
    content[:filled] = np.frombuffer(head[:filled], np.uint8)[: len(content)]
    for piece in pieces:
        if possible:
            content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
    return content


def read_payload(
    path: Path, offset: int, size: int, max_bytes: int, *, compressed: bool, stored: int | None = None
) -> NDArray[np.uint8]:
    """The `size` bytes of voxels from `offset` to the end of a file, raw or as a gzip or zlib stream.

    `stored` is the size of the compressed stream by the header, if the header states it. Raises DamagedFile as
    `read_verified`, and if the file holds another number of bytes than `stored`.
    """
    with open_file(path) as file:
        there = os.fstat(file.fileno()).st_size - offset
        file.seek(offset)
        content = read_verified(Inflated(file, path) if compressed else file, path, b"", size, max_bytes, offset)
    if stored is not None and stored != there:
        raise DamagedFile(
            f"{path}: the header declares {stored:,} compressed bytes, but {there:,} follow it; copy the file again"
        )
    return content


def read_whole(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file. Raises DamagedFile if there are more than `max_bytes`."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise DamagedFile(f"{path}: larger than the allowed {max_bytes:,} bytes; cut it into tiles")
        return file.read()


def is_gzip(file: BufferedReader) -> bool:
    """Whether the next bytes are gzip's magic bytes; they are not consumed."""
    return file.peek(2)[:2] == b"\x1f\x8b"


def read_head(stream: Stream, path: Path, header: int, head: bytes = b"") -> bytes:
    """The first `header` bytes; `head` are those that were read before. Raises DamagedFile if there are fewer."""
    while len(head) < header and (piece := stream.read(header - len(head))):
        head += piece
    if len(head) < header:
        raise DamagedFile(f"{path}: ends after {len(head)} bytes, inside its {header}-byte header; copy the file again")
    return head


class _Digested:
    """A file whose bytes are added to a digest as they are read."""

    def __init__(self, file: Stream, digest: Digest) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._digest.add(data)
        return data


class Inflated:
    """A gzip (one or many members) or zlib stream, decompressed in pieces; every checksum is verified."""

    def __init__(self, file: Stream, path: Path) -> None:
        self._file, self._path = file, path
        self._waiting = b""
        self._restart()
        self.whole = False
        """Whether the end of the last member has been reached and its checksum is right."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; b"" at the end of the file, which is complete if `whole` is true."""
        while not self.whole:
            data = self._waiting or self._file.read(_CHUNK)
            try:
                piece = self._member.decompress(data, size)
            except zlib.error as error:
                raise DamagedFile(
                    f"{self._path}: damaged compressed stream ({str(error).partition(': ')[2] or error}); "
                    "copy the file again"
                ) from error
            self._waiting = self._member.unconsumed_tail
            if self._member.eof:
                self._next_member()
            if piece or not (data or self.whole):
                return piece
        return b""

    def _restart(self) -> None:
        self._member = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: gzip or zlib, by its first bytes

    def _next_member(self) -> None:
        rest = self._member.unused_data.lstrip(b"\0")  # archives pad with zeros
        while len(rest) < 2 and (more := self._file.read(_CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            self.whole = True
        elif rest.startswith(b"\x1f\x8b"):
            self._waiting = rest
            self._restart()
        else:
            raise DamagedFile(f"{self._path}: unknown bytes after the compressed stream; copy the file again")


def _require_bounded(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DamagedFile(
            f"{path}: the header declares {size:,} bytes of voxels, more than the allowed {max_bytes:,}; "
            "repair the header, or crop the scan if it really is that large"
        )


def _pieces(stream: Stream, path: Path, size: int, done: int = 0) -> Iterator[bytes]:
    """The first `size` bytes, except those `done`. The stream must then end, with a right checksum if it has one."""
    while done < size:
        piece = stream.read(min(_CHUNK, size - done))
        if not piece:
            raise DamagedFile(
                f"{path}: file ends after {100 * done / size:.0f} % of its content ({done:,} of {size:,} bytes); "
                "copy the file again"
            )
        done += len(piece)
        yield piece
    if stream.read(1):
        raise DamagedFile(
            f"{path}: holds more than the {size:,} bytes that its header declares; "
            "copy the file again, in binary mode, or repair the header"
        )
    if isinstance(stream, Inflated) and not stream.whole:
        raise DamagedFile(f"{path}: the compressed stream ends before its checksum; copy the file again")
