"""What the page exports: label maps, DICOM segmentations of DICOM series, and the reasons for what is left out."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import dicom_series
from handful.data.cases import Case
from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.service import export
from handful.service.app import ServiceConfig, create_app
from handful.service.security import Access
from handful.service.workspace import Workspace

LABELS = Labels.of({1: "liver", 2: "spleen"})


def scan() -> Volume:
    """An oblique scan whose slices lie along k."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([1.1, 0.9, 4.0])
    affine[:3, 3] = [-12, 31, 7.5]
    array = np.random.default_rng(0).integers(0, 900, (1, 20, 24, 5)).astype(np.float32)
    return Volume(array, Geometry((20, 24, 5), affine))


def exported(client: TestClient, form: str) -> zipfile.ZipFile:
    answer = client.get(f"/api/export/{form}")
    assert answer.status_code == 200, answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


def test_a_dicom_series_gets_a_dicom_segmentation_and_other_scans_a_reason(cohort: Path, tmp_path: Path):
    folder = dicom_series.write(cohort / "images" / "series", dicom_series.of_volume(scan()))
    client = TestClient(create_app(ServiceConfig(cohort=cohort, access=Access(host="127.0.0.1"))), "http://127.0.0.1")
    client.put("/api/labels", json={"names": ["liver", "spleen"]})
    assert client.get("/api/state").json()["dicom"] is True
    nothing = client.get("/api/export/dicom-seg")
    assert (nothing.status_code, "no case can be exported" in nothing.json()["error"]) == (400, True)

    case = Case("series", folder)
    geometry = case.read_geometry()
    array = np.zeros(geometry.shape, np.int16)
    array[3:9, 4:12, 1:4] = 1
    array[12:15, 2:6, 2] = 2
    predictions = cohort / ".handful" / "service" / "predictions"
    predictions.mkdir()
    write_label_map(predictions / "series.nii.gz", LabelMap(array, geometry, LABELS))
    archive = exported(client, "dicom-seg")
    assert sorted(archive.namelist()) == ["segmentations/left_out.txt", "segmentations/series.dcm"]
    assert archive.read("segmentations/left_out.txt").decode().count("is not DICOM") == 3
    archive.extractall(tmp_path)
    found = Case("series", folder, tmp_path / "segmentations" / "series.dcm", LABELS).read_reference()
    assert found is not None
    assert np.array_equal(found.array, array)
    assert exported(client, "nifti").namelist() == ["labels/series.nii.gz", "dataset.json"]


def test_segmentations_have_the_background_that_dataset_json_states(client: TestClient, cohort: Path, tmp_path: Path):
    stated = {"labels": {"1": "liver", "2": "spleen", "3": "background"}}
    (cohort / "dataset.json").write_text(json.dumps(stated))
    geometry = read_volume(cohort / "images" / "scan_0.nii.gz").geometry
    array = np.zeros(geometry.shape, np.int16)
    array[3:9, 4:12] = 1
    by_hand, predicted = np.where(array == 0, 3, array), array
    predictions = cohort / ".handful" / "service" / "predictions"
    for folder, voxels, name in ((cohort / "labels", by_hand, "scan_0"), (predictions, predicted, "scan_1")):
        folder.mkdir()
        write_label_map(folder / f"{name}.nii.gz", LabelMap(voxels.astype(np.int16), geometry, LABELS))
    archive = exported(client, "nifti")
    assert archive.namelist() == ["labels/scan_0.nii.gz", "labels/scan_1.nii.gz", "dataset.json"]
    archive.extractall(tmp_path)
    known = Labels.of({1: "liver", 2: "spleen", 3: "background"})
    for name in ("scan_0", "scan_1"):
        assert np.array_equal(read_label_map(tmp_path / "labels" / f"{name}.nii.gz", known).array, by_hand), name


def test_without_dicom_the_page_offers_none(client: TestClient):
    assert client.get("/api/state").json()["dicom"] is False
    assert client.get("/api/export/dicom-seg").status_code == 400


def test_two_exports_at_once_leave_each_others_files_alone(cohort: Path, monkeypatch: pytest.MonkeyPatch):
    space, seen = Workspace(cohort), list[str]()
    second = threading.Thread(target=export.exported, args=(space, "nifti"))

    def files(workspace: Workspace, form: str) -> Iterator[tuple[str, Path]]:
        seen.append(f"{form} begins")
        if form == "report":
            second.start()
            second.join(1)  # it waits for this one
        yield "scan", next((workspace.folder / "images").iterdir())
        seen.append(f"{form} ends")

    monkeypatch.setattr(export, "_files", files)
    export.exported(space, "report")
    second.join()
    assert seen == ["report begins", "report ends", "nifti begins", "nifti ends"]
