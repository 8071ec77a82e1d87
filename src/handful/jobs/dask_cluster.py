"""Execution of tasks by the workers of a Dask cluster, one at a time in each worker process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Client, as_completed, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker

from handful.errors import ClusterError, InputError
from handful.jobs.executors import Lost, Result, Task

PROTOCOLS = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
LEAST, AHEAD = 64, 4
"""Tasks that the scheduler has at once: AHEAD per worker, and not less than LEAST."""
CONNECT_S = 10.0
"""Seconds to wait for an answer of the scheduler."""


@dataclass(frozen=True)
class DaskCluster:
    """Executes tasks on a Dask cluster (dask.distributed).

    Each worker process gets `work` once and keeps it for all tasks. Only tasks and results travel over the network,
    so both should be small: paths in, a few words out. The scheduler has a limited number of tasks at once, however
    many there are.

    A task whose worker is killed is executed on another one, up to `distributed.scheduler.allowed-failures` (3) more
    workers. Dask blames every task that such a worker had, even those that had not begun. So each of them is executed
    once more, after all others and alone, and is `Lost` only if its workers are killed again. Raises ClusterError if
    the scheduler cannot be reached, or is lost while tasks are running.
    """

    scheduler: str
    """Address such as tcp://HOST:8786, or path of the scheduler's JSON file."""
    name: str
    """Name of the work on the cluster; it replaces unfinished work of that name."""

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[tuple[Task, Result | Lost], None, None]:
        if not tasks:
            return
        with _connected(self.scheduler) as client:
            name = f"handful {self.name}"
            client.register_plugin(_Work(work), name)
            try:
                yield from self._results(client, name, tasks)
            finally:
                with suppress(Exception):  # a lost scheduler has forgotten it
                    client.unregister_worker_plugin(name)

    def _results(
        self, client: Any, name: str, tasks: Sequence[Task]
    ) -> Generator[tuple[Task, Result | Lost], None, None]:
        waiting, running, suspects = deque(tasks), dict[Any, Task](), deque[Task]()
        run, numbers = uuid4().hex[:12], count()
        finished = as_completed(loop=client.loop)

        def submit(batch: list[Task]) -> None:
            keys = [f"handful-{run}-{next(numbers)}" for _ in batch]
            futures = client.map(_carried_out, [name] * len(batch), batch, key=keys, pure=False)
            running.update(zip(futures, batch, strict=True))
            finished.update(futures)

        def submit_next(number: int) -> None:
            submit([waiting.popleft() for _ in range(min(number, len(waiting)))])

        submit_next(window := _window(client))
        done, alone = 0, False
        for batch in finished.batches():
            for future, result in zip(batch, self._values(client, batch, done, len(tasks)), strict=True):
                task = running.pop(future)
                if isinstance(result, Lost) and not alone:
                    suspects.append(task)
                    continue
                done += 1
                yield task, result
            if waiting and len(running) <= window // 2:
                window = _window(client)
                submit_next(window - len(running))
            elif suspects and not running:
                alone = True
                submit([suspects.popleft()])

    def _values(self, client: Any, futures: Sequence[Any], done: int, count: int) -> list[Any]:
        try:
            return list(client.gather(futures))  # all in one message
        except Exception:
            return [self._value(future, done, count) for future in futures]

    def _value(self, future: Any, done: int, count: int) -> Any:
        try:
            return future.result()
        except KilledWorker as killed:
            ended = killed.allowed_failures + 1
            return Lost(f"its Dask worker was ended {2 * ended} times; if memory ran out, give the workers more")
        except Exception as error:
            if not future.cancelled():
                raise
            raise ClusterError(
                f"the Dask scheduler {self.scheduler} was lost after {done} of {count}; start it and its workers "
                "again, then run the same command"
            ) from error


class _Work(WorkerPlugin):  # type: ignore[misc]
    """The work as each worker process holds it, which carries out one task at a time."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def setup(self, worker: Any) -> None:
        self.alone = threading.Lock()

    def __call__(self, task: object) -> Any:
        with self.alone:
            return self.work(task)


def _carried_out(name: str, task: object) -> Any:
    """The result of a task, in a worker process."""
    return get_worker().plugins[name](task)


def _window(client: Any) -> int:
    return max(LEAST, AHEAD * sum(map(int, client.nthreads().values())))


@contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler."""
    address: dict[str, str] = {"address": scheduler}
    if not scheduler.startswith(PROTOCOLS):
        if not Path(scheduler).is_file():
            raise InputError(
                f"{scheduler} is neither the address of a Dask scheduler, such as tcp://HOST:8786, nor the JSON file "
                "that one has written (dask scheduler --scheduler-file FILE)"
            )
        address = {"scheduler_file": scheduler}
    try:
        client = Client(**address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, KeyError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} within {CONNECT_S:g} s; start one with: dask scheduler"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_S)
