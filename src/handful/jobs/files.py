"""Opening of files for reading, with error messages for the user."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path

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
