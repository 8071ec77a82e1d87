"""Execution of independent tasks, one after the other in this process or in several processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NoReturn, Protocol, TypeVar, cast, runtime_checkable

import torch

from handful.jobs.allocator import tune_allocator

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task whose process was killed or crashed each time."""

    reason: str
    """How the processes ended, and what may help."""


@runtime_checkable
class Executor(Protocol):
    """Executes tasks that do not depend on each other."""

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[tuple[Task, Result | Lost], None, None]:
        """Yield every task with its result, in the order of completion. Closing the generator ends the work.

        `work`, tasks and results must be picklable, since they may be sent to other processes. Each process has its own
        copy of `work` for all of its tasks, which may keep loaded data. An exception in `work` is raised here and ends
        the run.
        """


@dataclass(frozen=True)
class Serial:
    """Executes tasks one after the other in this process."""

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[tuple[Task, Result | Lost], None, None]:
        for task in tasks:
            yield task, work(task)


@dataclass(frozen=True)
class Processes:
    """Executes tasks in several processes that share the CPU cores.

    If a process is killed or crashes, its task is executed once more, after all others, in a new process. If that one
    ends, too, the result is `Lost`, and the other tasks continue.

    With `forked`, one process prepares the work and the others are forks of it, which share its memory and start at
    once. Otherwise, and where the system is not Linux, each is started with the method "spawn" of `multiprocessing`.
    Either way, a script that uses this needs the guard `if __name__ == "__main__"`, and all processes have ended when
    the run ends.
    """

    count: int
    """Maximum number of processes; no more are started than there are tasks."""
    forked: bool = False
    """Whether the processes are forks of one; not for work on a GPU."""

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[tuple[Task, Result | Lost], None, None]:
        waiting = deque((task, False) for task in tasks)
        if not waiting:
            return
        count = min(self.count, len(waiting))
        threads = _threads(count)
        busy: dict[Connection, tuple[_Worker, Task, bool]] = {}
        origin = _Origin(work) if self.forked and sys.platform == "linux" else None
        spawned: list[_Spawned] = []

        def give_next(worker: _Worker) -> None:
            task, again = waiting.popleft()
            busy[worker.connection] = (worker, task, again)
            worker.give(task)

        def start() -> _Worker:
            nonlocal origin
            if origin is None:
                spawned.append(_Spawned(work, threads))
                return spawned[-1]
            try:
                return _Forked(origin, threads)
            except _OriginEnded:
                origin = _Origin(work)
                return _Forked(origin, threads)

        try:
            for _ in range(count):
                give_next(start())
            while busy:
                for ready in cast(list[Connection], wait(list(busy))):
                    worker, task, again = busy.pop(ready)
                    result = worker.result()
                    repeated = isinstance(result, Lost) and not again
                    if repeated:
                        waiting.append((task, True))
                    if waiting:
                        give_next(start() if isinstance(result, Lost) else worker)
                    else:
                        worker.dismiss()
                    if not repeated:
                        yield task, result
        finally:
            for worker, _, _ in busy.values():
                worker.kill()
            for each in spawned:
                each.end()
            if origin is not None:
                origin.close()


@runtime_checkable
class Preparing(Protocol):
    """Work that can load what all tasks need before the first one."""

    def prepare(self) -> None:
        """Load it on the CPU; called once, with one thread."""


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(processes: int) -> int:
    """Threads of each of so many processes, which share the cores, or OMP_NUM_THREADS if that is fewer."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    shared = min(cores(), int(limit)) if limit.isdecimal() and int(limit) else cores()
    return max(1, shared // processes)


class _Worker(ABC):
    """A process that executes one task after the other."""

    connection: Connection

    def give(self, task: object) -> None:
        """Send a task. If the process has ended, `result` will report it."""
        with suppress(OSError):
            self.connection.send(task)

    def result(self) -> Any:
        """The result of the task, or Lost if the process has ended. Raises the exception of `work`, if any."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self.connection.close()
            code = self._exit_code()
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            return Lost(f"its process was ended {how}, twice; if memory ran out, use fewer workers")
        if error is not None:
            self.dismiss()
            raise error
        return result

    def dismiss(self) -> None:
        """Let the process end."""
        self.connection.close()

    def kill(self) -> None:
        """End the process at once."""
        self._terminate()
        self._exit_code()
        self.connection.close()

    @abstractmethod
    def _terminate(self) -> None: ...

    @abstractmethod
    def _exit_code(self) -> int:
        """Wait for the end of the process."""


