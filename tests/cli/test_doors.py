"""The doors of the commands: one bad scan, files that are left out, odd names, and outputs next to inputs."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import small_cohort
from handful.data import formats
from handful.data.cases import Case
from handful.data.volume import Volume
from small_cohort import Handful

OTHERS = ["case-0", "case-1", "case-3"]


@pytest.fixture(scope="session")
def predictions(handful: Handful, model: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    assert handful("predict", model, "-i", cohort, "-o", out, "-q").exit_code == 0
    return out


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading case-2 raises what nobody expects."""

    def broken(read):
        def reading(case: Case, *arguments: object) -> Volume:
            if case.name == "case-2":
                raise RuntimeError("LZW decoder")
            return read(case, *arguments)

        return reading

    for name in ("read_image", "read_geometry", "read_image_and_digest"):
        monkeypatch.setattr(Case, name, broken(getattr(Case, name)))


@pytest.mark.usefixtures("odd")
def test_doctor_checks_the_other_cases(cohort: Path, handful: Handful):
    result = handful("doctor", "-i", cohort, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["cases"], found["with_errors"]) == (4, ["case-2"])
    assert found["findings"][0]["message"] == "RuntimeError: LZW decoder"


@pytest.mark.usefixtures("odd")
def test_predict_segments_the_other_cases(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    result = handful("predict", model, "-i", cohort, "-o", tmp_path, "--json", "-q")
    assert (result.exit_code, json.loads(result.stdout)["done"]) == (3, OTHERS)
    assert json.loads((tmp_path / "failures.json").read_text()) == [
        {"case": "case-2", "reason": "RuntimeError: LZW decoder"}
    ]


@pytest.mark.usefixtures("odd")
def test_embed_encodes_the_other_cases(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    cache = ("--cache", tmp_path / "cache")
    result = handful("embed", "-i", cohort, "--backbone", backbone, *cache, "--json", "-q")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["failures"][0]["case"], found["slices"] > 0) == (3, "case-2", True)


@pytest.mark.usefixtures("odd")
def test_suggest_ranks_the_other_cases(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    (own := Path(shutil.copytree(cohort, tmp_path / "own"))).joinpath("labels", "case-3.nii.gz").unlink()
    result = handful("suggest", "-i", own, "-o", tmp_path / "out", "--model", model, "--json", "-q")
    found = json.loads(result.stdout)
    assert (result.exit_code, [one["case"] for one in found["failures"]]) == (3, ["case-2"])
    assert {one["case"] for one in found["suggestions"]} == {"case-3"}


@pytest.mark.usefixtures("odd")
def test_review_estimates_the_other_cases(
    cohort: Path, model: Path, predictions: Path, tmp_path: Path, handful: Handful
):
    cheap = ("--reverse", "none", "--no-confidence", "--no-calibrate", "--json", "-q")
    result = handful("review", predictions, "-m", model, "-i", cohort, "-o", tmp_path, *cheap)
    found = json.loads(result.stdout)
    assert (result.exit_code, [one["case"] for one in found["failures"]]) == (3, ["case-2"])
    assert [one["case"] for one in found["cases"]] == ["case-3"]


@pytest.mark.usefixtures("odd")
def test_fit_and_export_use_the_other_cases(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    options = ("--backbone", backbone, "--no-cache", "--no-leave-out", "--json", "-q")
    result = handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "model", *options)
    assert (result.exit_code, json.loads(result.stdout)["cases"]) == (3, OTHERS)
    assert "case-2: RuntimeError: LZW decoder" in result.stderr
    result = handful("export", "nnunet", "-i", cohort, "--cases", "case-0", "--rest", "-o", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["tests"]) == (3, ["case-1", "case-3"])
    assert found["tests_left_out"] == [{"file": "case-2", "reason": "RuntimeError: LZW decoder"}]


@pytest.mark.usefixtures("odd")
def test_overlays_show_the_other_cases(cohort: Path, predictions: Path, tmp_path: Path, handful: Handful):
    options = ("--overlays", tmp_path, "-i", cohort, "--cases", "case-2,case-3", "--with-support")
    result = handful("evaluate", "-p", predictions, "-r", cohort, *options)
    assert result.exit_code == 3
    assert "case-2: no picture: RuntimeError: LZW decoder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["case-3.png"]


def test_evaluate_scores_the_other_cases(
    cohort: Path, predictions: Path, handful: Handful, monkeypatch: pytest.MonkeyPatch
):
    whole_numbers = formats._whole_numbers

    def odd(array: object, path: Path) -> object:
        if "case-2" in path.name:
            raise RuntimeError("LZW decoder")
        return whole_numbers(array, path)

    monkeypatch.setattr(formats, "_whole_numbers", odd)
    result = handful("evaluate", "-p", predictions, "-r", cohort, "--with-support", "--json")
    found = json.loads(result.stdout)
    (failure,) = found["failures"]
    assert (result.exit_code, failure["case"]) == (3, "case-2")
    assert "case-2.nii.gz: cannot be read (RuntimeError: LZW decoder)" in failure["reason"]
    assert found["summary"][0]["cases"] == 3


def test_all_commands_name_the_same_files_and_exit_with_3(
    own: Path, model: Path, predictions: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    (own / "images" / "case-8.mgz").write_bytes(b"")
    (own / "labels" / "case-2.nii.gz").unlink()
    (own / "labels" / "case-2.nii.gz").symlink_to("nowhere")
    fit = (
        "fit",
        "nearest-slice",
        "-i",
        own,
        "-o",
        tmp_path / "m",
        "--backbone",
        backbone,
        "--no-cache",
        "-q",
        "--json",
    )
    commands = (
        ("doctor", "-i", own, "--json"),
        (*fit, "--no-leave-out", "--json"),
        ("predict", model, "-i", own, "-o", tmp_path / "out", "-q", "--json"),
        ("evaluate", "-p", predictions, "-r", own, "--json"),
    )
    for command in commands:
        result = handful(*command)
        found = json.loads(result.stdout)
        files = found["files_left_out"] if command[0] == "evaluate" else found["left_out"]
        assert (result.exit_code, [one["file"] for one in files]) == (3, ["images/case-8.mgz", "labels/case-2.nii.gz"])
        if command[0] != "doctor":
            assert "left out images/case-8.mgz: a FreeSurfer volume" in result.stderr
            assert "left out labels/case-2.nii.gz: a link that leads nowhere" in result.stderr


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("images", "labels")
        for path in sorted((folder / part).glob("*.nii.gz"))
    }


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_no_output_replaces_a_scan_or_a_label_map(
    overwrite: tuple[str, ...], own: Path, model: Path, predictions: Path, backbone: Path, handful: Handful
):
    before = digests(own)
    scan, labels = own / "images" / "case-0.nii.gz", own / "labels" / "case-0.nii.gz"
    predict = ("predict", model, "-q", *overwrite)
    for arguments in (
        (*predict, "-i", own / "images", "-o", own / "images"),
        (*predict, "-i", own, "-o", own / "labels"),
        (*predict, "-i", own, "-o", own / "images"),
        (*predict, "-i", scan, "-o", scan),
        (*predict, "-i", scan, "-o", labels),
        ("annotate", backbone, "-i", scan, "--reference", labels, "-o", labels, *overwrite),
        ("evaluate", "-p", predictions, "-r", own, "--csv", labels),
        ("evaluate", "-p", predictions, "-r", own, "-o", own / "dataset.json"),
    ):
        result = handful(*arguments)
        assert result.exit_code in (1, 2, 3), arguments
        assert "never replaced" in " ".join(result.output.split())
        assert "--overwrite" not in result.output
    assert digests(own) == before


def test_labels_by_hand_of_another_folder_are_moved_aside_not_lost(
    cohort: Path, model: Path, tmp_path: Path, handful: Handful
):
    (tmp_path / "case-0.nii.gz").write_bytes(b"by hand")
    assert handful("predict", model, "-i", cohort, "-o", tmp_path, "--overwrite", "-q").exit_code == 0
    (kept,) = (tmp_path / ".handful" / "changed").iterdir()
    assert kept.read_bytes() == b"by hand"


def test_pictures_never_replace_scans(tmp_path: Path, cohort: Path, predictions: Path, handful: Handful):
    """The pictures of a cohort of pictures would have the names of its scans."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"case-{number}.png")
    pictures = ("--overlays", tmp_path / "images", "-i", tmp_path, "--with-support")
    result = handful("evaluate", "-p", predictions, "-r", cohort, *pictures)
    assert result.exit_code == 3
    assert "never replaced" in result.output
    assert Image.open(tmp_path / "images" / "case-3.png").getpixel((0, 0)) == 3


def test_some_labels_can_be_learned_and_scored(own: Path, backbone: Path, tmp_path: Path, handful: Handful):
    fit = ("fit", "nearest-slice", "-i", own, "--backbone", backbone, "--no-cache", "--no-leave-out", "-q")
    assert handful(*fit, "--labels", "egg", "-o", tmp_path / "model").exit_code == 0
    assert json.loads((tmp_path / "model" / "segmenter.json").read_text())["labels"] == {"3": "egg"}
    assert handful("predict", tmp_path / "model", "-i", own, "-o", tmp_path / "out", "-q").exit_code == 0
    score = ("evaluate", "-p", tmp_path / "out", "-r", own, "--with-support", "--json")
    found = json.loads(handful(*score, "--labels", "3").stdout)
    assert [one["name"] for one in found["summary"]] == ["egg", "mean"]
    assert found["summary"][0]["dice"]["mean"] == 1
    assert handful("doctor", "-i", own).exit_code == 0
    result = handful(*fit, "--labels", "eg", "-o", tmp_path / "other")
    assert (result.exit_code, "did you mean 'egg'" in result.output) == (1, True)


def renamed(cohort: Path, names: dict[str, str]) -> None:
    for part in ("images", "labels"):
        for old, new in names.items():
            (cohort / part / f"{old}.nii.gz").rename(cohort / part / f"{new}.nii.gz")


ESCAPE, FORMULA, MARKUP = "\x1b[2J\x1b]0;owned\x07", "=1+1", "x[red]y[bold"


def test_odd_names_reach_neither_terminals_nor_spreadsheets(
    own: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    renamed(own, {"case-0": ESCAPE, "case-1": FORMULA, "case-2": MARKUP})
    (own / "dataset.json").write_text(json.dumps({"labels": {"1": f"ball{ESCAPE}", "3": "@egg"}}))
    model, out = tmp_path / "model", tmp_path / "out"
    cheap = ("--reverse", "none", "--no-confidence", "--no-calibrate")
    fit = ("fit", "nearest-slice", "-i", own, "-o", model, "--backbone", backbone, "--no-cache", "--no-leave-out")
    commands = (
        ("doctor", "-i", own),
        (*fit, "--cases", "case-3"),
        ("predict", model, "-i", own, "-o", out),
        ("evaluate", "-p", out, "-r", own, "--csv", tmp_path / "scores.csv", "--with-support"),
        ("review", out, "-m", model, "-i", own, "-o", tmp_path / "review", *cheap),
    )
    for command in commands:
        result = handful(*command)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert "\x07" not in result.output
    assert "\\x1b[2J" in result.output
    for table, column in ((tmp_path / "scores.csv", "dice"), (tmp_path / "review" / "review.csv", "predicted_dice")):
        rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
        assert {row["name"] for row in rows} == {f"ball{ESCAPE}", "'@egg"}
        assert "'=1+1" in {row["case"] for row in rows}
        assert all(0 <= float(row[column]) <= 1 for row in rows)


def test_a_console_of_few_letters_shows_the_others_as_escapes(own: Path):
    renamed(own, {"case-0": "患者"})
    code = "from handful.cli import main; main()"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments in (["doctor", "-i", str(own)], ["doctor", "-i", str(own), "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("cp1252"))["findings"][0]["case"] in ("患者", *OTHERS)


def test_settings_may_begin_with_a_byte_order_mark(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    (tmp_path / "settings.toml").write_bytes(b"\xef\xbb\xbfsimilarity = 'pixels'\r\n")
    options = ("--config", tmp_path / "settings.toml", "--backbone", backbone, "--no-cache", "--no-leave-out", "-q")
    assert handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", *options).exit_code == 0
    assert small_cohort.files_below(tmp_path / "m")
