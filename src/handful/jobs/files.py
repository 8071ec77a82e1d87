"""Files opened for reading, with errors that say what to do."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path

from handful.errors import InputError


def open_file(path: Path) -> BufferedReader:
    """The file, open for reading; InputError where it is not there or may not be read."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check that it is a file you may read") from error
