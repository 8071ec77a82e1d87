"""What the commands take, print and answer, each in this process."""

import csv
import dataclasses
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

import small_cohort
from handful.cli.terminal import command_line
from handful.data.files import read_label_map, write_label_map
from handful.jobs.lock import locked
from handful.methods.catalog import METHODS
from small_cohort import Handful

ALL = ["case-0", "case-1", "case-2", "case-3"]


def settings_of(model: Path) -> dict[str, object]:
    settings: dict[str, object] = json.loads((model / "segmenter.json").read_text())["settings"]
    return settings


@pytest.mark.parametrize("command", ["demo", "doctor", "list", "fit", "predict", "evaluate", "embed", "pretrain"])
def test_every_command_teaches_by_an_example(command: str, handful: Handful):
    result = handful(command, "--help")
    assert result.exit_code == 0
    assert f"Example: handful {command}" in " ".join(result.output.split())


def test_the_version_is_printed(handful: Handful):
    assert handful("--version").output.startswith("handful ")


def test_methods_are_listed_with_what_they_are_for_and_settings_that_fit_takes(handful: Handful):
    listed = {one["name"]: one for one in json.loads(handful("list", "methods", "--json").stdout)["methods"]}
    assert listed["few-shot-prompts"]["settings"]["train.iterations"]["default"] > 0
    assert listed["few-shot-prompts"]["trains"]
    assert not listed["fate"]["trains"]
    assert all(one["when to use it"] and one["time to fit"] for one in listed.values())
    assert "nearest-slice" in handful("list", "methods").output


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_setting_of_a_method_is_listed_with_its_default_and_its_meaning(method: str, handful: Handful):
    settings = json.loads(handful("list", "methods", method, "--json").stdout)["settings"]
    assert {"slicer.plane", "roi_margin", "planes", "seeds"} <= settings.keys()
    assert not [name for name, one in settings.items() if not one["meaning"]]
    assert "slicer.plane" in handful("list", "methods", method).output


def test_a_misspelt_method_is_named_with_the_likeliest_one(handful: Handful):
    result = handful("list", "methods", "fat")
    assert result.exit_code == 2
    assert "did you mean 'fate'" in result.output


def test_backbones_have_no_settings_to_list(handful: Handful):
    assert "no settings" in handful("list", "backbones", "handful-tiny").output


def test_backbones_are_listed_with_their_licences(handful: Handful):
    listed = json.loads(handful("list", "backbones", "--json").stdout)["backbones"]
    assert {"name": "handful-tiny", "licence": "Apache-2.0"}.items() <= listed[0].items()


def test_a_sound_cohort_passes_the_doctor(cohort: Path, handful: Handful):
    result = handful("doctor", "-i", cohort)
    assert result.exit_code == 0
    assert "all cases can be used" in result.output


def test_the_doctor_names_the_broken_case_and_exits_with_3(own: Path, handful: Handful):
    scan = own / "images" / "case-1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:3000])
    result = handful("doctor", "-i", own, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["cases"], found["with_errors"]) == (4, ["case-1"])
    assert "ends after" in found["findings"][0]["message"]


