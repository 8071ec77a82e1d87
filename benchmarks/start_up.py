"""How long one waits for help, `import handful` and the start of a prediction, beside a Python that does nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from measure import Cell, Check, Section, Spread, Table

TIMES = 5
MOST_CORE_S = 1.0
PREDICTS = "what handful predict imports"


def measure(rounds: int) -> Section:
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import handful": [sys.executable, "-c", "import handful"],
        "handful --help": [str(Path(sys.executable).parent / "handful"), "--help"],
        "handful fit --help": [str(Path(sys.executable).parent / "handful"), "fit", "--help"],
        PREDICTS: [sys.executable, "-c", "import handful.cohort.predict"],
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(TIMES + 1):
        for name, command in commands.items():
            sample = _run(command)
            if turn:  # the first turn warms the disk's cache
                samples[name].append(sample)
    rows: list[tuple[Cell, ...]] = []
    for name, taken in samples.items():
        core, wall = zip(*taken, strict=True)
        rows.append((name, Spread.of(core), Spread.of(wall)))
    slowest = max(Spread.of([core for core, _ in taken]).median for name, taken in samples.items() if name != PREDICTS)
    return Section(
        (Table(f"Start-up, median of {TIMES}", ("command", "core-s", "wall s"), tuple(rows)),),
        (Check(f"help and import take at most {MOST_CORE_S:g} core-s ({slowest:.2f})", slowest <= MOST_CORE_S),),
    )


def _run(command: list[str]) -> tuple[float, float]:
    """Core-seconds and wall seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall
