"""Work for the tests of executors, which other processes must be able to import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

KILL, EXIT, RAISE, UNPICKLABLE, SLEEP = "kill", "exit", "raise", "unpicklable", "sleep"
KILL_ONCE = "kill once: "
"""Before a path: the worker dies unless that file exists, which it creates."""


class Work:
    """Numbers its tasks, and says in which process and with how many threads they were done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, task: str) -> object:
        self.done += 1
        if task == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif task.startswith(KILL_ONCE) and not (mark := Path(task.removeprefix(KILL_ONCE))).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif task == EXIT:
            os._exit(3)
        elif task == RAISE:
            raise ValueError("no such task")
        elif task == UNPICKLABLE:
            return lambda: None
        elif task == SLEEP:
            time.sleep(600)
        return task, self.done, os.getpid(), torch.get_num_threads()


class PreparedWork(Work):
    """Its result is the process that prepared it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.origin = folder, ""

    def prepare(self) -> None:
        self.origin = str(os.getpid())
        (self.folder / "prepared").write_text(self.origin)

    def __call__(self, task: str) -> object:
        return self.origin if super().__call__(task) else None
