"""The process of a job, and how it ends."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handful.backbones.catalog import open_backbone
from handful.cohort.fit import fit_to_folder
from handful.data.cases import Case
from handful.data.files import write_label_map
from handful.methods.nearest_slice import NearestSlice
from handful.service import jobs
from handful.service.jobs import Job, Jobs, Kind
from handful.service.work import CancelledError, Worker
from phantoms import phantom


def carried_out(cohort: Path, kind: Kind) -> Job:
    """A job of this kind, in this process."""
    file = cohort / "job.json"
    Job(number=1, kind=kind, options={}).write(file)
    Worker(cohort, file, "handful-tiny", "cpu").run()
    return Job.read(file)


def test_a_cancelled_job_does_not_go_on_with_the_next_case(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def cancelled(case: Case, *rest: Any) -> None:  # as if the signal arrived while a scan is read
        asked.append(case.name)
        raise CancelledError

    monkeypatch.setattr(Case, "read_image", cancelled)
    job = carried_out(cohort, "suggest")
    assert (job.state, job.error, asked) == ("cancelled", None, ["scan_0"])


def test_segmentations_are_kept_if_none_can_be_estimated(cohort: Path):
    (cohort / "images" / "scan_2.nii.gz").unlink()
    (cohort / "labels").mkdir()
    write_label_map(cohort / "labels" / "scan_0.nii.gz", phantom(0)[1])
    worker = Worker(cohort, written(cohort / "first.json"), "handful-tiny", "cpu")
    fit_to_folder(
        "nearest-slice",
        NearestSlice(),
        worker.workspace.support(),
        open_backbone("handful-tiny", "cpu", None),
        worker.workspace.model,
    )
    job = carried_out(cohort, "segment")
    assert job.result is not None
    assert (job.result["done"], job.result["estimate"] is None) == (1, False)
    (cohort / "images" / "scan_1.nii.gz").write_bytes(b"damaged since")
    job = carried_out(cohort, "segment")
    assert (job.state, job.error) == ("done", None)
    assert job.result is not None
    assert ([one["case"] for one in job.result["failures"]], job.result["estimate"]) == (["scan_1"], None)


def written(file: Path) -> Path:
    Job(number=1, kind="segment", options={}).write(file)
    return file


def test_a_job_that_is_just_starting_is_not_taken_for_interrupted(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    own, states = Jobs(cohort, cohort / "jobs", "handful-tiny", "cpu"), []

    def begun(*command: Any, **options: Any) -> subprocess.Popen[bytes]:
        latest = own.latest()  # as another thread asks for it while the process starts
        states.append(latest and latest.state)
        process = popen([sys.executable, "-c", ""])
        process.wait()
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", begun)
    for _ in range(2):
        own.start("suggest", {})
    assert states == ["running", "running"]
    latest = own.latest()
    assert latest is not None
    assert latest.state == "interrupted"


@pytest.mark.process
def test_a_job_whose_service_ended_while_it_started_does_nothing(cohort: Path):
    file = cohort / "job.json"
    Job(number=1, kind="suggest", options={}).write(file)
    command = [sys.executable, "-m", "handful.service.work", str(cohort), str(file), "handful-tiny", "cpu"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 1
    assert Job.read(file).state == "running"


def test_a_process_that_does_not_heed_the_request_to_end_is_killed(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "GRACE_S", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    own = Jobs(cohort, cohort / "jobs", "handful-tiny", "cpu")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it ignores the signal from now on
        own._process = process
        own.close()
        assert process.poll() is not None
