"""Bytes of a file in one bounded pass, proven whole: nothing cut off, no wrong checksum, no more than was declared."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Protocol, runtime_checkable

from handful.errors import DamagedFile
from handful.jobs.digests import Digest
from handful.jobs.files import open_file

MAX_BYTES = 8 * 2**30
"""Default bound on the voxels of one file, inflated: a 512 x 512 x 4000 CT in 64-bit floats."""
_CHUNK = 2**20
_SURPLUS = 2**20
"""Bytes a stream may hold beyond what its header declares: padding, not a bomb."""


@runtime_checkable
class Stream(Protocol):
    """Bytes that are read one after the other."""

    def read(self, size: int, /) -> bytes: ...


@contextmanager
def open_stream(path: Path, digest: Digest | None = None) -> Iterator[Stream]:
    """The content of a file from its start, inflated where the magic bytes say gzip, whatever its name.

    All bytes of the file are added to `digest`, in the same pass.
    """
    with open_file(path) as file:
        source = _Digested(file, digest) if digest else file
        yield Inflated(source, path) if is_gzip(file) else source
        while digest and source.read(_CHUNK):
            pass


def read_verified(stream: Stream, path: Path, head: bytes, size: int, max_bytes: int) -> bytearray:
    """The first `size` bytes of a stream of which `head` was read before; its header declares how many they are.

    Nothing is allocated before `size` is known to be within `max_bytes`.
    """
    _require_bounded(path, size, max_bytes)
    content, filled = bytearray(size), min(len(head), size)
    content[:filled] = head[:filled]
    for piece in _pieces(stream, path, size, filled):
        content[filled : filled + len(piece)] = piece
        filled += len(piece)
    return content


def verify_payload(path: Path, offset: int, size: int, compressed: bool, max_bytes: int) -> None:
    """Raises DamagedFile unless `size` bytes of voxels, raw or as a gzip or zlib stream, lie whole after `offset`."""
    _require_bounded(path, size, max_bytes)
    with open_file(path) as file:
        file.seek(offset)
        for _ in _pieces(Inflated(file, path) if compressed else file, path, size):
            pass


def is_gzip(file: BufferedReader) -> bool:
    """Whether the next bytes are gzip's magic ones; they are still to be read afterwards."""
    return file.peek(2)[:2] == b"\x1f\x8b"


def read_head(stream: Stream, path: Path, header: int, head: bytes = b"") -> bytes:
    """The first `header` bytes, of which `head` was read before; DamagedFile where there are fewer."""
    while len(head) < header and (piece := stream.read(header - len(head))):
        head += piece
    if len(head) < header:
        raise DamagedFile(f"{path}: ends after {len(head)} bytes, inside its {header}-byte header; fetch the file anew")
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
    """A gzip (of one or many members) or zlib stream, inflated piece by piece with every checksum verified."""

    def __init__(self, file: Stream, path: Path) -> None:
        self._file, self._path = file, path
        self._waiting = b""
        self._restart()
        self.whole = False
        """Whether the end of the last member has been reached, its checksum being right."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; b"" at the end, be it the right one (`whole`) or not."""
        while not self.whole:
            data = self._waiting or self._file.read(_CHUNK)
            try:
                piece = self._member.decompress(data, size)
            except zlib.error as error:
                raise DamagedFile(
                    f"{self._path}: damaged compressed stream ({str(error).partition(': ')[2] or error}); "
                    "fetch the file anew"
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
            raise DamagedFile(f"{self._path}: foreign bytes after the compressed stream; fetch the file anew")


def _require_bounded(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DamagedFile(
            f"{path}: header declares {size:,} bytes of voxels, more than the {max_bytes:,} allowed; "
            "repair the header, or crop the scan if it really is that large"
        )


def _pieces(stream: Stream, path: Path, size: int, done: int = 0) -> Iterator[bytes]:
    """The first `size` bytes but those `done`; then the rest of a compressed stream is read for its checksum."""
    while done < size:
        piece = stream.read(min(_CHUNK, size - done))
        if not piece:
            raise DamagedFile(
                f"{path}: file ends after {100 * done / size:.0f} % of its content ({done:,} of {size:,} bytes); "
                "fetch the file anew"
            )
        done += len(piece)
        yield piece
    if isinstance(stream, Inflated):
        _require_end(stream, path, size)


def _require_end(stream: Inflated, path: Path, size: int) -> None:
    surplus = 0
    while piece := stream.read(_CHUNK):
        surplus += len(piece)
        if surplus > _SURPLUS:
            raise DamagedFile(
                f"{path}: inflates far beyond the {size:,} bytes its header declares; do not use this file"
            )
    if not stream.whole:
        raise DamagedFile(f"{path}: compressed stream ends before its checksum; fetch the file anew")
