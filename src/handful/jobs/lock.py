"""A lock on an output folder, for one process at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from handful.errors import BusyError

LOCK, HOLDER = "lock", "lock.holder"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process; the folder is created if it is missing.

    Raises BusyError with the host and process id that holds the lock. The operating system releases the lock when its
    process ends, also when it is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        message = f"{folder}: {_holder(folder)} works in this folder; wait until it is done, or name another folder"
        raise BusyError(message) from None
    try:
        (folder / HOLDER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), "utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """The process that holds the lock. It is written just after the lock is taken, so it may be unknown."""
    try:
        holder = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
