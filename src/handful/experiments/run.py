"""An experiment carried out: its cells spread over processes, each kept as soon as it is done."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock, Timeout

from handful.allocator import tune_allocator
from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.errors import BusyError, HandfulError, SettingsError
from handful.evaluation.results import Result
from handful.experiments.measure import Fingerprints, measure
from handful.experiments.plan import Cell, Plan, cells
from handful.experiments.store import ExperimentStatus, adopt, experiment_status, is_done, write_manifest, write_outcome

MOST_PROCESSES = 8
"""Unless more are asked for: each holds a backbone and a scan."""


def run_experiment(
    plan: Plan,
    out: Path,
    processes: int | None = None,
    device: str = "cpu",
    command: str = "",
    known: Sequence[Result] = (),
    cache: Path | None = None,
    report: Callable[[int, int, str], None] = lambda step, total, note: None,
) -> ExperimentStatus:
    """Measures what is missing in `out`, and says what is there then.

    A cell is a small file, written whole when it is known: a killed run loses no more than the cells it was at, and the
    same call goes on from there. A cell whose method, weights, scans or labels changed is measured anew, one that
    failed is tried again. `processes` share the cores of a CPU, as many as there are unless told otherwise; with one,
    all happens in this process. `command` is noted for the report. Fits that `known` holds, the table of an earlier run
    as `read_results` gives it, are taken over, without pictures. With a `cache`, a folder of kept embeddings, arms that
    see the same slices encode them once; rounding then moves scores a little, and times are no longer those of a fit by
    itself. Raises BusyError while another run works in `out`.
    """
    with _alone_in(out):
        every, left_out = cells(plan)
        if not every:
            raise SettingsError(f"plan {plan.name!r} has nothing to measure: {'; '.join(left_out)}")
        digests = {name: load_backbone(name).digest() for name in dict.fromkeys(cell.backbone for cell in every)}
        fingerprints = Fingerprints()
        tasks = [_Task(out, fingerprints.of(cell, digests[cell.backbone]), cell, cache) for cell in every]
        wanted = {task.digest for task in tasks}
        adopt(out, (result for result in known if result.cell in wanted))
        write_manifest(out, plan, [(task.cell, task.digest) for task in tasks], left_out, command)
        todo = [task for task in {task.digest: task for task in tasks}.values() if not is_done(out, task.digest)]
        if todo:
            report(0, len(todo), f"{len(todo)} of {len(tasks)} fits to do")
        for number, (task, failure) in enumerate(_outcomes(todo, processes or _usual(device), device), start=1):
            report(number, len(todo), f"{task.cell.name}{': ' + failure if failure else ''}")
        return experiment_status(out)


@dataclass(frozen=True)
class _Task:
    out: Path
    digest: str
    cell: Cell
    cache: Path | None


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BusyError(f"{out}: another run works there; wait until it is done, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def _usual(device: str) -> int:
    return min(_cores(), MOST_PROCESSES) if device == "cpu" else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(tasks: Sequence[_Task], processes: int, device: str) -> Iterator[tuple[_Task, str]]:
    """Each task as it ends, with the reason where it failed."""
    if processes > 1 and len(tasks) > 1:
        yield from _spread(tasks, min(processes, len(tasks)), device)
        return
    backbones: dict[str, Backbone] = {}
    for task in tasks:
        yield task, _carry_out(task, backbones, device)


def _carry_out(task: _Task, backbones: dict[str, Backbone], device: str) -> str:
    """Measures and keeps a cell; the reason where that failed, which is kept, too, so that the others go on."""
    name = task.cell.backbone
    try:
        if name not in backbones:
            plain = load_backbone(name).to(device)
            backbones[name] = cached(plain, task.cache) if task.cache else plain
        outcome = measure(task.cell, backbones[name])
    except Exception as error:  # whatever it is, it is this cell's
        reason = str(error) if isinstance(error, HandfulError) else f"{type(error).__name__}: {error}"
        write_outcome(task.out, task.digest, {"failure": reason})
        return reason
    write_outcome(task.out, task.digest, outcome)
    return ""


def _spread(tasks: Sequence[_Task], processes: int, device: str) -> Iterator[tuple[_Task, str]]:
    """Over processes that each do one task after the other; one that dies takes only its task with it."""
    threads = max(1, _cores() // processes)
    waiting = deque(tasks)
    busy: dict[Connection, tuple[BaseProcess, _Task]] = {}
    try:
        for _ in range(processes):
            _give(waiting.popleft(), *_start(threads, device), busy)
        while busy:
            for ready in cast(list[Connection], wait(list(busy))):
                process, task = busy.pop(ready)
                try:
                    failure: str = ready.recv()
                except (EOFError, OSError):
                    failure = _buried(process, task)
                    process, ready = _start(threads, device) if waiting else (process, ready)
                if waiting:
                    _give(waiting.popleft(), process, ready, busy)
                else:
                    ready.close()  # tells it to end
                yield task, failure
    finally:
        for connection, (process, _) in busy.items():
            process.terminate()
            process.join()
            connection.close()


def _give(
    task: _Task, process: BaseProcess, connection: Connection, busy: dict[Connection, tuple[BaseProcess, _Task]]
) -> None:
    """The task is the process's now; whether that still lives is seen when its answer is due."""
    with suppress(OSError):
        connection.send(task)
    busy[connection] = (process, task)


def _start(threads: int, device: str) -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads, device), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _buried(process: BaseProcess, task: _Task) -> str:
    """What is noted of a task whose process ended under it."""
    process.join()
    code = process.exitcode or 0
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    reason = f"its process was ended {how}; where memory ran out, take fewer --processes"
    write_outcome(task.out, task.digest, {"failure": reason})
    return reason


def _work(connection: Connection, threads: int, device: str) -> None:
    """What each process does, until nobody is left to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    tune_allocator()
    torch.set_num_threads(threads)
    backbones: dict[str, Backbone] = {}
    while True:
        try:
            task: _Task = connection.recv()
            connection.send(_carry_out(task, backbones, device))
        except (EOFError, OSError):
            return
