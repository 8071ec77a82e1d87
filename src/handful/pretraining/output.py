"""The output folder of a pre-training: what it was trained with, and whether another training may replace it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from handful.errors import InputError
from handful.jobs.atomic import write_json
from handful.jobs.digests import digest_of
from handful.jobs.files import checked_path
from handful.jobs.json_file import read_json

NOTE = "training.json"
"""The fingerprint of the training that writes the folder, and whether it has finished."""
WEIGHTS = "model.safetensors"


def fingerprint(config: Any) -> str:
    """Return a digest of the settings, so that a training resumes only its own unfinished work."""
    settings = json.dumps(asdict(config), default=str, sort_keys=True)
    return digest_of(settings)[:16]


def prepare_folder(out: Path, own: str, overwrite: bool) -> bool:
    """Create the folder `out`; return False if the training with the fingerprint `own` has already finished there.

    Raises InputError if `out` contains weights of anything else and `overwrite` is not set.
    """
    checked_path(out).mkdir(parents=True, exist_ok=True)
    found: Any = None
    if (out / NOTE).exists():
        with suppress(ValueError):  # a damaged note
            found = read_json(out / NOTE)[0]
    same = isinstance(found, dict) and found.get("fingerprint") == own
    if (out / WEIGHTS).exists() and not overwrite:
        if not same:
            raise InputError(
                f"{out} contains another backbone, or one with other settings; name another folder, or add --overwrite"
            )
        return not found.get("finished")
    write_note(out, own, finished=False)
    return True


def write_note(out: Path, own: str, finished: bool) -> None:
    """Note which training `out` belongs to, and whether it has made all of its steps."""
    write_json(out / NOTE, {"fingerprint": own, "finished": finished})
