"""The files of a DICOM folder or archive, and errors in place of what pydicom raises for broken ones."""

from __future__ import annotations

import io
import logging
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from handful.errors import DamagedFile, HandfulError, InputError
from handful.jobs.files import open_file

DICOM_SUFFIXES = (".dcm", ".ima", ".zip")
"""Suffixes of single DICOM files and of archives; most DICOM files have none."""
_IGNORED = {"thumbs.db", "desktop.ini", "dicomdir", "readme", "readme.txt", "readme.md", "license", "license.txt"}
_START = 132
_LOUD = ("pydicom", "highdicom.base", "highdicom.image", "dicomweb_client.web", "urllib3.connectionpool")
"""Loggers of libraries."""


@dataclass(frozen=True)
class Source:
    """One file of a folder or an archive."""

    name: str
    """Relative to the folder or archive."""
    size: int
    """In bytes; -1 if it cannot be read."""
    open: Callable[[], AbstractContextManager[io.BufferedIOBase]]


class Bounded:
    """A file whose `read` allocates no more than the bytes that are left, whatever size a header states."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; all that are left if it is negative."""
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset, as in a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current offset."""
        return self._file.tell()


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder with a DICOM file at any depth, an archive, or a DICOM file (by suffix or content)."""
    if path.is_dir():
        return any(is_dicom(Path(file)) for file in _walk(path) if not file.lower().endswith(".zip"))
    if not path.is_file():
        return False
    return path.name.lower().endswith(DICOM_SUFFIXES) or has_dicom_start(path)


def has_dicom_start(path: Path) -> bool:
    """Whether a file begins as DICOM files do; False if it cannot be read."""
    try:
        with open_file(path) as file:
            return is_dicom_start(file.read(_START))
    except (InputError, OSError):
        return False


def is_dicom_start(start: bytes) -> bool:
    """Whether these first bytes of a file have DICOM's mark after the preamble."""
    return start[_START - 4 : _START] == b"DICM"


@contextmanager
def open_sources(path: Path, max_bytes: int) -> Iterator[list[Source]]:
    """The files of a folder tree, of an archive, or the file itself, sorted by name. Hidden files are left out."""
    if path.is_dir():
        yield [_in_folder(path, Path(file)) for file in _walk(path)]
    elif path.name.lower().endswith(".zip"):
        with _open_archive(path) as archive:
            yield list(_in_archive(path, archive, max_bytes))
    else:
        yield [Source(path.name, path.stat().st_size, lambda: open_file(path))] if path.is_file() else []


@contextmanager
def silenced() -> Iterator[None]:
    """Without the log messages of DICOM libraries, which quote headers and addresses."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def refusing(where: str, problem: str) -> Iterator[None]:
    """DamagedFile in place of any error that pydicom and its decoders raise; `where` and `problem` start the message.

    The text of the original error is not repeated, since it may quote what the file says about the patient.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HandfulError:
        raise
    except Exception as error:  # these libraries raise errors of any class for broken files
        raise DamagedFile(f"{where}: {problem} ({type(error).__name__}); copy or export the file again") from None


def _walk(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_shown(name))
        yield from (os.path.join(place, name) for name in sorted(files) if _is_shown(name))


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX" and name.lower() not in _IGNORED


def _in_folder(folder: Path, file: Path) -> Source:
    try:
        size = file.stat().st_size
    except OSError:
        size = -1
    return Source(str(file.relative_to(folder)), size, lambda: open_file(file))


def _open_archive(path: Path) -> zipfile.ZipFile:
    open_file(path).close()
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedFile(f"{path}: not a readable .zip archive ({error}); copy the file again") from error


def _in_archive(path: Path, archive: zipfile.ZipFile, max_bytes: int) -> Iterator[Source]:
    entries = [entry for entry in archive.infolist() if all(map(_is_shown, entry.filename.split("/")))]
    entries = sorted((entry for entry in entries if not entry.filename.endswith("/")), key=lambda entry: entry.filename)
    total = sum(entry.file_size for entry in entries)
    if total > max_bytes:
        raise DamagedFile(f"{path}: unpacks to {total:,} bytes, more than the allowed {max_bytes:,}; unpack one series")
    if any(entry.flag_bits & 1 for entry in entries):
        raise InputError(f"{path}: encrypted; unpack it into a folder")
    for entry in entries:
        yield Source(entry.filename, entry.file_size, _opener(path, archive, entry))


def _opener(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], io.BytesIO]:
    def unpacked() -> io.BytesIO:
        try:
            content = archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise DamagedFile(f"{path}: {entry.filename} is damaged ({error}); copy the archive again") from error
        return io.BytesIO(content)

    return unpacked