class _Spawned(_Worker):
    """A process with its own copy of everything."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        self.connection, self._process = _started(_serve, work, threads)

    def end(self) -> None:
        """Let the process end, and wait for it, since it holds its memory until then."""
        self.dismiss()
        self._exit_code()

    def _terminate(self) -> None:
        self._process.terminate()

    def _exit_code(self) -> int:
        self._process.join()
        return self._process.exitcode or 0


class _Forked(_Worker):
    """A fork of the process that prepared the work."""

    def __init__(self, origin: _Origin, threads: int) -> None:
        self._origin = origin
        self.connection, theirs = Pipe()
        self._pid = origin.fork(theirs, threads)
        theirs.close()

    def _terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)

    def _exit_code(self) -> int:
        return self._origin.exit_code(self._pid)


class _OriginEnded(RuntimeError):
    """The process that prepared the work was killed or crashed."""


class _Origin:
    """A process that prepares the work and is then forked; it does no task, and has no threads."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._connection, self._process = _started(_fork_on_request, work)

    def fork(self, connection: Connection, threads: int) -> int:
        """The process id of a new fork, which serves this connection."""
        try:
            self._connection.send(("fork", threads))
            send_handle(self._connection, connection.fileno(), self._process.pid)
            return int(self._connection.recv())
        except (EOFError, OSError) as error:
            self.close()
            raise _OriginEnded(
                f"the process from which workers are started ended with code {self._process.exitcode}; if memory ran "
                "out, use fewer workers. What is done is kept: run the same command again"
            ) from error

    def exit_code(self, pid: int) -> int:
        """Wait for the end of a fork."""
        try:
            self._connection.send(("wait", pid))
            return int(self._connection.recv())
        except (EOFError, OSError):  # as if it was killed like its origin
            return -signal.SIGKILL

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _started(target: Callable[..., None], *arguments: object) -> tuple[Connection, BaseProcess]:
    """A new process that runs `target`, and the connection to it."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with _without_ctrl_c():
        process.start()
    theirs.close()
    return mine, process


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back from this thread, and from processes that it starts, for as long as they run.

    The parent handles it and ends its workers; it must not reach one that is just starting.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process at once when its parent has ended, however that was."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _fork_on_request(connection: Connection, work: Callable[[Any], Any]) -> None:
    """The main loop of an origin, until its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tune_allocator()
    torch.set_num_threads(1)  # OpenMP's threads would not survive a fork
    if isinstance(work, Preparing):
        with suppress(Exception):  # a task that needs it reports the error
            work.prepare()
    with suppress(EOFError, OSError):
        while True:
            request, number = connection.recv()
            if request == "fork":
                handle = recv_handle(connection)
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    _serve_and_end(Connection(handle), work, number)
                os.close(handle)
                connection.send(pid)
            else:
                connection.send(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
    with suppress(ChildProcessError):
        while True:
            os.wait()  # those that were dismissed


def _serve_and_end(connection: Connection, work: Callable[[Any], Any], threads: int) -> NoReturn:
    code = 1
    try:
        _serve(connection, work, threads)
        code = 0
    finally:
        os._exit(code)


def _serve(connection: Connection, work: Callable[[Any], Any], threads: int) -> None:
    """The main loop of a worker process, until its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held back
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
