"""Several processes write what one process writes, also when some of them are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import small_cohort
from deadly_cases import DeadlyCase
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.cases import Cohort
from handful.errors import SettingsError

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def serial(model: Path, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial")
    predict_cohort(model, cohort.cases, out)
    return out


def require_same(out: Path, serial: Path) -> None:
    assert small_cohort.files_below(out) == small_cohort.files_below(serial)
    for name in small_cohort.files_below(serial):
        if name != "run.json":
            assert (out / name).read_bytes() == (serial / name).read_bytes(), name


def test_killed_workers_are_replaced_once_and_the_rest_goes_on(
    model: Path, cohort: Cohort, serial: Path, tmp_path: Path
):
    marks = tmp_path / "marks"
    marks.mkdir()
    first, once, always, last = cohort.cases
    cases = [first, DeadlyCase.of(once, marks, deaths=1), DeadlyCase.of(always, marks, deaths=9), last]
    result = predict_cohort(model, cases, tmp_path / "out", PredictConfig(workers=2))
    assert result.done == (first.name, once.name, last.name)
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["case"] == always.name
    assert "its process was ended by signal 9, twice" in failure["reason"]
    again = predict_cohort(model, cohort.cases, tmp_path / "out", PredictConfig(workers=2))
    assert (again.done, again.skipped) == ((always.name,), result.done)
    require_same(tmp_path / "out", serial)


STOPPED = """
import signal, sys
from pathlib import Path
from deadly_cases import SlowCase
from handful.cli.terminal import raise_terminated, stopped_by_signals
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.files import read_cohort
if __name__ == "__main__":
    model, cohort, out, gate = map(Path, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, raise_terminated)
    *quick, slow = read_cohort(cohort).cases
    cases = [*quick, SlowCase.of(slow, gate)]
    with stopped_by_signals():
        predict_cohort(model, cases, out, PredictConfig(workers=2), lambda *progress: gate.with_suffix(".done").touch())
"""


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_signal_ends_all_workers_and_the_next_run_resumes(
    stop: signal.Signals, code: int, model: Path, folder: Path, cohort: Cohort, serial: Path, tmp_path: Path
):
    script, out, gate = tmp_path / "script.py", tmp_path / "out", tmp_path / "gate"
    script.write_text(STOPPED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(model), str(folder), str(out), str(gate)]
    process = subprocess.Popen(command, env=environment, start_new_session=True, text=True, stderr=subprocess.PIPE)
    small_cohort.wait_until(lambda: all(gate.with_suffix(mark).exists() for mark in (".reached", ".done")), process)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else os.kill(process.pid, stop)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (code, "")
    end = time.monotonic() + 600
    while group_of(process.pid):
        assert time.monotonic() < end, "a process is left over"
        time.sleep(0.05)
    assert not list(out.glob(".*.tmp.*"))
    again = predict_cohort(model, cohort.cases, out)
    assert again.skipped
    assert cohort.cases[-1].name in again.done
    require_same(out, serial)


def group_of(leader: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_workers_and_a_scheduler_exclude_each_other():
    for wrong in ({"workers": 0}, {"workers": 2, "scheduler": "tcp://localhost:8786"}):
        with pytest.raises(SettingsError, match="workers"):
            PredictConfig(**wrong)
