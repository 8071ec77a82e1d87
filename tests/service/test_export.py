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
from pydicom import dcmread

import dicom_series
from handful.backbones.catalog import open_backbone
from handful.checkpoint.model import open_model
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.data.cases import Case
from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.methods.base import Method
from handful.methods.nearest_slice import NearestSlice
from handful.service import export
from handful.service.app import ServiceConfig, create_app
from handful.service.security import Access
from handful.service.workspace import Workspace
from phantoms import phantom

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


def learned(space: Workspace, method: Method) -> str:
    """The SHA-256 of a new model of the labelled cases."""
    backbone, config = open_backbone("handful-tiny", "cpu"), FitConfig(overwrite=True)
    fit_to_folder("nearest-slice", method, space.support(), backbone, space.model, config)
    return open_model(space.model).sha256


def test_a_dicom_segmentation_states_the_model_that_made_it(cohort: Path, tmp_path: Path):
    for number, name in enumerate(("by_hand", "accepted", "predicted", "changed")):
        images = dicom_series.of_volume(scan(), series=f"1.2.3.4.{number}")
        geometry = Case(name, dicom_series.write(cohort / "images" / name, images)).read_geometry()
    array = np.zeros(geometry.shape, np.int16)
    array[3:9, 4:12, 1:4] = 1
    (cohort / "labels").mkdir()
    write_label_map(cohort / "labels" / "by_hand.nii.gz", LabelMap(array, geometry, Labels.of({1: "liver"})))
    space = Workspace(cohort)
    cases = {case.name: case for case in space.cohort().cases}

    def origin(name: str) -> tuple[str, str, str]:
        """Type and name of the algorithm, and the model, in the exported file."""
        with zipfile.ZipFile(export.exported(space, "dicom-seg")) as archive:
            (one,) = dcmread(io.BytesIO(archive.read(f"segmentations/{name}.dcm"))).SegmentSequence
        if one.SegmentAlgorithmType == "MANUAL":
            return "MANUAL", "", ""
        maker = one.SegmentationAlgorithmIdentificationSequence[0]
        stated = maker.get("AlgorithmParameters") or ""
        return one.SegmentAlgorithmType, maker.AlgorithmName, stated.partition("=")[2]

    first = learned(space, NearestSlice())
    predict_cohort(space.model, [cases["accepted"], cases["changed"]], space.predictions, PredictConfig(device="cpu"))
    assert origin("accepted") == ("AUTOMATIC", "handful nearest-slice", first)
    space.accept(cases["accepted"])
    second = learned(space, NearestSlice(slicer=Slicer(window=(0, 500))))
    predict_cohort(space.model, [cases["predicted"]], space.predictions, PredictConfig(device="cpu"))
    write_label_map(space.predictions / "changed.nii.gz", LabelMap(array[::-1], geometry, Labels.of({1: "liver"})))
    expected = {
        "by_hand": ("MANUAL", "", ""),
        "accepted": ("AUTOMATIC", "handful", first),
        "predicted": ("AUTOMATIC", "handful nearest-slice", second),
        "changed": ("AUTOMATIC", "handful", ""),
    }
    assert {name: origin(name) for name in expected} == expected
    predict_cohort(space.model, [cases["accepted"]], space.predictions, PredictConfig(device="cpu"))
    assert origin("accepted") == ("AUTOMATIC", "handful", first)  # the note of its own stays
    space.send_back(cases["accepted"])
    assert origin("accepted") == ("AUTOMATIC", "handful nearest-slice", second)


def test_a_damaged_labelled_scan_is_left_out_of_a_data_set_for_nnunet(client: TestClient, cohort: Path):
    (cohort / "labels").mkdir()
    for seed in (0, 1):
        write_label_map(cohort / "labels" / f"scan_{seed}.nii.gz", phantom(seed)[1])
    assert "left_out.txt" not in exported(client, "nnunet").namelist()
    (cohort / "images" / "scan_1.nii.gz").write_bytes(b"cut off")
    archive = exported(client, "nnunet")
    assert [name for name in archive.namelist() if "labelsTr" in name] == ["Dataset501_handful/labelsTr/scan_0.nii.gz"]
    assert {line.partition(":")[0] for line in archive.read("left_out.txt").decode().splitlines()} == {"scan_1"}


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
