"""`handful export`: to nnU-Net and back, as typed."""

import json
import shutil
from pathlib import Path

import pytest

from handful.data.files import read_cohort
from handful.data.volume import IGNORE
from small_cohort import Handful


@pytest.mark.parametrize("command", ["nnunet", "nnunet-predictions", "scribbles"])
def test_every_export_teaches_by_an_example(command: str, handful: Handful):
    result = handful("export", command, "--help")
    assert result.exit_code == 0
    assert f"Example: handful export {command}" in " ".join(result.output.split())


def test_the_support_is_chosen_as_by_fit(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    chosen = ("-i", cohort, "--shots", "2", "--split", "1", "--json")
    exported = json.loads(handful("export", "nnunet", *chosen, "-o", tmp_path / "raw", "--rest").stdout)
    fitted = handful("fit", "nearest-slice", *chosen, "-o", tmp_path / "m", "--backbone", backbone, "--no-cache", "-q")
    assert exported["cases"] == json.loads(fitted.stdout)["cases"]
    assert sorted(exported["cases"] + exported["tests"]) == ["case-0", "case-1", "case-2", "case-3"]
    assert (exported["values"], exported["ignore"]) == ({"1": 1, "2": 3}, None)


def test_export_prints_the_next_command(cohort: Path, tmp_path: Path, handful: Handful):
    result = handful("export", "nnunet", "-i", cohort, "-o", tmp_path, "--cases", "case-1", "--number", "12")
    assert result.exit_code == 0, result.output
    assert "1 training case, 0 test cases" in result.stdout
    assert "nnUNetv2_plan_and_preprocess -d 12 --verify_dataset_integrity" in result.stdout
    assert not (tmp_path / "Dataset012_handful" / "imagesTs").exists()


def test_predictions_of_nnunet_are_evaluated_on_unseen_cases_alone(cohort: Path, tmp_path: Path, handful: Handful):
    everything = ("-i", cohort, "-o", tmp_path / "raw", "--rest")
    handful("export", "nnunet", *everything, "--cases", "case-0,case-1")
    # the labels that nnU-Net would train on serve as its predictions: an export in which all cases are training cases
    handful("export", "nnunet", "-i", cohort, "-o", tmp_path / "perfect")
    perfect = tmp_path / "perfect" / "Dataset501_handful" / "labelsTr"
    (tmp_path / "predicted").mkdir()
    for case in ("case-2", "case-3"):
        shutil.copy(perfect / f"{case}.nii.gz", tmp_path / "predicted")
    dataset, back = tmp_path / "raw" / "Dataset501_handful", tmp_path / "back"
    result = handful(
        "export", "nnunet-predictions", "-p", tmp_path / "predicted", "--dataset", dataset, "-o", back, "--json"
    )
    assert json.loads(result.stdout) == {"output": str(back), "cases": ["case-2", "case-3"], "left_out": []}
    report = handful("evaluate", "-p", back, "-r", cohort, "--json")
    assert report.exit_code == 0, report.output
    scored = json.loads(report.stdout)
    assert scored["left_out"] == ["case-0", "case-1"]
    assert {(one["name"], one["cases"], one["dice"]["mean"]) for one in scored["summary"]} >= {
        ("ball", 2, 1.0),
        ("egg", 2, 1.0),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cases", "case-9"), "no case 'case-9'"),
        (("--shots", "9"), "cannot choose 9"),
        (("--number", "1000"), "1 to 999"),
        (("--name", "a b"), "letters, digits"),
    ],
)
def test_a_mistake_in_the_command_exits_with_2_and_writes_nothing(
    arguments: tuple[str, ...], said: str, cohort: Path, tmp_path: Path, handful: Handful
):
    result = handful("export", "nnunet", "-i", cohort, "-o", tmp_path / "raw", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_scribbles_are_a_cohort_that_says_what_is_unlabelled(cohort: Path, tmp_path: Path, handful: Handful):
    result = handful("export", "scribbles", "-i", cohort, "-o", tmp_path / "s", "--cases", "case-0,case-1", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["cases"], said["ignore"]) == (["case-0", "case-1"], 255)
    assert 0.001 < said["labelled"] < 0.2
    case = read_cohort(tmp_path / "s").cases[1]
    strokes, whole = case.read_reference(), read_cohort(cohort).cases[1].read_reference()
    assert strokes is not None
    assert whole is not None
    drawn = strokes.array != IGNORE
    assert set(strokes.array[drawn]) == {0, 1, 3}
    assert (strokes.array[drawn] == whole.array[drawn]).all()
    assert case.labels == whole.labels


def test_the_same_seed_writes_the_same_scribbles(cohort: Path, tmp_path: Path, handful: Handful):
    for name, seed in (("one", "5"), ("same", "5"), ("other", "6")):
        handful("export", "scribbles", "-i", cohort, "-o", tmp_path / name, "--seed", seed, "-q")
    one, same, other = (
        {file.name: file.read_bytes() for file in sorted((tmp_path / name / "labels").iterdir())}
        for name in ("one", "same", "other")
    )
    assert one == same
    assert one != other
    again = ("export", "scribbles", "-i", cohort, "-o", tmp_path / "one", "--seed", "6", "-q")
    assert "--overwrite" in handful(*again).output
    assert handful(*again, "--overwrite").exit_code == 0
    assert {file.name: file.read_bytes() for file in sorted((tmp_path / "one" / "labels").iterdir())} == other
