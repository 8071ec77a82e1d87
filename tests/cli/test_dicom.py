"""The commands with DICOM scans: what they choose, refuse, write, and keep to themselves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

import dicom_series as made
from dicomweb_server import serving
from handful.data.files import read_label_map, read_volume
from phantoms import LABELS
from small_cohort import Handful


@pytest.fixture(scope="module")
def scan(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """case-2 as a DICOM series."""
    volume = read_volume(cohort / "images" / "case-2.nii.gz")
    return made.write(tmp_path_factory.mktemp("dicom") / "study", made.of_volume(volume))


def planted(folder: Path) -> list[str]:
    """Files in a folder that hold the name or the ID of the patient."""
    secrets = [text.encode() for text in (made.NAME, made.IDENTITY)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(secret in path.read_bytes() for secret in secrets)]


def test_predict_writes_a_label_map_on_the_grid_of_the_series(
    model: Path, scan: Path, tmp_path: Path, handful: Handful
):
    result = handful("predict", model, "-i", scan, "-o", tmp_path / "labels.nii.gz", "-d", "cpu")
    assert result.exit_code == 0, result.output
    assert handful("predict", model, "-i", made.zipped(scan), "-o", tmp_path / "out", "-d", "cpu").exit_code == 0
    image, single = read_volume(scan).geometry, read_label_map(tmp_path / "labels.nii.gz")
    image.require_same(single.geometry, "series and labels")
    again = read_label_map(tmp_path / "out" / "study.nii.gz")
    np.testing.assert_array_equal(single.array, again.array)
    assert planted(tmp_path) == []


def test_predict_refuses_to_guess_a_series_and_takes_the_chosen_one(
    model: Path, scan: Path, tmp_path: Path, handful: Handful
):
    study = Path(shutil.copytree(scan, tmp_path / "study"))
    made.write(study / "scout", made.series(1, series="1.2.8", number=9))
    arguments = ("predict", model, "-i", study, "-o", tmp_path / "out", "-d", "cpu", "-q")
    refused = handful(*arguments)
    assert refused.exit_code == 3
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert "2 series; choose one with --series" in failure["reason"]
    assert "number 9: 'series 9', CT, 1 image" in failure["reason"]
    assert made.IDENTITY not in failure["reason"] + refused.output
    assert handful(*arguments, "--series", "1").exit_code == 0
    assert "1 already segmented" in handful(*arguments, "--series", "1").stdout


def test_a_cohort_of_dicom_series_is_segmented_checked_and_fitted(
    cohort: Path, model: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    own = tmp_path / "own"
    for name in ("case-0", "case-2"):
        volume = read_volume(cohort / "images" / f"{name}.nii.gz")
        made.write(own / "images" / name, made.of_volume(volume, series=f"1.2.{name[-1]}"))
    assert handful("predict", model, "-i", own, "-o", own / "labels", "-d", "cpu", "-q").exit_code == 0
    checked = json.loads(handful("doctor", "-i", own, "--json").stdout)
    assert (checked["cases"], checked["with_errors"]) == (2, [])
    fitted = handful(
        "fit", "nearest-slice", "-i", own, "-o", tmp_path / "model", "--cases", "case-0",
        "--backbone", backbone, "--no-cache", "-q",
    )  # fmt: skip
    assert fitted.exit_code == 0, fitted.output
    assert planted(tmp_path / "model") + planted(own / "labels") == []


def test_doctor_allows_a_stated_tolerance(tmp_path: Path, handful: Handful):
    images = made.series()
    images[2].ImagePositionPatient = (np.array(images[2].ImagePositionPatient, float) + np.array([0, 0, 0.1])).tolist()
    folder = made.write(tmp_path / "scan", images)
    assert handful("doctor", "-i", folder).exit_code == 3
    assert handful("doctor", "-i", folder, "--slice-tolerance", "0.2").exit_code == 0


def test_labels_that_dicom_cannot_tell_apart_are_refused_before_anything_is_segmented(
    model: Path, scan: Path, tmp_path: Path, handful: Handful
):
    long = shutil.copytree(model, tmp_path / "long")
    record = json.loads((long / "segmenter.json").read_text())
    record["labels"] = {value: f"{'egg ' * 20}{value}" for value in record["labels"]}
    (long / "segmenter.json").write_text(json.dumps(record))
    result = handful("predict", long, "-i", scan, "-o", tmp_path / "out.dcm", "-d", "cpu")
    assert result.exit_code == 1
    assert "DICOM-SEG has 64 letters for a name" in " ".join(result.stderr.split())
    assert not (tmp_path / "out.dcm").exists()


def test_predict_writes_segmentations_of_dicom_scans_and_resumes(
    model: Path, scan: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    own = tmp_path / "own"
    shutil.copytree(scan, own / "images" / "dicom")
    shutil.copy(cohort / "images" / "case-3.nii.gz", own / "images")
    terms = tmp_path / "terms.json"
    terms.write_text('{"egg": {"type": {"value": "1", "scheme": "99OWN", "meaning": "Own egg"}}}')
    command = ("predict", model, "-i", own, "-o", tmp_path / "out", "-d", "cpu", "-q", "--format", "dicom-seg")
    result = handful(*command, "--terms", terms)
    assert result.exit_code == 3
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["case"] == "case-3"
    assert "this scan is none" in failure["reason"]
    assert handful("predict", model, "-i", scan, "-o", tmp_path / "nifti.nii.gz", "-d", "cpu").exit_code == 0
    truth = read_label_map(tmp_path / "nifti.nii.gz")
    again = read_label_map(tmp_path / "out" / "dicom.dcm", LABELS, grid=truth.geometry)
    np.testing.assert_array_equal(truth.array, again.array)
    assert truth.array.any()
    segments = dcmread(tmp_path / "out" / "dicom.dcm").SegmentSequence
    types = {one.SegmentLabel: one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for one in segments}
    assert types["egg"] == "Own egg"
    assert planted(tmp_path / "out" / ".handful") == []
    again_with = (*command, "--cases", "dicom", "--terms", terms)
    assert handful(*again_with).stdout.startswith("0 cases segmented, 1 already segmented")
    assert handful(*again_with, "--format", "dicom-labelmap").stdout.startswith("1 case segmented")
    assert dcmread(tmp_path / "out" / "dicom.dcm").SegmentationType == "LABELMAP"
    assert handful(*command, "--cases", "dicom").stdout.startswith("1 case segmented")  # with the usual terms


def test_the_name_of_the_output_makes_a_segmentation(model: Path, scan: Path, tmp_path: Path, handful: Handful):
    for format, kind in (("auto", "BINARY"), ("dicom-labelmap", "LABELMAP")):
        out = tmp_path / f"{format}.dcm"
        result = handful("predict", model, "-i", scan, "-o", out, "-d", "cpu", "--format", format)
        assert result.exit_code == 0, result.output
        assert dcmread(out).SegmentationType == kind
    refused = handful("predict", model, "-i", scan, "-o", tmp_path / "a.nii.gz", "--format", "dicom-seg")
    assert "name it a.dcm" in refused.output.replace("\n", " ")


def test_predict_segments_and_stores_the_series_of_an_archive(
    model: Path, cohort: Path, tmp_path: Path, handful: Handful, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HANDFUL_DICOMWEB_TOKEN", "token-secret")
    images = made.of_volume(read_volume(cohort / "images" / "case-2.nii.gz"))[8:12]
    out = tmp_path / "out"
    with serving(images) as server:
        command = ("predict", model, "-i", server.address("PatientID=" + made.IDENTITY), "-o", out, "-d", "cpu", "-q")
        result = handful(*command, "--no-store")
        assert result.exit_code == 0, result.output
        assert len(server.images) == len(images)
        result = handful(*command, "--json")
        assert json.loads(result.stdout)["skipped"] == ["1.2.3.4"]
        assert server.images[-1].Modality == "SEG"
        assert made.IDENTITY not in result.output
        assert handful(*command, "--series", "1").exit_code == 2
        assert handful(*command, "--channels", "T1").exit_code == 2
        refused = handful(*command[:3], "dicomweb:http://host/dicom-web", *command[4:])
        assert (refused.exit_code, "names no series" in refused.output) == (2, True)
    assert planted(out / ".handful") == []
