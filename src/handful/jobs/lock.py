"""Locks on an output folder and on pieces of work in it, for one process at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from handful.errors import BusyError
from handful.jobs.files import checked_path

LOCK, HOLDER = "lock", "lock.holder"
ATTEMPTS = 100
"""How often a folder is created that another process removes."""


@contextmanager
def locked(folder: Path, *, remove_empty: bool = False) -> Iterator[None]:
    """Lock `folder` for this process; the folder is created if it is missing.

    With `remove_empty`, a folder that is empty in the end is removed while it is still locked, so that no other process
    can lose files that it has just written there.

    Raises BusyError with the host and process id that holds the lock. The operating system releases the lock when its
    process ends, also when it is killed.
    """
    lock = _acquired(checked_path(folder))
    try:
        (folder / HOLDER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), "utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        if remove_empty and {path.name for path in folder.iterdir()} <= {LOCK}:
            with suppress(OSError):  # another process may have created the next lock; Windows keeps open files
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


@contextmanager
def claimed(file: Path) -> Iterator[None]:
    """Hold a lock, which is this file, for one piece of work; waits while another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file):
        yield


def _acquired(folder: Path) -> FileLock:
    """The lock of a folder, which another process may remove at the same time."""
    for attempt in range(ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            message = f"{folder}: {_holder(folder)} works in this folder; wait until it is done, or name another folder"
            raise BusyError(message) from None
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return lock
    raise AssertionError


def _holder(folder: Path) -> str:
    """The process that holds the lock. It is written just after the lock is taken, so it may be unknown."""
    try:
        holder = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
