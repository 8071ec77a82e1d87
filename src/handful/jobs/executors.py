"""Execution of independent tasks, one after the other in this process or in several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar, cast

import torch

from handful.jobs.allocator import tune_allocator

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task whose process was killed or crashed."""

    how: str
    """How the process ended, such as "by signal 9" or "with code 1"."""


class Executor(Protocol):
    """Executes tasks that do not depend on each other."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | Lost]]:
        """Yield every task with its result, in the order of completion.

        `work`, tasks and results must be picklable, since they may be sent to other processes. Each process has its own
        copy of `work` for all of its tasks, which may keep loaded data. An exception in `work` is raised here and ends
        the run.
        """


@dataclass(frozen=True)
class Serial:
    """Executes tasks one after the other in this process."""

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | Lost]]:
        for task in tasks:
            yield task, work(task)


@dataclass(frozen=True)
class Processes:
    """Executes tasks in several processes that share the CPU cores. If one is killed, only its task is lost.

    Processes are started with the method "spawn" of `multiprocessing`, so a script that uses this needs the guard
    `if __name__ == "__main__"`.
    """

    count: int
    """Maximum number of processes; no more are started than there are tasks."""

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
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that executes one task after the other."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, task: object) -> None:
        """Send a task. If the process has ended, `result` will report it."""
        with suppress(OSError):
            self.connection.send(task)

    def result(self) -> Any:
        """The result of the task, or Lost if the process has ended. Raises the exception of `work`, if any."""
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
        """Let the process end."""
        self.connection.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _end_with_parent() -> None:
    """End this process at once when its parent has ended, however that was."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(connection: Connection, work: Callable[[Any], Any], threads: int) -> None:
    """The main loop of a worker process, until its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tune_allocator()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                connection.send((work(task), None))
            except Exception as error:
                connection.send((None, error))
