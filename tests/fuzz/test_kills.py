"""Every command that writes, ended at a random moment and run again: the same files as of an undisturbed run.

A command runs in a fork of this process, which has its imports. It is ended by SIGKILL or SIGTERM when it has used a
random part of the processor time of an undisturbed run. KILLS is their number; `make fuzz` sets a large one.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import handful
import small_cohort
from handful.cli import main

KILLS, FIRST = int(os.environ.get("KILLS", "0")), int(os.environ.get("FUZZ_FROM", "0"))
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
MEASURED = ("fit_s", "predict_s", "peak_mib", "seconds")
"""Keys and columns of times and memory."""
TIMES = {"run.json", "experiment.json", "report.html", "notes.json"}
"""Files that state times or how many cases were done before; that they are there is enough."""
SHORT = ("--set", "train.iterations=6", "--set", "views=1", "--set", "batch=2")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="reads processor times from /proc"),
]


@dataclass(frozen=True)
class Command:
    """A command line; OUT, MODEL, COHORT and others stand for folders."""

    line: str
    again: str = ""
    """What is added when it is run again where it may have ended before."""


COMMANDS = {
    "fit": Command(
        f"fit few-shot-prompts -i COHORT --backbone BACKBONE --no-cache -o OUT/m --save-every 0 {' '.join(SHORT)}"
    ),
    "fit, no training": Command("fit nearest-slice -i COHORT --backbone BACKBONE --no-cache -o OUT/m", "--overwrite"),
    "predict": Command("predict MODEL -i COHORT -o OUT/p"),
    "predict, with all": Command("predict MODEL -i COHORT -o OUT/p --probabilities --preview"),
    "predict, one file": Command("predict MODEL -i COHORT/images/case-2.nii.gz -o OUT/one.nii.gz", "--overwrite"),
    "evaluate": Command(
        "evaluate -p PREDICTIONS -r COHORT -o OUT/e.json --csv OUT/e.csv --summary OUT/s.json "
        "--overlays OUT/pictures -i COHORT"
    ),
    "review": Command("review PREDICTIONS -m MODEL -i COHORT -o OUT/r"),
    "suggest": Command("suggest -i UNLABELLED -o OUT/s --model MODEL --count 2"),
    "embed": Command("embed -i COHORT --backbone BACKBONE --cache OUT/embeddings"),
    "export": Command("export nnunet -i COHORT --cases case-0,case-1 -o OUT/raw --rest", "--overwrite"),
    "import": Command("export nnunet-predictions -p RAW_PREDICTIONS --dataset RAW/Dataset501_handful -o OUT/own"),
    "compare": Command(
        "compare -i COHORT -o OUT/c --methods nearest-slice,zero-shot --shots 1 --splits 1 --cases 1 --workers 1 "
        "--backbone BACKBONE"
    ),
    "experiment": Command("experiment run PLAN -o OUT/x --workers 1"),
    "annotate": Command(
        "annotate BACKBONE -i COHORT/images/case-0.nii.gz --reference COHORT/labels/case-0.nii.gz -o OUT/a.nii.gz "
        "--clicks 1 --slices 1",
        "--overwrite",
    ),
}
PLAN = """
name = "kills"
shots = [1]
splits = [0]
cases = 1
backbone = "{backbone}"

[data]
phantoms.folder = "{cohort}"

[configurations]
nearest = {{ method = "nearest-slice" }}
"""


@dataclass(frozen=True)
class Place:
    """Folders for the commands."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "work" / "out"

    @property
    def temporary(self) -> Path:
        return self.root / "work" / "tmp"

    def arguments(self, line: str) -> list[str]:
        names = {"COHORT": "cohort", "BACKBONE": "backbone", "MODEL": "model", "PREDICTIONS": "predictions"}
        names |= {
            "RAW_PREDICTIONS": "raw-predictions",
            "RAW": "raw",
            "PLAN": "plan.toml",
            "UNLABELLED": "unlabelled",
            "OUT": "work/out",
        }
        words = []
        for word in line.split():
            first, slash, rest = word.partition("/")
            words.append(f"{self.root / names[first]}{slash}{rest}" if first in names else word)
        return words

    def start(self, line: str) -> int:
        """A fork of this process that runs the command; its output is in the file `said`."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            written = os.open(self.root / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(written, 1), os.dup2(written, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            tempfile.tempdir = os.environ["TMPDIR"] = str(self.temporary)
            sys.argv = ["handful", *self.arguments(line)]
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:  # without any clean-up of the parent's
            os._exit(code)

    def fresh(self) -> None:
        shutil.rmtree(self.root / "work", ignore_errors=True)
        self.out.mkdir(parents=True)
        self.temporary.mkdir()

    def run(self, line: str) -> tuple[int, float]:
        """Exit code, and seconds of processor time."""
        _, status, used = os.wait4(self.start(line), 0)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def files(self) -> dict[str, str]:
        """{name: digest} of all files and empty folders that the command left, below its folders and the inputs."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path != self.root / "said":
                found[str(path.relative_to(self.root))] = hashlib.sha256(_without_times(path)).hexdigest()
            elif path.is_dir() and not any(path.iterdir()):
                found[str(path.relative_to(self.root))] = "empty folder"
        return found


