"""Files and folders that are there whole or not at all, however the process that writes them ends."""

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

_NEW, _OLD = "tmp", "old"
_HIDDEN = re.compile(rf"\.[0-9a-f]{{12}}\.(?P<kind>{_NEW}|{_OLD})\.(?P<target>.+)", re.DOTALL)
"""What `_hidden` makes: the target's whole name comes last, so that its suffix holds."""


def write_atomically(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes the file; its folder is made where it is missing.

    Without `sync` the disk is not waited for: after a power cut the file may be damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Writes plain JSON content; ValueError where a number is not finite, which JSON cannot express."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A hidden name in the same folder; what is written there becomes `path`, and vanishes after an exception."""
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
    """A new hidden folder in the same place; it becomes `folder`, and vanishes after an exception."""
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
    """Removes what a killed process left in `folder` when it wrote files or folders whose names `of` is true for.

    A folder that had been put aside, but not replaced yet, gets its place back. Age counts from the last change.
    """
    latest = time.time() - min_age_s
    for path in folder.glob(".*"):
        match = _HIDDEN.fullmatch(path.name)
        if match and of(match["target"]):
            with suppress(FileNotFoundError):  # another process may be doing the same
                if path.stat().st_mtime <= latest:
                    _remove(path, folder / match["target"], match["kind"])


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{uuid.uuid4().hex[:12]}.{kind}.{target.name}")


def _remove(leftover: Path, target: Path, kind: str) -> None:
    if kind == _OLD:
        _give_back(leftover, target)
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


def _give_back(aside: Path, folder: Path) -> None:
    """Puts the earlier folder in its place again, unless a new one is there."""
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.replace(folder)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
