"""How figures are taken: variants interleaved in one process, core-seconds beside wall time, ratios round by round.

Wall time depends on what else the machine does; core-seconds (user and system time of all threads) far less, and ratios
of neighbours in one round least of all. So ratios are of core-seconds, and every figure is a median with its range.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

HERE = Path(__file__).parent
WIDTH = 160
"""Columns of text where the output goes to a file."""


@dataclass(frozen=True)
class Spread:
    """Median and range of one figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} [{short(self.low)}..{short(self.high)}]"


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Table:
    """What one part found, a row a variant."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title


@dataclass(frozen=True)
class Check:
    """Something that must hold however busy the machine is."""

    what: str
    holds: bool


@dataclass(frozen=True)
class Section:
    """Everything one part has to say."""

    tables: tuple[Table, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant, a figure a round."""

    wall: tuple[float, ...]
    core: tuple[float, ...]

    def per(self, things: int) -> tuple[Spread, Spread]:
        """Core-seconds and wall seconds for each of so many things done in a round."""
        return Spread.of([s / things for s in self.core]), Spread.of([s / things for s in self.wall])

    def over(self, other: Timing) -> Spread:
        """How many times the core-seconds of `other` this took."""
        return Spread.of([mine / its for mine, its in zip(self.core, other.core, strict=True)])


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Times each variant once a round, after one call of each that does not count."""
    for call in variants.values():
        call()
    wall: dict[str, list[float]] = {name: [] for name in variants}
    core: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            core_began, wall_began = time.process_time(), time.perf_counter()
            call()
            wall[name].append(time.perf_counter() - wall_began)
            core[name].append(time.process_time() - core_began)
    return {name: Timing(tuple(wall[name]), tuple(core[name])) for name in variants}


def child(script: str, *arguments: str) -> dict[str, float | str]:
    """What a script of this folder prints, as JSON, when it runs in a process of its own."""
    command = [sys.executable, str(HERE / script), *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float | str] = json.loads(answer.stdout.splitlines()[-1])
    return found


def peak_mib() -> float:
    """The most memory this process has held so far.

    From the kernel's own account where there is one: on Linux ru_maxrss starts at what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show(name: str, section: Section) -> int:
    """Print a section; the number of its checks that failed."""
    out = console()
    out.rule(name)
    for table in section.tables:
        shown = RichTable(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*[short(cell) if isinstance(cell, float) else str(cell) for cell in row])
        out.print(shown)
    for note in section.notes:
        out.print(note)
    for check in section.checks:
        out.print(f"[green]holds[/]  {check.what}" if check.holds else f"[red]FAILS[/]  {check.what}")
    return sum(not check.holds for check in section.checks)
