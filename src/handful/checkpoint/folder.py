"""The folder of a model: which names it may have, and what may be in it when a new model replaces it.

A model folder is replaced as a whole, so a file of somebody else in it would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from handful.checkpoint.record import CARD, EXPERT_NAME, EXPERTS, RECORD, WEIGHTS
from handful.errors import CheckpointError, InputError
from handful.jobs.files import checked_path

_FILES = {RECORD, WEIGHTS, CARD}
_OF_FILE_MANAGERS = {".ds_store", "thumbs.db", "desktop.ini"}
"""Files that file managers write into every folder that they show, in lower case."""


def require_named(folder: str | Path) -> Path:
    """The path of a model folder. Raises InputError if it ends without a name of its own, as '.' and '..' do."""
    path = checked_path(folder)
    if path.name in ("", ".."):
        raise InputError(
            f"{path} cannot be a model folder, which is replaced as a whole; name a folder in it, such as "
            f"{path / 'model'}"
        )
    return path


def require_replaceable(folder: str | Path) -> Path:
    """The path of a folder that is missing or empty, or that contains a model and nothing else.

    Raises CheckpointError for any other folder, and names what does not belong to the model; InputError for a path
    without a name of its own.
    """
    path = require_named(folder)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    if not (path / RECORD).exists():
        raise CheckpointError(f"{path} exists and is not a segmenter; name another folder")
    foreign = sorted(_foreign(path))
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise CheckpointError(
            f"{foreign[0]}{more} is not part of the model in {path}, and would be lost when a new model replaces that "
            "folder; move it out of the folder, or name another folder for the new model"
        )
    return path


def _foreign(folder: Path, *, with_experts: bool = True) -> Iterator[Path]:
    """The entries of a model folder that are no part of a model."""
    for entry in folder.iterdir():
        if entry.name.lower() in _OF_FILE_MANAGERS or (entry.name in _FILES and entry.is_file()):
            continue
        if not (with_experts and entry.name == EXPERTS and entry.is_dir()):
            yield entry
            continue
        for expert in entry.iterdir():
            if expert.is_dir() and EXPERT_NAME.fullmatch(expert.name):
                yield from _foreign(expert, with_experts=False)
            elif expert.name.lower() not in _OF_FILE_MANAGERS:
                yield expert
