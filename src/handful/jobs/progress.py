"""The interface of a long job to its caller: a folder for unfinished work, and progress reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

Report = Callable[[int, int, str], None]
"""Called with (steps done, total steps, a short note such as the loss); at step 0, the note announces the job."""


def silent(step: int, total: int, note: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Run:
    """Options of a job that do not change its result."""

    scratch: Path | None = None
    """Folder for checkpoints, to resume an interrupted job; None for no checkpoints."""
    report: Report = silent
    """Called to report progress."""
    save_every_s: float = 30.0
    """Seconds between two checkpoints."""

    def part(self, name: str) -> Run:
        """The options for one part of a job: it has its own scratch folder, and its name precedes each note."""
        report = self.report
        return replace(
            self,
            scratch=self.scratch and self.scratch / name,
            report=lambda step, total, note: report(step, total, f"{name}: {note}"),
        )