def test_fit_prints_the_next_command(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    result = handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", "--backbone", backbone, "--no-cache")
    assert result.exit_code == 0
    assert f"handful predict {tmp_path / 'm'}" in result.stdout
    assert "to fit on this CPU" in result.stderr


def test_fit_without_a_method_takes_the_default(cohort: Path, tmp_path: Path, handful: Handful):
    result = handful("fit", "-i", cohort, "-o", tmp_path / "m", "--set", "nonsense=1")
    assert "auto has no setting 'nonsense'" in " ".join(result.output.split())


def test_fit_prints_one_json_object(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    chosen = ("--shots", "2", "--split", "3", "--backbone", backbone, "--no-cache", "--json")
    first, again = (
        json.loads(handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", *chosen).stdout) for _ in "ab"
    )
    assert len(first["cases"]) == 2
    assert (first["already_fitted"], again["already_fitted"]) == (False, True)
    assert first["dice_on_support"] == {}, "nothing was trained"


def test_settings_come_from_file_then_set_then_seed(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    file = tmp_path / "settings.toml"
    file.write_text("views = 1\nbatch = 3\n[train]\niterations = 2\nseed = 5\n")
    result = handful(
        "fit", "few-shot-prompts", "-i", cohort, "-o", tmp_path / "m", "--backbone", backbone, "--no-cache",
        "--config", file, "--set", "batch=2", "--set", "train.learning_rate=1e-3", "--seed", "9",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = settings_of(tmp_path / "m")
    train = found["train"]
    assert isinstance(train, dict)
    assert (found["views"], found["batch"]) == (1, 2)
    assert (train["iterations"], train["learning_rate"], train["seed"]) == (2, 1e-3, 9)
    assert "Dice on the labelled cases themselves: " in result.stdout


def test_a_fit_names_the_labels_that_it_did_not_learn(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    fit = ("fit", "auto-sam", "-i", cohort, "-o", tmp_path / "m", "--backbone", backbone, "--no-cache", "--shots", "1")
    said = handful(*fit, "--set", "head=linear", "--set", "views=1", "--set", "train.iterations=1").stdout
    assert "not learned: " in said
    assert "train longer (--set train.iterations=...)" in said


def test_a_method_without_randomness_warns_that_the_seed_changes_nothing(
    cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    result = handful(
        "fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", "--backbone", backbone, "--no-cache", "--seed", "1"
    )
    assert result.exit_code == 0
    assert "--seed changes nothing" in result.stderr


def test_embeddings_are_stored_with_the_scans_by_default(own: Path, backbone: Path, tmp_path: Path, handful: Handful):
    common = ("fit", "nearest-slice", "-i", own, "--set", "similarity=embedding", "--backbone", backbone, "-q")
    assert handful(*common, "-o", tmp_path / "a", "--no-cache").exit_code == 0
    assert not (own / ".handful").exists()
    assert handful(*common, "-o", tmp_path / "b", "--cache", tmp_path / "cache").exit_code == 0
    assert not (own / ".handful").exists()
    assert handful(*common, "-o", tmp_path / "c").exit_code == 0
    kept = [len(list(folder.iterdir())) for folder in (tmp_path / "cache", own / ".handful" / "embeddings")]
    assert kept == [24, 24]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nearest-slise",), "did you mean 'nearest-slice'"),
        (("nearest-slice", "--set", "similarity=taste"), "similarity"),
        (("nearest-slice", "--set", "similarity"), "key=value"),
        (("nearest-slice", "--cases", "case-9"), "no case 'case-9'"),
        (("nearest-slice", "--cases", "case-0", "--shots", "1"), "give only one of them"),
        (("nearest-slice", "--shots", "0"), "--shots"),
        (("nearest-slice", "--shots", "9"), "cannot choose 9"),
        (("nearest-slice", "--device", "tpu"), "tpu"),
        (("nearest-slice", "--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_a_mistake_in_the_command_is_named_and_exits_with_2(
    arguments: tuple[str, ...], said: str, cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    result = handful("fit", *arguments, "-i", cohort, "-o", tmp_path / "m", "--backbone", backbone)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", "").split())
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_another_error_exits_with_1(cohort: Path, model: Path, backbone: Path, tmp_path: Path, handful: Handful):
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    assert handful("predict", model, "-i", tmp_path / "broken.nii.gz", "-o", tmp_path / "x.nii.gz").exit_code == 1
    assert handful("predict", tmp_path, "-i", cohort, "-o", tmp_path / "x").exit_code == 1
    result = handful("fit", "nearest-slice", "-i", cohort, "-o", model, "--shots", "1", "--backbone", backbone)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr


def test_a_folder_in_gives_a_folder_out(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    result = handful("predict", model, "-i", cohort, "-o", tmp_path / "p", "--json")
    assert result.exit_code == 0
    nothing: list[object] = []
    done = {"output": str(tmp_path / "p"), "done": ALL, "experts": {}, "missing": {}} | dict.fromkeys(
        ("skipped", "failures", "left_out", "warnings", "empty"), nothing
    )
    assert json.loads(result.stdout) == done
    again = handful("predict", model, "-i", cohort, "-o", tmp_path / "p")
    assert "4 already segmented" in again.stdout


def test_a_label_that_only_one_case_lacks_is_named(own: Path, backbone: Path, tmp_path: Path, handful: Handful):
    path = own / "labels" / "case-0.nii.gz"
    labels = read_label_map(path)
    write_label_map(path, dataclasses.replace(labels, array=np.where(labels.array == 3, 0, labels.array)))
    options = ("--cases", "case-0,case-1", "--backbone", backbone, "--no-cache", "-q")
    handful("fit", "nearest-slice", "-i", own, "-o", tmp_path / "m", *options)
    result = handful("predict", tmp_path / "m", "-i", own, "-o", tmp_path / "p")
    assert result.exit_code == 0
    assert "1 case lacks egg, which most others have: case-0" in result.stderr


def test_only_the_named_cases_are_segmented(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    handful("predict", model, "-i", cohort, "-o", tmp_path / "p", "--cases", "case-3, case-2", "--preview")
    assert sorted(path.name for path in (tmp_path / "p").glob("*.nii.gz")) == ["case-2.nii.gz", "case-3.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "p" / "previews").iterdir()) == ["case-2.png", "case-3.png"]


def test_a_file_in_gives_a_file_out(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    image, out = cohort / "images" / "case-2.nii.gz", tmp_path / "a.nii.gz"
    assert handful("predict", model, "-i", image, "-o", out).exit_code == 0
    assert handful("predict", model, "-i", image, "-o", out).exit_code == 2
    refused = handful("predict", model, "-i", image, "-o", tmp_path / "other.nii.gz", "--cases", "case-3")
    assert refused.exit_code == 2
    assert "--cases is for folders of scans" in refused.stderr
    assert handful("predict", model, "-i", image, "-o", out, "--overwrite", "--preview").exit_code == 0
    assert small_cohort.files_below(tmp_path) == ["a.nii.gz", "a.preview.png"]


def test_a_file_in_and_a_folder_out_is_a_cohort_of_one(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    handful("predict", model, "-i", cohort / "images" / "case-2.nii.gz", "-o", tmp_path / "p")
    assert (tmp_path / "p" / "case-2.nii.gz").exists()


def test_a_corrupt_case_among_four_costs_only_itself(own: Path, model: Path, tmp_path: Path, handful: Handful):
    scan = own / "images" / "case-1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:3000])
    result = handful("predict", model, "-i", own, "-o", tmp_path / "p")
    assert result.exit_code == 3
    assert "3 cases segmented, 1 failed" in result.stdout
    assert len(list((tmp_path / "p").glob("*.nii.gz"))) == 3
    assert json.loads((tmp_path / "p" / "failures.json").read_text())[0]["case"] == "case-1"


@pytest.fixture(scope="module")
def predictions(cohort: Path, model: Path, handful: Handful, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    assert handful("predict", model, "-i", cohort, "-o", out).exit_code == 0
    return out


def test_evaluation_leaves_out_what_the_model_was_fitted_on(
    cohort: Path, predictions: Path, tmp_path: Path, handful: Handful
):
    result = handful("evaluate", "-p", predictions, "-r", cohort, "--csv", tmp_path / "r.csv", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["left_out"] == ["case-0", "case-1"]
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {"case-2", "case-3"}
    assert {row["name"] for row in rows} == {"ball", "egg"}


def test_evaluation_scores_the_support_on_request(cohort: Path, predictions: Path, handful: Handful):
    result = handful("evaluate", "-p", predictions, "-r", cohort / "labels", "--with-support", "--json")
    found = json.loads(result.stdout)
    assert found["left_out"] == []
    assert found["summary"][0]["cases"] == 4
    only = handful("evaluate", "-p", predictions, "-r", cohort, "--with-support", "--cases", "case-0", "--json")
    assert json.loads(only.stdout)["summary"][-1]["dice"]["mean"] == pytest.approx(1.0)


def test_evaluation_writes_every_form_of_its_report(cohort: Path, predictions: Path, tmp_path: Path, handful: Handful):
    result = handful(
        "evaluate", "-p", predictions, "-r", cohort, "-o", tmp_path / "r.json", "--summary", tmp_path / "summary.json",
        "--overlays", tmp_path / "overlays", "-i", cohort, "--tolerance", "2",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "ball" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["tolerance_mm"] == 2
    assert "foreground_mean" in json.loads((tmp_path / "summary.json").read_text())
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["case-2.png", "case-3.png"]


def test_a_missing_prediction_exits_with_3(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    handful("predict", model, "-i", cohort, "-o", tmp_path / "p", "--cases", "case-2")
    result = handful("evaluate", "-p", tmp_path / "p", "-r", cohort)
    assert result.exit_code == 3
    assert "case-3" in result.stdout


def test_overlays_without_scans_are_a_mistake(cohort: Path, predictions: Path, tmp_path: Path, handful: Handful):
    result = handful("evaluate", "-p", predictions, "-r", cohort, "--overlays", tmp_path / "o")
    assert result.exit_code == 2


def test_two_reports_in_one_file_are_a_mistake(cohort: Path, tmp_path: Path, handful: Handful):
    same = ("-o", tmp_path / "r.json", "--summary", tmp_path / "r.json")
    result = handful("evaluate", "-p", cohort / "labels", "-r", cohort, *same)
    assert result.exit_code == 2
    assert "name the same file" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "r.json").exists()


def test_a_second_service_on_a_cohort_is_refused(tmp_path: Path, handful: Handful):
    (tmp_path / "images").mkdir()
    with locked(tmp_path / ".handful" / "service"), socket.create_server(("127.0.0.1", 0)) as taken:
        result = handful("serve", tmp_path, "--port", str(taken.getsockname()[1]))  # where it could not start anyway
    assert result.exit_code == 1
    assert f"process {os.getpid()} on" in " ".join(result.stderr.split())


def test_embed_fills_the_cache_that_fit_uses(own: Path, backbone: Path, tmp_path: Path, handful: Handful):
    first, again = (json.loads(handful("embed", "-i", own, "--backbone", backbone, "--json").stdout) for _ in "ab")
    assert (first["slices"], first["computed"], again["computed"]) == (24, 24, 0)
    assert first["mib"] > 0
    embedding = ("--set", "similarity=embedding", "--backbone", backbone)
    assert handful("fit", "nearest-slice", "-i", own, "-o", tmp_path / "m", *embedding).exit_code == 0
    assert json.loads(handful("embed", "-i", own, "--backbone", backbone, "--json").stdout)["computed"] == 0
    assert len(list((own / ".handful" / "embeddings").iterdir())) == 24


def test_the_demo_fits_predicts_and_scores(backbone: Path, tmp_path: Path, handful: Handful):
    quick = ("--set", "train.iterations=2", "--set", "views=1")
    result = handful("demo", "-o", tmp_path / "demo", "--backbone", backbone, *quick)
    assert result.exit_code == 0, result.output
    assert "handful fit" in result.stdout
    assert len(list((tmp_path / "demo" / "predictions").glob("*.nii.gz"))) == 5
    assert len(list((tmp_path / "demo" / "overlays").glob("*.png"))) == 5
    assert len(json.loads((tmp_path / "demo" / "report.json").read_text())["rows"]) == 25


def test_pretrain_writes_a_picture_of_its_training_data(tmp_path: Path, handful: Handful):
    assert handful("pretrain", "--preview", tmp_path / "look.png", "--side", "64").exit_code == 0
    assert (tmp_path / "look.png").stat().st_size > 1000
    assert handful("pretrain").exit_code == 2


def test_pretrain_shows_the_training_data_of_handful_small(tmp_path: Path, handful: Handful):
    shown = ["pretrain", "--model", "handful-small", "--preview", tmp_path / "wide.png", "--side", "64"]
    assert handful(*shown).exit_code == 0
    assert (tmp_path / "wide.png").stat().st_size > 1000
    assert handful(*shown, "--workers", "2").exit_code == 2


def test_pretrain_makes_a_backbone_that_fit_takes(cohort: Path, tmp_path: Path, handful: Handful):
    short = ("--side", "64", "--iterations", "1", "--workers", "1")
    assert handful("pretrain", "-o", tmp_path / "b", *short).exit_code == 0
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert "already trained" in handful("pretrain", "-o", tmp_path / "b", *short).output
    other = handful("pretrain", "-o", tmp_path / "b", *short, "--seed", "1")
    assert other.exit_code == 2
    assert "contains another backbone" in other.output
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == weights
    assert handful("pretrain", "-o", tmp_path / "b", *short, "--seed", "1", "--overwrite").exit_code == 0
    assert (tmp_path / "b" / "model.safetensors").read_bytes() != weights
    embedding = ("--set", "similarity=embedding", "--backbone", tmp_path / "b", "--no-cache")
    assert handful("fit", "nearest-slice", "-i", cohort, "-o", tmp_path / "m", *embedding).exit_code == 0


@pytest.mark.parametrize("lack", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_lack_of_memory_is_explained(
    lack: Exception, cohort: Path, handful: Handful, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise lack

    monkeypatch.setattr("handful.data.files.read_cohort", fail)
    found = handful("doctor", "-i", cohort)
    assert found.exit_code == 1
    assert "not enough memory" in found.stderr


def test_the_recorded_command_has_names_in_place_of_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["handful", "experiment", "run", "/home/jane doe/plan.toml", "-o=a/b/out", "--set", "x=1"]
    )
    assert command_line() == "handful experiment run plan.toml -o=out --set x=1"
