"""One process at a time in an output folder."""

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
    """Holds `folder`, made where it is missing, for this process; BusyError names the host and pid that holds it.

    The operating system lets go of the lock when its process dies, however it dies, so none is ever stale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        message = f"{folder}: {_holder(folder)} works there; wait until it is done, or name another folder"
        raise BusyError(message) from None
    try:
        (folder / HOLDER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), "utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Who holds the lock; it is written down just after the lock is taken, so it may not be there yet."""
    try:
        holder = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
