"""Every command in a document is one that handful understands; those of the guides are run as they stand there."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import dicom_series
import small_cohort
import tiny_models
from docs.scripts.commands import ROOT, blocks, commands, pages
from docs.scripts.reference import every_command
from handful.cli import app
from handful.data.formats import read_volume
from handful.synthesis.episodes import phantom_cohort

GUIDES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "start").glob("*.md")),
    *sorted((ROOT / "docs").glob("how-to/*.md")),
]
SHELL = {"cp", "mkdir", "mv"}
ELSEWHERE = {"make", "pip", "cd", "python", "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"}
"""Commands of other programs, which are shown and not run."""
SHORT = {
    "auto": ("unet.train.iterations=2", "self_training.train.iterations=2"),
    "auto-sam": ("train.iterations=2", "views=2"),
    "auto-sam-unet": ("train.iterations=2", "views=2"),
    "ensemble": ("auto_sam_unet.train.iterations=2", "auto_sam_unet.views=2", "unet.train.iterations=2"),
    "unet": ("train.iterations=2", "contrast.iterations=2"),
    "fate": (),
    "nearest-slice": (),
    "zero-shot": (),
}
"""Settings that make a fit short; all other methods take `train.iterations`."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def handful_commands(page: Path) -> Iterator[list[str]]:
    """The words after `handful` of every command in the page's blocks of code, run or not."""
    for language in ("bash", "text", "console"):
        for block in blocks(page, language):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("handful "):
                    yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_command_is_one_that_handful_understands(page: Path):
    known = {called[1:]: command for called, command in every_command(typer.main.get_command(app))}
    for words in handful_commands(page):
        called = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known), None)
        assert called or words == ["--version"], f"there is no command handful {' '.join(words)}"
        if called:
            known[called].make_context(" ".join(called), words[len(called) :])


