"""A cohort folder of phantoms, a backbone folder, and the `handful` command as a process, for tests of the doors."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from typer.testing import Result

import tiny_models
from handful.data.files import write_label_map, write_volume
from phantoms import LABELS, phantom

FEW_SHOT = ("--set", "train.iterations=40", "--set", "views=1", "--set", "batch=2")
"""Short enough for a test, long enough to be stopped half-way."""

Handful = Callable[..., Result]
"""The command line in this process."""


def write_cohort(folder: Path, cases: int = 4) -> Path:
    """images/, labels/ and dataset.json; case-0, case-1, ..."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in range(cases):
        image, reference = phantom(seed)
        write_volume(folder / "images" / f"case-{seed}.nii.gz", image)
        write_label_map(folder / "labels" / f"case-{seed}.nii.gz", reference)
    labels = {str(value): name for value, name in LABELS.as_dict().items()}
    (folder / "dataset.json").write_text(json.dumps({"name": "phantoms", "labels": {"0": "background"} | labels}))
    return folder


def write_backbone(folder: Path) -> Path:
    """A tiny random SAM, saved as transformers saves it."""
    tiny_models.tiny_sam(side=64).model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Gate:
    """Where a process waits before it reads the scan of a case, until it is let through."""

    case: str
    folder: Path

    @property
    def code(self) -> str:
        return GATE.format(case=self.case, reached=str(self.folder / "reached"), opened=str(self.folder / "open"))

    def is_reached(self) -> bool:
        return (self.folder / "reached").exists()

    def open(self) -> None:
        (self.folder / "open").touch()


GATE = """
import time
from pathlib import Path
from handful.data.cases import Case
read = Case.read_image_and_digest
def gated(case):
    if case.name == {case!r}:
        Path({reached!r}).touch()
        while not Path({opened!r}).exists():
            time.sleep(0.01)
    return read(case)
Case.read_image_and_digest = gated
"""
NEVER_SAVED = """
import time
import handful.cohort.fit as fitting
fitting.save = lambda *given, **options: time.sleep(600)
"""
"""A fit goes on until it is stopped, so that no stop comes too late, however slow the one is that sends it."""


def start(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
    """`handful` with these arguments, after some code, as a process of its own that heeds Ctrl-C even under nohup."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + before
    code += "import torch; torch.set_num_threads(1)\nfrom handful.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 600.0) -> None:
    """Returns as soon as it is true; fails when the process has ended before."""
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"it never came to that: {process.communicate()}")
        time.sleep(0.002)


def files_below(folder: Path) -> list[str]:
    """Relative names of all files, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
