"""Paths that users name, and files opened for reading, with error messages for the user."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from handful.errors import InputError, PathError

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of the longest name of a file or folder, and of the longest path, on most disks."""
_SHOWN = 100
"""Letters of the beginning and of the end of a long path that an error message shows."""
_REMEDIES = {
    errno.ENAMETOOLONG: "is too long for this disk; shorten it",
    errno.ENOTDIR: "leads through a file as if it were a folder; check the folders in it",
    errno.ELOOP: "is a loop of links; remove one of them",
    errno.EACCES: "is in a folder that you are not allowed to open; get access, or name another folder",
}


def checked_path(path: str | Path, *, room: int = 0) -> Path:
    """The path, if the system can look it up. Whether anything is there does not matter.

    `room` is the number of bytes by which temporary names in the same folder are longer.

    Raises PathError if the path or a name in it is too long, if it has a NUL character, if it leads through a file,
    and if it is a loop of links or in a folder that may not be opened.
    """
    path = Path(path)
    failure: Exception | None = None
    try:
        path.stat()
    except (OSError, ValueError) as error:
        failure = error
    if failure or room:
        _require_possible(path, room)
    if isinstance(failure, OSError) and not isinstance(failure, FileNotFoundError):
        problem = _REMEDIES.get(failure.errno or 0, f"cannot be found ({failure.strerror}); check the path")
        raise PathError(f"{_shown(path)} {problem}") from failure
    return path


def _require_possible(path: Path, room: int) -> None:
    """Raise PathError for a path that no file can have."""
    if "\0" in str(path):
        raise PathError(f"{_shown(path)!r} has a NUL character, which no path can have; remove it")
    names = [len(os.fsencode(name)) for name in path.parts]
    if names and max(names[-1] + room, *names) > LONGEST_NAME:
        raise PathError(
            f"{_shown(path)}: a name of {max(names)} bytes is too long; shorten it to {LONGEST_NAME - room} bytes"
        )
    if (length := len(os.fsencode(path))) > LONGEST_PATH:
        raise PathError(f"{_shown(path)}: a path of {length} bytes is too long; shorten it to {LONGEST_PATH} bytes")


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}…{text[-_SHOWN:]}"


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading. Raises InputError if it does not exist, is a pipe or a device, or cannot be read."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would be waited for, a device may have no end
            raise InputError(f"{path}: a pipe or a device, not a file; save its content as a file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        checked_path(path)
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file; check the name") from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path}: cannot be read ({reason}); check that it is a file that you are allowed to read"
        ) from error


def text_of(path: Path) -> str:
    """The text in a file in UTF-8. Raises InputError as `open_file`, UnicodeDecodeError for another encoding."""
    with open_file(path) as file:
        return file.read().decode("utf-8-sig")


def reserved(
    file: IO[bytes], kind: np.dtype[Any], shape: tuple[int, ...], offset: int = 0, order: Literal["C", "F"] = "C"
) -> NDArray[Any]:
    """An array of zeros in a part of a file, whose space on the disk is reserved first.

    Raises OSError if the disk is full; otherwise the process would be killed when it writes into the array.
    """
    left = int(np.prod(shape, dtype=object)) * kind.itemsize
    file.seek(offset)
    while left > 0:
        left -= file.write(bytes(min(left, _PIECE)))
    file.flush()
    return np.memmap(file, dtype=kind, mode="r+", offset=offset, shape=shape, order=order)


_PIECE = 2**20
