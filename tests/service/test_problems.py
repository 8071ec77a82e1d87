"""What went wrong in a job stays on the page until it is resolved or dismissed, whatever jobs follow."""

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from handful.data.files import write_label_map
from handful.service.jobs import Job
from phantoms import phantom


def ended(cohort: Path, number: int, kind: Any, **facts: Any) -> None:
    file = cohort / ".handful" / "service" / "jobs" / f"job-{number:06d}.json"
    Job(number=number, kind=kind, options={}, **{"state": "done", "ended": 1.0, **facts}).write(file)


def problems(client: TestClient) -> list[dict[str, Any]]:
    return list(client.get("/api/state").json()["problems"])


FAILED = {"failures": [{"case": f"scan_{number}", "reason": "too large"} for number in (0, 1)], "estimate": None}
LEARNED = {"dice_left_out": {}, "slices": 3}


def test_failures_stay_after_other_jobs_until_they_are_dismissed(client: TestClient, cohort: Path):
    ended(cohort, 1, "segment", result=FAILED)
    ended(cohort, 2, "learn", result=LEARNED)
    ended(cohort, 3, "segment", state="cancelled")
    (one,) = problems(client)
    assert (one["job"], one["kind"], one["failures"]) == (1, "segment", FAILED["failures"])
    assert client.post("/api/jobs/1/dismiss").status_code == 200
    assert problems(client) == []
    assert client.post("/api/jobs/9/dismiss").status_code == 400
    ended(cohort, 4, "segment", result=FAILED)
    ended(cohort, 5, "learn", state="running", pid=1, started=9e9)
    assert client.post("/api/jobs/5/dismiss").status_code == 400
    assert [one["job"] for one in problems(client)] == [4]


def test_failures_are_resolved_by_labels_or_by_a_job_without_them(client: TestClient, cohort: Path):
    ended(cohort, 1, "segment", result=FAILED)
    (cohort / "labels").mkdir()
    write_label_map(cohort / "labels" / "scan_0.nii.gz", phantom(0)[1])
    assert [one["case"] for one in problems(client)[0]["failures"]] == ["scan_1"]
    (cohort / "images" / "scan_1.nii.gz").unlink()
    assert problems(client) == []
    ended(cohort, 2, "learn", state="failed", error="no labelled slice")
    ended(cohort, 3, "suggest", result={"suggestions": []})
    assert [(one["kind"], one["error"]) for one in problems(client)] == [("learn", "no labelled slice")]
    ended(cohort, 4, "learn", result=LEARNED | {"failures": [{"case": "scan_0", "reason": "damaged"}]})
    assert [one["case"] for one in problems(client)[0]["failures"]] == ["scan_0"]  # labelled, and not learned from
    ended(cohort, 5, "learn", result=LEARNED)
    assert problems(client) == []
