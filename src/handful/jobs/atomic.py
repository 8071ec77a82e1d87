"""Atomic writing: files and folders exist completely or not at all, even if the process is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handful.errors import InputError
from handful.jobs.files import checked_path

_NEW, _OLD = "tmp", "old"
_HIDDEN = re.compile(rf"\.[0-9a-f]{{12}}\.(?P<kind>{_NEW}|{_OLD})\.(?P<target>.+)", re.DOTALL)
"""Names from `_hidden`. The name of the target comes last, so that its suffix is kept."""


def write_atomically(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file, and create its folder if it is missing.

    Without `sync`, the function does not wait for the disk, and the file may be damaged after a power failure.
    """
    checked_path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write JSON values. Raises ValueError for numbers that are not finite, which JSON cannot express."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A hidden path in the same folder. The file written there replaces `path`, or is removed after an exception."""
    temporary = _hidden(path, _NEW)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new hidden folder in the same place. It replaces `folder`, or is removed after an exception."""
    fresh, aside = _hidden(folder, _NEW), _hidden(folder, _OLD)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for path in fresh.rglob("*"):
            if path.is_file():
                _sync(path)
        if folder.exists():
            folder.replace(aside)
        fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if aside.exists():
            _give_back(aside, folder)


def remove_leftovers(folder: Path, of: Callable[[str], bool] = lambda target: True, min_age_s: float = 0.0) -> None:
    """Remove temporary files and folders of killed processes in `folder`, for targets whose names `of` accepts.

    A folder that was moved aside but not yet replaced is moved back. `min_age_s` counts from the last change.
    """
    latest = time.time() - min_age_s
    for path in folder.glob(".*"):
        match = _HIDDEN.fullmatch(path.name)
        if match and of(match["target"]):
            with suppress(FileNotFoundError):  # another process may remove it at the same time
                if path.stat().st_mtime <= latest:
                    _remove(path, folder / match["target"], match["kind"])


def remove_leftovers_of(*targets: Path) -> None:
    """Remove temporary files and folders of killed processes for these targets, which only one process writes."""
    names = {target.name for target in targets}
    for folder in {target.parent for target in targets}:
        remove_leftovers(folder, names.__contains__)


def _hidden(target: Path, kind: str) -> Path:
    lead = f".{uuid.uuid4().hex[:12]}.{kind}."
    hidden = _HIDDEN.fullmatch(target.name)  # a hidden path for a hidden one is no longer than that
    name = hidden["target"] if hidden else target.name
    checked_path(target.with_name(name), room=len(lead))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise InputError(f"{target}: a pipe or a device, which is never replaced; name a file")
    return target.with_name(f"{lead}{name}")


def _remove(leftover: Path, target: Path, kind: str) -> None:
    if kind == _OLD:
        _give_back(leftover, target)
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


def _give_back(aside: Path, folder: Path) -> None:
    """Move the earlier folder back to its place, unless a new one is there."""
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.replace(folder)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
