"""Scans with several sequences on the page: the first is displayed, all are used, and labels lie on the grid."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient

from handful.data.files import read_cohort, write_volume
from handful.data.volume import Volume
from phantoms import SHAPE, sequence_phantom
from service.conftest import clients


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """One scan of two sequences in two files."""
    folder = tmp_path / "cohort"
    (folder / "images").mkdir(parents=True)
    image, _ = sequence_phantom(0)
    for number, channel in enumerate(image.array):
        write_volume(folder / "images" / f"scan_{number:04d}.nii.gz", Volume(channel[None], image.geometry))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    return folder


@pytest.fixture
def client(cohort: Path) -> Iterator[TestClient]:
    yield from clients(cohort)


def test_the_first_sequence_is_displayed_and_a_finished_slice_is_a_label(client: TestClient, cohort: Path) -> None:
    assert client.put("/api/labels", json={"names": ["ball"]}).status_code == 200
    (case,) = [str(case["id"]) for case in client.get("/api/state").json()["cases"]]
    details = client.get(f"/api/cases/{case}").json()
    first = sequence_phantom(0)[0].array[0]
    assert details["channels"] == 1
    assert details["range"] == pytest.approx([first.min(), first.max()])
    assert len(np.frombuffer(client.get(f"/api/cases/{case}/slices/2").content, "<u2")) == np.prod(details["size"])
    assert client.get(f"/api/cases/{case}/thumbnail.png").status_code == 200
    box = {"kind": "box", "slice": 2, "label": 1, "box": [4, 4, 12, 12]}
    assert client.post(f"/api/cases/{case}/actions", json=box).status_code == 200, box
    assert client.post(f"/api/cases/{case}/actions", json={"kind": "accept", "slice": 2}).status_code == 200
    assert nib.load(cohort / "labels" / "scan.nii.gz").shape == SHAPE
    read = read_cohort(cohort)
    assert [one.name for one in read.cases] == ["scan"]
    assert read.cases[0].read_image().sequences == ("T1", "FLAIR")
    assert not read.left_out


def test_sequences_are_added_one_after_the_other(client: TestClient, cohort: Path, tmp_path: Path) -> None:
    image, _ = sequence_phantom(1)
    answers = []
    for number, channel in enumerate(image.array):
        file = tmp_path / f"other_{number:04d}.nii.gz"
        write_volume(file, Volume(channel[None], image.geometry))
        answers.append(client.post("/api/cases", files={"file": (file.name, file.read_bytes())}))
    assert answers[0].status_code == 400
    assert "other_0000.nii.gz was added, but is no case yet: the sequence other_0001" in answers[0].json()["error"]
    assert answers[1].status_code == 200, answers[1].text
    assert answers[1].json()["id"] in [case["id"] for case in client.get("/api/state").json()["cases"]]
    assert [one.name for one in read_cohort(cohort).cases] == ["other", "scan"]
