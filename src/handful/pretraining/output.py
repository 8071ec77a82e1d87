"""The output folder of a pre-training: what it was trained with, and whether another training may replace it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from handful.errors import InputError
from handful.jobs.atomic import write_json
from handful.jobs.digests import digest_of, digest_of_file
from handful.jobs.files import checked_path
from handful.jobs.json_file import read_json

NOTE = "training.json"
"""The fingerprint of the training that writes the folder, and whether it has finished."""
WEIGHTS = "model.safetensors"


def fingerprint(config: Any, out: Path) -> str:
    """Return a digest of the settings and of the weights in `start`, so that a training resumes only its own work.

    A training in `out` that an earlier version began keeps its fingerprint, which has the path of `start` instead.
    """
    settings = asdict(config)
    by_path = _digest(settings)
    start = settings["start"]
    if start is None or not (start / WEIGHTS).is_file() or _noted(out).get("fingerprint") == by_path:
        return by_path
    return _digest(settings | {"start": digest_of_file(start / WEIGHTS)})


def prepare_folder(out: Path, own: str, overwrite: bool, writes: bool = True) -> bool:
    """Create the folder `out`; return False if the training with the fingerprint `own` has already finished there.

    One of the processes that share a training `writes` its note. Raises InputError if `out` contains weights of
    anything else and `overwrite` is not set.
    """
    checked_path(out).mkdir(parents=True, exist_ok=True)
    found = _noted(out)
    if (out / WEIGHTS).exists() and not overwrite:
        if found.get("fingerprint") != own:
            raise InputError(
                f"{out} contains another backbone, or one with other settings; name another folder, or add --overwrite"
            )
        return not found.get("finished")
    if writes:
        write_note(out, own, finished=False)
    return True


def write_note(out: Path, own: str, finished: bool) -> None:
    """Note which training `out` belongs to, and whether it has made all of its steps."""
    write_json(out / NOTE, {"fingerprint": own, "finished": finished})


def _digest(settings: dict[str, Any]) -> str:
    return digest_of(json.dumps(settings, default=str, sort_keys=True))[:16]


def _noted(out: Path) -> dict[str, Any]:
    """Return the note in `out`; an empty one if there is none, or a damaged one."""
    found: Any = None
    if (out / NOTE).exists():
        with suppress(ValueError):
            found = read_json(out / NOTE)[0]
    return found if isinstance(found, dict) else {}