def _import_all() -> None:
    """What commands import when they run, so that a fork need not."""
    for module in pkgutil.walk_packages(handful.__path__, "handful."):
        if ".service" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "pyarrow.parquet",
        "scipy.ndimage",
        "rich.table",
    ):
        importlib.import_module(name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    _import_all()
    place = Place(tmp_path_factory.mktemp("kills"))
    small_cohort.write_cohort(place.root / "cohort", cases=3)
    small_cohort.write_backbone(place.root / "backbone")
    shutil.copytree(place.root / "cohort", place.root / "unlabelled")
    for name in ("case-1", "case-2"):
        (place.root / "unlabelled" / "labels" / f"{name}.nii.gz").unlink()
    names = {"cohort": place.root / "cohort", "backbone": place.root / "backbone"}
    (place.root / "plan.toml").write_text(PLAN.format(**names))
    place.fresh()
    for line in (
        "fit nearest-slice -i COHORT --cases case-0,case-1 --backbone BACKBONE --no-cache -o MODEL",
        "predict MODEL -i COHORT -o PREDICTIONS",
        "export nnunet -i COHORT --cases case-0,case-1 -o RAW --rest",
    ):
        assert place.run(line)[0] == 0, (line, (place.root / "said").read_text())
    shutil.copytree(place.root / "raw" / "Dataset501_handful" / "labelsTr", place.root / "raw-predictions")
    return place


def _without_times(path: Path) -> bytes:
    """The content of a file; without measured times and memory, if it states some."""
    if path.name in TIMES or path.suffix == ".parquet":
        return b""
    if path.name == "results.csv":
        rows = csv.DictReader(path.read_text("utf-8").splitlines())
        return repr([{key: value for key, value in row.items() if key not in MEASURED} for row in rows]).encode()
    content = path.read_bytes()
    if path.suffix == ".json":
        content = re.sub(rf'"({"|".join(MEASURED)})": [0-9.]+'.encode(), b"", content)
    return content


@dataclass(frozen=True)
class Undisturbed:
    """A run without any signal."""

    code: int
    seconds: float
    """Of processor time."""
    files: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, Undisturbed]:
    """Each command that was run, by name."""
    return {}


def _undisturbed(name: str, place: Place, known: dict[str, Undisturbed]) -> Undisturbed:
    if name not in known:
        place.fresh()
        code, seconds = place.run(COMMANDS[name].line)
        assert code in (0, 3), (place.root / "said").read_text()
        known[name] = Undisturbed(code, seconds, place.files())
    return known[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_goes_on_to_the_same_files(
    name: str, place: Place, undisturbed: dict[str, Undisturbed]
) -> None:
    stop = (signal.SIGKILL, signal.SIGTERM)[list(COMMANDS).index(name) % 2]
    _kill_and_repeat(name, name, stop, place, undisturbed)


@pytest.mark.skipif(not KILLS, reason="make fuzz sets KILLS")
def test_many_kills(place: Place, undisturbed: dict[str, Undisturbed]) -> None:
    counts: Counter[str] = Counter()
    faults = []
    for number in range(FIRST, FIRST + KILLS):
        name = list(COMMANDS)[number % len(COMMANDS)]
        stop = (signal.SIGKILL, signal.SIGTERM)[number // len(COMMANDS) % 2]
        try:
            counts[_kill_and_repeat(str(number), name, stop, place, undisturbed)] += 1
        except AssertionError as fault:
            counts["fault"] += 1
            faults.append(f"FUZZ_FROM={number} {name}: {str(fault)[:600]}")
    print(f"kills: {dict(counts)}")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def _kill_and_repeat(seed: str, name: str, stop: signal.Signals, place: Place, known: dict[str, Undisturbed]) -> str:
    command, expected = COMMANDS[name], _undisturbed(name, place, known)
    place.fresh()
    code = _ended(place.start(command.line), random.Random(seed).uniform(0, expected.seconds), stop)
    ended_by = -signal.SIGKILL if stop == signal.SIGKILL else 143
    assert code in (ended_by, expected.code), (code, (place.root / "said").read_text())
    again, _ = place.run(f"{command.line} {command.again}")
    assert again == expected.code, (place.root / "said").read_text()
    found = place.files()
    assert found.keys() == expected.files.keys()
    assert [file for file, digest in expected.files.items() if digest != found[file]] == []
    return f"ended by {stop.name}" if code == ended_by else "had ended before"


def _ended(pid: int, seconds: float, stop: signal.Signals) -> int:
    """Exit code of a process that gets a signal when it has used so much processor time."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if _used(pid) >= seconds:
            os.kill(pid, stop)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)


def _used(pid: int) -> float:
    """Seconds of processor time of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
