"""A Dask cluster writes what one process writes, whichever of its processes is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import small_cohort
from dask_processes import Cluster
from deadly_cases import DeadlyCase, SlowCase
from handful.cohort.case_jobs import CLAIMS, tidying_up
from handful.cohort.predict import CohortResult, PredictConfig, predict_cohort
from handful.data.cases import Case, Cohort
from handful.errors import ClusterError, InputError
from handful.jobs import dask_cluster
from handful.jobs.notes import NOTES

CLIENT = """
import sys
from pathlib import Path
from deadly_cases import SlowCase
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.files import read_cohort
model, cohort, out, gate, scheduler = map(Path, sys.argv[1:])
*quick, slow = read_cohort(cohort).cases
predict_cohort(model, [*quick, SlowCase.of(slow, gate)], out, PredictConfig(scheduler=str(scheduler)))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "dask").mkdir()
    cluster = Cluster(tmp_path / "dask", allowed_failures=0)
    yield cluster
    cluster.close()


@pytest.fixture
def serial(model: Path, cohort: Cohort, tmp_path: Path) -> Path:
    predict_cohort(model, cohort.cases, tmp_path / "serial")
    return tmp_path / "serial"


def wait_for(true: Callable[[], bool], job: Future[CohortResult] | None = None) -> None:
    end = time.monotonic() + 600
    while not true():
        assert job is None or not job.done(), job.result()
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


@contextmanager
def opened_in_the_end(gate: Path) -> Iterator[None]:
    """Nothing waits at the gate for ever, whatever fails."""
    try:
        yield
    finally:
        gate.touch()


def require_same(out: Path, serial: Path) -> None:
    assert small_cohort.files_below(out) == small_cohort.files_below(serial)
    for name in small_cohort.files_below(serial):
        if name != "run.json":
            assert (out / name).read_bytes() == (serial / name).read_bytes(), name


@pytest.mark.process
def test_killed_workers_clients_and_schedulers_lose_nothing(
    model: Path, folder: Path, cohort: Cohort, serial: Path, cluster: Cluster, tmp_path: Path
):
    config = PredictConfig(scheduler=str(cluster.file))
    names, gate = [case.name for case in cohort.cases], tmp_path / "gate"
    *quick, last = cohort.cases

    def predict(cases: list[Case], out: str) -> CohortResult:
        return predict_cohort(model, cases, tmp_path / out, config)

    # a worker: its cases go to another one; the case that kills that one, too, fails, and no other
    workers = [cluster.start_worker() for _ in range(3)]
    (tmp_path / "marks").mkdir()
    found = predict([DeadlyCase.of(last, tmp_path / "marks", deaths=2), *quick], "out")
    wait_for(lambda: sorted(str(worker.poll()) for worker in workers) == ["-9", "-9", "None"])
    assert sorted([*found.done, *found.skipped]) == names[:-1]
    assert "its Dask worker was ended 2 times" in found.failures[0].reason

    # the client: what a worker still does for it is not done twice
    places = [str(place) for place in (model, folder, tmp_path / "out2", gate, cluster.file)]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *places], env=cluster.environment)
    wait_for(gate.with_suffix(".reached").exists)
    client.kill()
    client.wait()
    with ThreadPoolExecutor(1) as thread, opened_in_the_end(gate):
        job = thread.submit(predict, list(cohort.cases), "out2")
        wait_for(lambda: cluster.running() >= len(names), job)
        gate.touch()
        assert set(job.result(600).done) <= {names[-1]}
    require_same(tmp_path / "out2", serial)

    # the scheduler: the command says so, and goes on with the next one
    gate.unlink()
    gate.with_suffix(".reached").unlink()
    with ThreadPoolExecutor(1) as thread, opened_in_the_end(gate):
        job = thread.submit(predict, [*quick, SlowCase.of(last, gate)], "out3")
        wait_for(gate.with_suffix(".reached").exists, job)
        os.kill(cluster.scheduler.pid, signal.SIGKILL)
        gate.touch()
        with pytest.raises(ClusterError, match=r"was lost after \d of 4"):
            job.result(600)
    for worker in workers:
        worker.wait(600)  # it may write until then
    cluster.start_scheduler()
    cluster.start_worker()
    assert set(predict(list(cohort.cases), "out3").skipped) >= set(names[:-1])
    require_same(tmp_path / "out3", serial)
    assert predict(list(cohort.cases), "out").done == (names[-1],)
    require_same(tmp_path / "out", serial)


def test_a_missing_scheduler_is_a_clear_error(
    model: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 0.2)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*start one"):
        predict_cohort(model, cohort.cases, tmp_path, PredictConfig(scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(InputError, match="neither the address of a Dask scheduler"):
        predict_cohort(model, cohort.cases, tmp_path, PredictConfig(scheduler=tmp_path / "none.json"))


def test_claims_of_workers_that_may_still_run_remain(tmp_path: Path):
    claims, tidied = tmp_path / NOTES / CLAIMS, list[str]()
    cases = [Case(name, tmp_path / f"{name}.nii.gz") for name in ("mine", "my other")]

    def remove(out: Path, names: Iterable[str]) -> None:
        tidied.extend(names)

    claims.mkdir(parents=True)
    for name in ("mine", "of an earlier run"):
        (claims / name).touch()
    for stop in (KeyboardInterrupt, ClusterError, SystemExit):
        with pytest.raises(stop), tidying_up(tmp_path, cases, remove):
            raise stop
    assert tidied == []
    assert sorted(path.name for path in claims.iterdir()) == ["mine", "of an earlier run"]
    with tidying_up(tmp_path, cases, remove):
        pass
    assert tidied == ["mine", "my other"]
    assert [path.name for path in claims.iterdir()] == ["of an earlier run"]


def test_what_processes_of_this_machine_left_is_removed_however_the_run_ends(tmp_path: Path):
    tidied = list[str]()
    with (
        pytest.raises(KeyboardInterrupt),
        tidying_up(tmp_path, [Case("mine", tmp_path / "a.nii.gz")], lambda out, names: tidied.extend(names)),
    ):
        raise KeyboardInterrupt
    assert tidied == ["mine"]
