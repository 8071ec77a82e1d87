"""Opening of files for reading, with error messages for the user."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from handful.errors import InputError


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading. Raises InputError if it does not exist or cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check that it is a file that you are allowed to read"
        ) from error


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
