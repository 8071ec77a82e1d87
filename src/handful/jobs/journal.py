"""What each step of a long job found, kept on disk, so that a job that resumes knows it of the steps before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handful.jobs.atomic import write_atomically


class Journal:
    """JSON values, one line per step. A line that was cut off when the process was killed counts as not written."""

    def __init__(self, path: Path | None) -> None:
        """`path` is None for a job that does not resume: nothing is kept then."""
        self.path = path

    def write(self, step: int, value: Any) -> None:
        """Add the value of a step; step 0 begins the file."""
        if self.path is None:
            return
        if step == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def read(self, steps: int) -> list[Any]:
        """The values of the first steps. Lines of later steps are removed, because those steps are repeated."""
        if self.path is None or not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1][:steps]
        write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())
        return [json.loads(line) for line in lines]
