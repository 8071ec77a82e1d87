"""Cases that kill or stop the process that reads them; other processes must be able to import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path

from handful.data.cases import Case
from handful.data.volume import Volume


@dataclass(frozen=True, kw_only=True)
class DeadlyCase(Case):
    """Kills the process that reads it, so many times."""

    marks: Path
    """Folder with one file per death."""
    deaths: int

    @classmethod
    def of(cls, case: Case, marks: Path, deaths: int) -> DeadlyCase:
        return cls(**{field.name: getattr(case, field.name) for field in fields(Case)}, marks=marks, deaths=deaths)

    def read_image_and_digest(self) -> tuple[Volume, str]:
        for number in range(self.deaths):
            mark = self.marks / f"{self.name} {number}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read_image_and_digest()


@dataclass(frozen=True, kw_only=True)
class SlowCase(Case):
    """Is read when a file exists."""

    gate: Path
    """`gate`.reached exists when a process waits for it."""

    @classmethod
    def of(cls, case: Case, gate: Path) -> SlowCase:
        return cls(**{field.name: getattr(case, field.name) for field in fields(Case)}, gate=gate)

    def read_image_and_digest(self) -> tuple[Volume, str]:
        self.gate.with_suffix(".reached").touch()
        while not self.gate.exists():
            time.sleep(0.01)
        return super().read_image_and_digest()
