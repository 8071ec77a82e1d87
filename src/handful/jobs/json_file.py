"""JSON files of unknown origin, read within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handful.jobs.files import open_file

MOST_BYTES = 2**26
"""Size from which a file is not read: 64 MiB, far above every record of handful and of transformers."""


def read_json(path: Path) -> tuple[Any, bytes]:
    """The content of a JSON file, and its bytes.

    Raises ValueError, whose message says what is wrong, if it is too large, not UTF-8, not JSON, or nested too deeply;
    InputError if it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(min(path.stat().st_size, MOST_BYTES) + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(content), content
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"not JSON: {error}") from None
