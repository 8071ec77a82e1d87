"""A cohort of two sequences through the commands, as typed."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from handful.checkpoint.model import open_model
from handful.data.files import read_volume, write_label_map, write_volume
from handful.data.volume import Volume
from phantoms import LABELS, SHAPE, sequence_phantom
from small_cohort import Handful

NET = (
    "--set",
    "encoder=none",
    "--set",
    "channels=4",
    "--set",
    "side=32",
    "--set",
    "train.iterations=3",
    "--set",
    "roi_margin=none",
    "-q",
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled cases in nnU-Net's layout; images of a fourth in imagesTs."""
    folder = tmp_path_factory.mktemp("raw")
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    for seed in range(4):
        image, reference = sequence_phantom(seed)
        for number, channel in enumerate(image.array):
            part = folder / ("imagesTs" if seed == 3 else "imagesTr")
            write_volume(part / f"case-{seed}_{number:04d}.nii.gz", Volume(channel[None], image.geometry))
        if seed < 3:
            write_label_map(folder / "labelsTr" / f"case-{seed}.nii.gz", reference)
    labels = {"background": 0} | {name: value for value, name in LABELS.as_dict().items()}
    content = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "name": "two"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def fitted(raw: Path, backbone: Path, handful: Handful, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "unet"
    result = handful("fit", "unet", "-i", raw, "-o", out, "--cases", "case-0,case-1", "--backbone", backbone, *NET)
    assert result.exit_code == 0, result.output
    assert "all 2 sequences are used: T1, FLAIR" in result.output
    return out


def test_doctor_lists_the_sequences(raw: Path, handful: Handful) -> None:
    result = handful("doctor", "-i", raw, "--json", "-q")
    assert result.exit_code == 0, result.output
    messages = [finding["message"] for finding in json.loads(result.stdout)["findings"]]
    assert messages.count("2 sequences: T1, FLAIR") == 3


def test_a_model_of_two_sequences_predicts_resumes_and_is_evaluated(
    raw: Path, fitted: Path, tmp_path: Path, handful: Handful
) -> None:
    out = tmp_path / "predictions"
    predict = ("predict", fitted, "-i", raw, "-o", out, "--preview", "-q", "--json")
    result = handful(*predict)
    assert result.exit_code in (0, 3), result.output
    assert json.loads(result.stdout)["done"] == ["case-0", "case-1", "case-2"]
    assert nib.load(out / "case-2.nii.gz").shape == SHAPE
    assert (out / "previews" / "case-2.png").exists()
    assert json.loads(handful(*predict).stdout)["skipped"] == ["case-0", "case-1", "case-2"]
    report = handful("evaluate", "-p", out, "-r", raw, "--images", raw, "--overlays", tmp_path / "overlays", "--json")
    assert report.exit_code == 0, report.output
    assert len(list((tmp_path / "overlays").iterdir())) == 1  # the model was fitted on the two others
    review = handful(
        "review", out, "-m", fitted, "-i", raw, "-o", tmp_path / "review", "--reverse", "nearest-slice", "-q"
    )
    assert review.exit_code == 0, review.output
    assert (tmp_path / "review" / "review.html").exists()


def test_images_without_dataset_json_get_the_names_of_the_model(
    raw: Path, fitted: Path, tmp_path: Path, handful: Handful
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        file = f"case-3_{number:04d}.nii.gz"
        (folder / file).write_bytes((raw / "imagesTs" / file).read_bytes())
    result = handful("predict", fitted, "-i", folder, "-o", tmp_path / "a", "-q", "--json")
    assert json.loads(result.stdout)["done"] == ["case-3"]
    assert handful("predict", fitted, "-i", raw / "imagesTs", "-o", tmp_path / "b", "-q").exit_code in (0, 3)
    image, _ = sequence_phantom(3)
    file = tmp_path / "both.nii.gz"
    nib.save(nib.Nifti1Image(np.moveaxis(image.array, 0, -1), image.geometry.affine), file)
    result = handful("predict", fitted, "-i", file, "-o", tmp_path / "c.nii.gz", "-q")
    assert result.exit_code == 0, result.output
    found = [nib.load(tmp_path / name).get_fdata() for name in ("a/case-3.nii.gz", "b/case-3.nii.gz", "c.nii.gz")]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_scans_with_other_sequences_are_refused_by_name(
    raw: Path, fitted: Path, tmp_path: Path, handful: Handful
) -> None:
    result = handful("predict", fitted, "-i", raw, "-o", tmp_path / "a", "--channels", "T1,T2", "-q")
    assert result.exit_code == 3
    assert "the model was fitted on T1, FLAIR, and this scan has T1, T2" in " ".join(result.output.split())
    turned = handful("predict", fitted, "-i", raw, "-o", tmp_path / "b", "--channels", "FLAIR,T1", "-q", "--json")
    assert json.loads(turned.stdout)["done"] == ["case-0", "case-1", "case-2"]
    file = raw / "imagesTs" / "case-3_0000.nii.gz"
    alone = handful("predict", fitted, "-i", file, "-o", tmp_path / "c.nii.gz", "-q")
    assert alone.exit_code != 0
    assert "2 sequences are expected" in " ".join(alone.output.split())


def test_export_to_nnunet_writes_all_sequences_with_their_names(raw: Path, tmp_path: Path, handful: Handful) -> None:
    result = handful("export", "nnunet", "-i", raw, "-o", tmp_path, "--cases", "case-0", "--rest")
    assert result.exit_code == 0, result.output
    dataset = tmp_path / "Dataset501_handful"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "FLAIR"}
    image, _ = sequence_phantom(0)
    for number in range(2):
        written = read_volume(dataset / "imagesTr" / f"case-0_{number:04d}.nii.gz")
        assert np.array_equal(written.array[0], image.array[number])
    assert (dataset / "imagesTs" / "case-2_0001.nii.gz").exists()


def test_three_of_four_sequences_are_said_for_a_backbone(backbone: Path, tmp_path: Path, handful: Handful) -> None:
    names = "T1,T1ce,T2,FLAIR"
    for part in ("images", "labels"):
        (tmp_path / "four" / part).mkdir(parents=True)
    image, reference = sequence_phantom(0, tuple(names.split(",")))
    scan = nib.Nifti1Image(np.moveaxis(image.array, 0, -1), image.geometry.affine)
    nib.save(scan, tmp_path / "four" / "images" / "a.nii.gz")
    write_label_map(tmp_path / "four" / "labels" / "a.nii.gz", reference)
    fit = (
        "fit",
        "nearest-slice",
        "-i",
        tmp_path / "four",
        "--channels",
        names,
        "--backbone",
        backbone,
        "-q",
        "--no-cache",
    )
    result = handful(*fit, "-o", tmp_path / "three")
    assert result.exit_code == 0, result.output
    assert "3 of 4 sequences are used: T1, T1ce, T2 (of T1, T1ce, T2, FLAIR)" in " ".join(result.output.split())
    result = handful(*fit, "-o", tmp_path / "chosen", "--set", "slicer.sequences=FLAIR")
    assert result.exit_code == 0, result.output
    assert open_model(tmp_path / "chosen").record.slicer["sequences"] == ["FLAIR"]
    shown = handful("model", "inspect", tmp_path / "chosen")
    assert "T1, T1ce, T2, FLAIR" in " ".join(shown.output.split())


def test_slices_of_sequences_are_embedded_and_suggested(
    raw: Path, backbone: Path, tmp_path: Path, handful: Handful
) -> None:
    cache, own = tmp_path / "cache", Path(shutil.copytree(raw, tmp_path / "own"))
    embedded = handful("embed", "-i", own, "--backbone", backbone, "--cache", cache, "-q", "--json")
    assert embedded.exit_code == 0, embedded.output
    options = ("--backbone", backbone, "--cache", cache, "-q", "--json")
    for label in (own / "labelsTr").iterdir():
        listed = {"axis": 1, "labelled": [2]}
        label.with_name(label.name.replace(".nii.gz", ".slices.json")).write_text(json.dumps(listed))
    suggested = handful("suggest", "-i", own, "-o", tmp_path / "suggestions", "--count", "2", *options)
    assert suggested.exit_code == 0, suggested.output
    assert len(json.loads(suggested.stdout)["suggestions"]) == 2
    assert (tmp_path / "suggestions" / "suggestions.png").exists()