def test_every_command_of_handful_is_shown_in_the_guides():
    shown = {" ".join(words) for page in GUIDES for words in handful_commands(page)}
    left_out = {"pretrain"}  # for those who make a backbone; its help has an example
    for called, _ in every_command(typer.main.get_command(app)):
        rest = " ".join(called[1:])
        assert rest in left_out or any(one.startswith(rest) for one in shown), f"no guide shows handful {rest}"


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guides take for granted: cohorts, a scan with its reference, a model, and a backbone."""
    folder = tmp_path_factory.mktemp("material")
    cohort = small_cohort.write_cohort(folder / "my_cohort", cases=6)
    tiny_models.tiny_sam2_video(side=64).model.save_pretrained(folder / "tiny")
    shutil.copyfile(cohort / "images" / "case-0.nii.gz", folder / "scan.nii.gz")
    shutil.copyfile(cohort / "labels" / "case-0.nii.gz", folder / "truth.nii.gz")
    shutil.copytree(cohort / "images", folder / "my_scans")
    dicom_series.write(folder / "dicom_folder", dicom_series.of_volume(read_volume(folder / "scan.nii.gz")))
    for data_set in ("hearts", "livers"):
        shutil.copytree(cohort, folder / "my_data" / data_set)
    (folder / "more_labels").mkdir()
    shutil.move(cohort / "labels" / "case-5.nii.gz", folder / "more_labels")
    write_pictures(folder / "my_pictures")
    (folder / "boxes.csv").write_text("case,label,x_min,y_min,x_max,y_max\npatient_4,lesion,12,14,27,29\n", "utf-8")
    run(["fit", "fate", "-i", str(cohort), "-o", str(folder / "model"), "--backbone", str(folder / "tiny"), "-q"])
    return folder


def write_pictures(folder: Path) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(5):
        picture = generator.integers(0, 60, (48, 48), dtype=np.uint8)
        picture[10 + number : 30, 12:28] += 150
        label = np.zeros_like(picture)
        label[10 + number : 30, 12:28] = 1
        Image.fromarray(picture).save(folder / "images" / f"patient_{number}.png")
        if number < 4:
            Image.fromarray(label).save(folder / "labels" / f"patient_{number}.png")
    content = {"labels": {"0": "background", "1": "lesion"}}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def as_sequences(cohort: Path, names: tuple[str, ...] = ("T1", "FLAIR")) -> None:
    """Give each scan of a cohort the named sequences, in one file each."""
    for image in sorted((cohort / "images").iterdir()):
        case = image.name.removesuffix(".nii.gz")
        for number in range(len(names)):
            shutil.copyfile(image, image.with_name(f"{case}_{number:04}.nii.gz"))
        image.unlink()
    described = json.loads((cohort / "dataset.json").read_text(encoding="utf-8"))
    content = described | {"channel_names": {str(number): name for number, name in enumerate(names)}}
    (cohort / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.learning
@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_the_commands_of_a_guide_run_in_their_order(
    page: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("handful.cohort.demo.phantom_cohort", partial(phantom_cohort, shape=(48, 44, 6)))
    monkeypatch.chdir(tmp_path)
    shown = commands(page)
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    if any(pair == ("-o", "model") for words in shown for pair in pairwise(words)):
        shutil.rmtree(tmp_path / "model")  # the guide makes its own
    if any(words[0] == "cp" and words[-1] == "my_cohort" for words in shown):
        shutil.rmtree(tmp_path / "my_cohort")
    if page.stem == "sequences":
        as_sequences(tmp_path / "my_cohort")
    for plan in blocks(page, "toml"):
        (tmp_path / "plan.toml").write_text(plan.replace("iterations = 300", "iterations = 2"), encoding="utf-8")
    for words in shown:
        carry_out(words, tmp_path)


def carry_out(words: list[str], folder: Path) -> None:
    if words[0] == "handful":
        if words[1:3] == ["export", "nnunet-predictions"]:
            predict_as_nnunet(folder)
        if words[1] == "serve":
            serve(words[1:], folder)
        else:
            run(shortened(words[1:], folder / "tiny"))
    elif words[0] in SHELL:
        subprocess.run(" ".join(words), cwd=folder, shell=True, check=True)
    else:
        assert words[0] in ELSEWHERE, f"nobody runs {' '.join(words)}"


def serve(arguments: list[str], folder: Path) -> None:
    """Starts the page on a free port, opens it once, and stops it."""
    command = [sys.executable, "-c", "from handful.cli import main; main()", *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[-1]
            with urllib.request.urlopen(address) as answer:
                assert b"<title>handful" in answer.read()
        finally:
            process.terminate()


def run(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"handful {shlex.join(arguments)}\n{result.output}"


def shortened(arguments: list[str], backbone: Path) -> list[str]:
    """The same command with a tiny backbone and a training of two steps."""
    command = arguments[0]
    if "--backbone" in arguments:
        place = arguments.index("--backbone") + 1
        arguments = [*arguments[:place], str(backbone), *arguments[place + 1 :]]
    elif command in ("fit", "demo", "compare", "embed", "everything"):
        arguments = [*arguments, "--backbone", str(backbone)]
    if command == "annotate":
        arguments = [*arguments, "--clicks", "1", "--slices", "1"]
    if command == "compare" and "--methods" not in arguments:
        arguments = [*arguments, "--methods", "nearest-slice,fate", "--shots", "1", "--splits", "1"]
    if command == "compare" or arguments[:2] == ["experiment", "run"]:
        arguments = [*arguments, "--workers", "1"]
    if command not in ("fit", "demo"):
        return arguments
    named = command == "fit" and not arguments[1].startswith("-")
    method = arguments[1] if named else {"fit": "auto", "demo": "few-shot-prompts"}[command]
    short = SHORT.get(method, ("train.iterations=2",))
    return [*arguments, *(word for setting in short for word in ("--set", setting))]


def predict_as_nnunet(folder: Path) -> None:
    """Stands in for nnUNetv2_predict: the training labels, under the names of the scans to be predicted."""
    data_set = folder / "nnUNet_raw" / "Dataset501_handful"
    label_map = next((data_set / "labelsTr").glob("*.nii.gz"))
    (folder / "raw").mkdir()
    for scan in (data_set / "imagesTs").glob("*_0000.nii.gz"):
        shutil.copyfile(label_map, folder / "raw" / scan.name.replace("_0000", ""))
