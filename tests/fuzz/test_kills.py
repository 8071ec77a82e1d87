"""Every command that writes, ended at a random moment and run again: the same files as of an undisturbed run.

A command runs in a fork of this process, which has its imports. It is ended by SIGKILL or SIGTERM when it has used a
random part of the processor time of an undisturbed run. KILLS is their number; `make fuzz` sets a large one.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import math
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest

import handful
import small_cohort
from handful.cli import main
from handful.data.cases import Case
from handful.service.workspace import id_of
from phantoms import phantom
from served import Served, painted

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
    "demo": Command(f"demo -o OUT/d --backbone BACKBONE {' '.join(SHORT)}"),
    "pretrain": Command("pretrain -o OUT/b --iterations 3 --side 64 --workers 1 --save-every 0 --preview OUT/p.png"),
}
SERVE = "serve"
"""The name of the trials of the service, which runs until it is ended."""
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


SLICE = (28, 24)
"""Size of a slice of the phantoms."""


def _requests() -> list[tuple[str, object, str]]:
    """Path, content and method of each request: names of labels, masks of slices of two cases, and their acceptance."""
    rng = np.random.default_rng(0)
    requests: list[tuple[str, object, str]] = [("api/labels", {"names": ["ball", "egg"]}, "PUT")]
    for case in (id_of(Case(name, phantom(0)[0])) for name in ("case-0", "case-1")):
        actions = [painted(number, rng.random(SLICE) < 0.5) for number in (1, 3, 1, 4, 2)]
        actions += [{"kind": "accept", "slice": number} for number in (1, 3)]
        requests += [(f"api/cases/{case}/actions", action, "POST") for action in actions]
    return requests


REQUESTS = _requests()


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


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_service_goes_on_to_the_same_files(
    stop: signal.Signals, place: Place, undisturbed: dict[str, Undisturbed]
) -> None:
    _kill_the_service(stop.name, stop, place, undisturbed)


@pytest.mark.skipif(not KILLS, reason="make fuzz sets KILLS")
def test_many_kills(place: Place, undisturbed: dict[str, Undisturbed]) -> None:
    counts: Counter[str] = Counter()
    faults = []
    for number in range(FIRST, FIRST + KILLS):
        names = [*COMMANDS, SERVE]
        name = names[number % len(names)]
        stop = (signal.SIGKILL, signal.SIGTERM)[number // len(names) % 2]
        try:
            if name == SERVE:
                counts[_kill_the_service(str(number), stop, place, undisturbed)] += 1
            else:
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
    ended_by = [-signal.SIGKILL] if stop == signal.SIGKILL else [143, -signal.SIGTERM]  # the last before Python runs
    assert code in (*ended_by, expected.code), (code, (place.root / "said").read_text())
    if place.files() == expected.files:  # it was killed when all was done
        return "had ended before"
    again, _ = place.run(f"{command.line} {command.again}")
    assert again == expected.code, (place.root / "said").read_text()
    found = place.files()
    assert found.keys() == expected.files.keys()
    assert [file for file, digest in expected.files.items() if digest != found[file]] == []
    return f"ended by {stop.name}" if code in ended_by else "had ended before"


def _kill_the_service(seed: str, stop: signal.Signals, place: Place, known: dict[str, Undisturbed]) -> str:
    """End the service at a random moment of some requests; started again, it still has what it answered."""
    if SERVE not in known:
        place.fresh()
        served = Served(_unlabelled(place))
        began = _used(served.process.pid)
        assert _answered(served, 0) == len(REQUESTS)
        seconds = _used(served.process.pid) - began
        served.kill()
        known[SERVE] = Undisturbed(143, seconds, _kept(place))
    expected = known[SERVE]
    place.fresh()
    served = Served(_unlabelled(place))
    moment = _used(served.process.pid) + random.Random(seed).uniform(0, expected.seconds)
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(_answered, served, 0)
        code = _ended(served.process.pid, moment, stop, lambda: answered.done())
        served.process.communicate()
    assert code == (-signal.SIGKILL if stop == signal.SIGKILL else 143)
    served.start()
    done = answered.result()
    _require_known(served, done)
    assert _answered(served, done) == len(REQUESTS)
    served.kill()
    assert _kept(place) == expected.files
    return f"service ended by {stop.name}"


def _unlabelled(place: Place) -> Path:
    cohort = place.root / "work" / "out" / "served"
    shutil.copytree(place.root / "cohort" / "images", cohort / "images")
    return cohort


def _answered(served: Served, first: int) -> int:
    """Send the requests from that one on; the number of the first one without an answer."""
    for number in range(first, len(REQUESTS)):
        path, content, method = REQUESTS[number]
        try:
            served.call(path, content, method)
        except HTTPError:
            raise
        except OSError:
            return number
    return len(REQUESTS)


def _require_known(served: Served, done: int) -> None:
    """Each slice has the mask that was answered last, or one whose answer was lost."""
    masks: dict[tuple[str, int], list[bytes]] = {}
    for number, (path, content, _) in enumerate(REQUESTS[: done + 1]):
        if isinstance(content, dict) and "mask" in content:
            packed = np.frombuffer(base64.b64decode(content["mask"]), np.uint8)
            mask = np.unpackbits(packed, count=math.prod(SLICE)).tobytes()
            place = path.removesuffix("/actions"), content["slice"]
            masks[place] = ([] if number < done else masks.get(place, [bytes(len(mask))])) + [mask]
    for (path, slice_), allowed in masks.items():
        assert served.call(f"{path}/slices/{slice_}/classes") in allowed


def _kept(place: Place) -> dict[str, str]:
    """All files but steps of sessions, of which one may be repeated, embeddings made ahead of time, and the lock."""
    parts = ("/sessions/", "/embeddings/", "/service/lock")
    return {name: digest for name, digest in place.files().items() if not any(part in name for part in parts)}


def _ended(pid: int, seconds: float, stop: signal.Signals, finished: Callable[[], bool] = lambda: False) -> int:
    """Exit code of a process that gets a signal when it has used so much processor time, or when it has finished."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if _used(pid) >= seconds or finished():
            os.kill(pid, stop)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)


def _used(pid: int) -> float:
    """Seconds of processor time of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
