"""Where tasks are carried out: one after another in this process, or in several processes at a time."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar, cast

import torch

from handful.jobs.allocator import tune_allocator

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """Takes the place of a result when the process that worked on the task died."""

    how: str
    """How it ended, such as "by signal 9" or "with code 1"."""


class Executor(Protocol):
    """Carries out tasks that do not depend on each other."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | Lost]]:
        """Every task with its result, in the order in which they are done.

        `work`, tasks and results must be picklable, since they may go to other processes. Each process has its own copy
        of `work` for all of its tasks, so an object may keep there what it has loaded. An exception in `work` is raised
        here and ends the run.
        """


@dataclass(frozen=True)
class Serial:
    """One task after another in this process."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | Lost]]:
        for task in tasks:
            yield task, work(task)


@dataclass(frozen=True)
class Processes:
    """Several processes that share the CPU cores; one that dies takes only its task with it.

    They are started as `multiprocessing` does by "spawn": a script must guard its entry by `if __name__ == "__main__"`.
    """

    count: int
    """At most; no more than there are tasks are started."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | Lost]]:
        waiting = deque(tasks)
        count = min(self.count, len(waiting))
        busy: dict[Connection, tuple[_Worker, Task]] = {}

        def give_next(worker: _Worker) -> None:
            task = waiting.popleft()
            busy[worker.connection] = (worker, task)
            worker.give(task)

        def start() -> _Worker:
            return _Worker(work, max(1, cores() // count))

        try:
            for _ in range(count):
                give_next(start())
            while busy:
                for ready in cast(list[Connection], wait(list(busy))):
                    worker, task = busy.pop(ready)
                    result = worker.result()
                    if waiting:
                        give_next(start() if isinstance(result, Lost) else worker)
                    else:
                        worker.dismiss()
                    yield task, result
        finally:
            for worker, _ in busy.values():
                worker.kill()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that does one task after another."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, task: object) -> None:
        """Sends a task; whether the process is still alive shows when its result is due."""
        with suppress(OSError):
            self.connection.send(task)

    def result(self) -> Any:
        """The result of the task; Lost where the process died, an exception where `work` raised it."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self.connection.close()
            code = self._process.exitcode or 0
            return Lost(f"by signal {-code}" if code < 0 else f"with code {code}")
        if error is not None:
            self.dismiss()
            raise error
        return result

    def dismiss(self) -> None:
        """Lets the process end."""
        self.connection.close()

    def kill(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any], threads: int) -> None:
    """What a worker does until its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    tune_allocator()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                connection.send((work(task), None))
            except Exception as error:
                connection.send((None, error))
