"""A process that may die: it is replaced, and its last trial counts as a death."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

SECONDS = 30
"""A trial hangs after these seconds of processor time, or after WAIT times as many by the clock."""
WAIT = 20
ADDRESS_SPACE = 3 * 2**30
GOOD = ("equal", "refused", "no checksum could tell")

Trial = tuple[str, Callable[[Path], str]]
"""What is damaged, and what reads it in an empty folder: one of GOOD, or a description of the fault."""


def outcomes(what: str, numbers: range, trial: Callable[[int], Trial]) -> Counter[str]:
    """The number of trials by outcome; fails with a line per fault. `trial` is called in another process."""
    counts: Counter[str] = Counter()
    faults = []
    with TemporaryDirectory() as folder:
        for number, described, found in _trials(list(numbers), trial, Path(folder)):
            counts[found if found in GOOD else "fault"] += 1
            counts["in a header"] += described.startswith("header ")
            if found not in GOOD:
                faults.append(f"FUZZ_FROM={number}: {described}: {found}")
    print(f"{what}: {len(numbers)} trials: {dict(counts)}")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
    return counts


def _trials(left: list[int], trial: Callable[[int], Trial], folder: Path) -> Iterator[tuple[int, str, str]]:
    while left:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                _work(left, trial, folder, writing)
            finally:  # without any clean-up of the parent's
                os._exit(1)
        os.close(writing)
        done, described = 0, "before its first trial"
        for line in _lines(reading, pid):
            if line.startswith("\1"):
                yield left[done], described, line[1:]
                done += 1
            else:
                described = line
        os.close(reading)
        status = os.waitpid(pid, 0)[1]
        if done < len(left):
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            yield left[done], described, f"death of the process: {how}"
            done += 1
        left = left[done:]


def _lines(reading: int, pid: int) -> Iterator[str]:
    rest = b""
    while True:
        began, until = _processor_seconds(pid), time.monotonic() + WAIT * SECONDS
        while not select.select([reading], [], [], 1)[0]:
            if _processor_seconds(pid) - began > SECONDS or time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                return
        piece = os.read(reading, 2**16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\0")
        yield from (line.decode("utf-8", "replace") for line in lines)


def _processor_seconds(pid: int) -> float:
    """Processor time of a process so far, so that a busy machine makes no trial hang; without /proc, the clock."""
    try:
        used = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
    except OSError:
        return time.monotonic()
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def _work(numbers: list[int], trial: Callable[[int], Trial], folder: Path, writing: int) -> None:
    """In the child: run the trials, then end the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    _limit_memory()
    for number in numbers:
        described, read = trial(number)
        _send(writing, described.replace("\1", "?"))
        (folder / str(number)).mkdir()
        _send(writing, "\1" + read(folder / str(number)))
        shutil.rmtree(folder / str(number))
    os._exit(0)


def _send(writing: int, line: str) -> None:
    os.write(writing, line.replace("\0", "?").encode("utf-8", "replace") + b"\0")


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
