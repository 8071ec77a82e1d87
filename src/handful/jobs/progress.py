"""How a long job talks to whoever started it: where it may keep its half-done work, and whom it tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

Report = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a short note such as the loss); at step 0 the note says what is to come."""


def silent(step: int, total: int, note: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Run:
    """Circumstances of one job, never part of its result."""

    scratch: Path | None = None
    """Folder for checkpoints of half-done work; None keeps nothing, and a killed job starts anew."""
    report: Report = silent
    save_every_s: float = 30.0
    """Seconds between two checkpoints in `scratch`."""

    def part(self, name: str) -> Run:
        """The same for one of several jobs: a scratch folder of its own, its name before each note."""
        report = self.report
        return replace(
            self,
            scratch=self.scratch and self.scratch / name,
            report=lambda step, total, note: report(step, total, f"{name}: {note}"),
        )
