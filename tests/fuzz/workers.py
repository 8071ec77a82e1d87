"""A process that may die: it is replaced, and its last trial counts as a death."""

from __future__ import annotations

import os
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fuzz.judge import outcome
from fuzz.mutations import mutate
from fuzz.originals import Original, originals
from handful.data.formats import read_volume
from handful.data.volume import Volume

SECONDS = 30
"""After these, a trial hangs."""
ADDRESS_SPACE = 3 * 2**30


def trials(numbers: range) -> Iterator[tuple[int, str, str]]:
    """Number, mutation and outcome of each trial."""
    left = list(numbers)
    while left:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                _work(left, writing)
            finally:  # without any clean-up of the parent's
                os._exit(1)
        os.close(writing)
        done = 0
        for number, what, found in _answers(reading, pid):
            done += 1
            yield number, what, found
        os.close(reading)
        status = os.waitpid(pid, 0)[1]
        if done < len(left):
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            yield left[done], describe(left[done]), f"death of the process: {how}"
            done += 1
        left = left[done:]


def describe(number: int) -> str:
    """The file and the mutation of a trial."""
    mutated = mutate(*_chosen(number, originals()))
    return f"{mutated.original.name}: {mutated.what}"


def _chosen(number: int, files: list[Original]) -> tuple[Original, np.random.Generator]:
    rng = np.random.default_rng([27, number])
    return files[number % len(files)], rng


def _answers(reading: int, pid: int) -> Iterator[tuple[int, str, str]]:
    rest = b""
    while True:
        if not select.select([reading], [], [], SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
            return
        piece = os.read(reading, 2**16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\0")
        for line in lines:
            number, what, found = line.decode("utf-8", "replace").split("\1")
            yield int(number), what, found


def _work(numbers: list[int], writing: int) -> None:
    """In the child: run the trials, then end the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    _limit_memory()
    files = originals()
    truths: dict[str, Volume] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in numbers:
            original, rng = _chosen(number, files)
            if original.name not in truths:
                truths[original.name] = _truth(original, folder)
            mutated = mutate(original, rng)
            found = outcome(mutated, truths[original.name], folder)
            line = "\1".join((str(number), f"{original.name}: {mutated.what}", found)).replace("\0", "?")
            os.write(writing, line.encode("utf-8", "replace") + b"\0")
    os._exit(0)


def _truth(original: Original, folder: Path) -> Volume:
    (folder / original.name).write_bytes(original.content)
    if original.beside is not None:
        (folder / original.beside[0]).write_bytes(original.beside[1])
    return read_volume(folder / original.name)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
