"""`handful review`, as typed."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import small_cohort
from handful.data.files import read_label_map, write_label_map
from handful.data.volume import Geometry, LabelMap
from phantoms import LABELS
from small_cohort import Handful


@pytest.fixture
def predictions(model: Path, cohort: Path, tmp_path: Path, handful: Handful) -> Path:
    out = tmp_path / "predictions"
    result = handful("predict", model, "-i", cohort, "-o", out, "-q")
    assert result.exit_code == 0, result.output
    return out


def spoil(path: Path) -> None:
    """Shifts all labels to where they are not."""
    found = read_label_map(path, LABELS)
    write_label_map(path, LabelMap(np.roll(found.array, 8, axis=0), found.geometry, LABELS))


def rows_of(review: Path) -> list[dict[str, str]]:
    with (review / "review.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_teaches_by_an_example(handful: Handful):
    result = handful("review", "--help")
    assert result.exit_code == 0
    assert "Example: handful review" in " ".join(result.output.split())


def test_the_spoilt_case_comes_first_and_the_support_is_left_out(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    spoil(predictions / "case-3.nii.gz")
    result = handful("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "review")
    assert rows[0]["case"] == "case-3"
    assert {row["case"] for row in rows} == {"case-2", "case-3"}
    dice = [float(row["predicted_dice"]) for row in rows]
    assert dice == sorted(dice)
    assert "not calibrated; based on 2 labelled cases" in result.stdout
    assert result.stdout.index("case-3") < result.stdout.index("case-2")


def test_the_page_shows_the_worst_cases_in_pictures(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    spoil(predictions / "case-2.nii.gz")
    out = tmp_path / "review"
    handful("review", predictions, "-m", model, "-i", cohort, "-o", out, "--worst", "1", "-q")
    page = (out / "review.html").read_text(encoding="utf-8")
    assert 'src="pictures/case-2.png"' in page
    assert [path.name for path in (out / "pictures").iterdir()] == ["case-2.png"]
    assert "case-3" in page  # in the queue


def test_a_picture_is_of_the_prediction_that_is_there_now(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    command = ("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review", "-q")
    pictures = tmp_path / "review" / "pictures"
    spoil(predictions / "case-3.nii.gz")
    handful(*command)
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    assert set(before) == {"case-2.png", "case-3.png"}
    spoil(predictions / "case-2.nii.gz")
    handful(*command)
    after = {path.name: path.read_bytes() for path in pictures.iterdir()}
    assert after["case-3.png"] == before["case-3.png"]
    assert after["case-2.png"] != before["case-2.png"]


def test_an_unchanged_prediction_is_not_estimated_again(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    command = ("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review", "--json", "-q")
    first, again = (json.loads(handful(*command).stdout) for _ in "ab")
    assert (first["skipped"], again["skipped"]) == ([], ["case-2", "case-3"])
    assert again["cases"] == first["cases"]
    spoil(predictions / "case-3.nii.gz")
    assert json.loads(handful(*command).stdout)["skipped"] == ["case-2"]
    other = json.loads(handful(*command, "--reverse", "none").stdout)
    assert other["skipped"] == []
    assert other["cases"][0]["labels"][0]["signals"]["reverse"] is None


def test_three_labelled_cases_calibrate(tmp_path: Path, backbone: Path, handful: Handful):
    cohort = small_cohort.write_cohort(tmp_path / "cohort", cases=5)
    chosen = ("--cases", "case-0,case-1,case-2", "--backbone", backbone, "--no-cache", "-q")
    handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", *chosen)
    handful("predict", tmp_path / "m", "-i", cohort, "-o", tmp_path / "p", "-q")
    command = ("review", tmp_path / "p", "-m", tmp_path / "m", "-i", cohort, "-o", tmp_path / "r")
    said = json.loads(handful(*command, "--json", "-q").stdout)
    assert said["calibration"]["cases"] == 3
    assert {row["calibrated"] for row in rows_of(tmp_path / "r")} == {"yes"}
    plain = json.loads(handful(*command, "--no-calibrate", "--json", "-q").stdout)
    assert plain["calibration"] is None
    assert {row["calibrated"] for row in rows_of(tmp_path / "r")} == {"no"}


def test_the_labelled_cases_may_lie_in_another_folder(
    predictions: Path, model: Path, cohort: Path, own: Path, tmp_path: Path, handful: Handful
):
    shutil.rmtree(own / "labels")
    command = ("review", predictions, "-m", model, "-i", own, "-o", tmp_path / "review")
    refused = handful(*command)
    assert refused.exit_code == 2
    assert "--support" in refused.stderr
    result = handful(*command, "--support", cohort, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["support"] == ["case-0", "case-1"]
    assert {row["case"] for row in rows_of(tmp_path / "review")} == {"case-2", "case-3"}


def test_a_case_without_a_prediction_is_listed_and_exits_with_3(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    (predictions / "case-2.nii.gz").unlink()
    command = ("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review")
    result = handful(*command)
    assert result.exit_code == 3
    assert "no prediction of case 'case-2'" in result.stderr
    assert {row["case"] for row in rows_of(tmp_path / "review")} == {"case-3"}
    assert handful(*command, "--cases", "case-3").exit_code == 0


def test_predictions_on_another_grid_or_of_other_labels_are_listed_by_name(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    found = read_label_map(predictions / "case-2.nii.gz", LABELS)
    affine = found.geometry.affine.copy()
    affine[:3, 3] += 20
    elsewhere = Geometry(found.geometry.shape, affine)
    write_label_map(predictions / "case-2.nii.gz", LabelMap(found.array, elsewhere, LABELS))
    strange = read_label_map(predictions / "case-3.nii.gz", LABELS)
    strange.array[0, 0, 0] = 9
    write_label_map(predictions / "case-3.nii.gz", strange)
    result = handful("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review", "--json", "-q")
    assert result.exit_code == 3
    reasons = {one["case"]: one["reason"] for one in json.loads(result.stdout)["failures"]}
    assert "the grids have the same shape but differ" in reasons["case-2"]
    assert "9" in reasons["case-3"]


def test_a_folder_without_predictions_of_these_cases_exits_with_2(
    model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        result = handful("review", tmp_path / folder, "-m", model, "-i", cohort, "-o", tmp_path / "review")
        assert result.exit_code == 2
        assert "handful predict" in result.stderr
    assert not (tmp_path / "review").exists()


def test_a_scan_that_only_bears_the_name_of_a_labelled_one_is_refused(
    predictions: Path, model: Path, own: Path, tmp_path: Path, handful: Handful
):
    shutil.copy(own / "images" / "case-3.nii.gz", own / "images" / "case-0.nii.gz")
    result = handful("review", predictions, "-m", model, "-i", own, "-o", tmp_path / "review")
    assert result.exit_code == 2
    assert "'case-0'" in result.stderr


def test_an_unknown_reverse_segmenter_exits_with_2(
    predictions: Path, model: Path, cohort: Path, tmp_path: Path, handful: Handful
):
    command = ("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path / "review", "--reverse", "unet")
    result = handful(*command)
    assert result.exit_code == 2
    assert "unet" in result.stderr
