"""Masks of everything in a cohort: numbered by area, listed, pictured, resumed, and never over a file of others."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small_cohort
from handful.cohort.everything import FindMasksConfig, find_masks
from handful.data.cases import Case
from handful.data.files import read_cohort, read_label_map
from handful.data.volume import Labels
from handful.errors import BusyError, SettingsError
from handful.jobs.lock import locked
from handful.methods.everything import EverythingConfig

FOUND = FindMasksConfig(masks=EverythingConfig(points=6), device="cpu")
ANY = EverythingConfig(points=2, least_iou=0, least_stability=0)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> FindMasksConfig:
    """A tiny random backbone, of which every mask is kept."""
    name = str(small_cohort.write_backbone(tmp_path_factory.mktemp("tiny")))
    return FindMasksConfig(backbone=name, masks=ANY, device="cpu", preview=False)


def discs(path: Path, radii: tuple[int, ...] = (22, 9, 14)) -> Path:
    """A picture with bright discs of these radii, and a little noise."""
    y, x = np.mgrid[:128, :128]
    picture = 30 + 3 * np.random.default_rng(0).standard_normal((128, 128))
    for radius, (row, column) in zip(radii, ((30, 32), (96, 30), (80, 92)), strict=False):
        picture[(y - row) ** 2 + (x - column) ** 2 < radius**2] += 150
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    discs(tmp_path / "scans" / "a.png")
    discs(tmp_path / "scans" / "b.jpg", radii=(20,))
    return tmp_path / "scans"


def cases_in(folder: Path) -> tuple[Case, ...]:
    return read_cohort(folder, images_only=True).cases


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "masks.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_masks_are_numbered_by_area_and_listed(pictures: Path, tmp_path: Path):
    result = find_masks(cases_in(pictures), tmp_path / "out", FOUND)
    assert result.done == ("a", "b")
    label_map = read_label_map(tmp_path / "out" / "a.png")
    rows = [row for row in rows_of(tmp_path / "out") if row["case"] == "a"]
    assert len(rows) == result.masks["a"] == len(label_map.labels) >= 3
    assert [int(row["label"]) for row in rows] == list(range(1, len(rows) + 1))
    pixels = [int(row["pixels"]) for row in rows]
    assert pixels == sorted(pixels, reverse=True)
    counts = np.bincount(label_map.array.ravel(), minlength=len(rows) + 1)[1:]
    assert [int(row["visible"]) for row in rows] == counts.tolist()
    assert all(0.3 <= float(row["predicted_iou"]) <= 1 and row["unit"] == "pixel" for row in rows)
    centres = [int(label_map.array[column, row, 0]) for row, column in ((30, 32), (80, 92), (96, 30))]
    assert 0 < centres[0] < centres[1] < centres[2]
    assert (tmp_path / "out" / "b.png").exists()
    assert sorted(path.name for path in (tmp_path / "out" / "previews").iterdir()) == ["a.png", "b.png"]


def test_what_is_done_is_not_done_again_and_other_settings_do_all_again(
    pictures: Path, few: FindMasksConfig, tmp_path: Path
):
    out, cases = tmp_path / "out", cases_in(pictures)
    find_masks(cases, out, few)
    table = (out / "masks.csv").read_bytes()
    again = find_masks(cases, out, few)
    assert (again.done, again.skipped) == ((), ("a", "b"))
    assert (out / "masks.csv").read_bytes() == table
    assert find_masks(cases[:1], out, replace(few, preview=True)).done == ("a",)
    (out / "a.png").unlink()
    assert find_masks(cases, out, few).done == ("a",)
    assert find_masks(cases[:1], out, replace(few, masks=replace(ANY, points=3))).done == ("a",)


def test_a_case_that_fails_is_listed_and_the_others_are_done(pictures: Path, few: FindMasksConfig, tmp_path: Path):
    (pictures / "a.png").write_bytes((pictures / "a.png").read_bytes()[:900])
    result = find_masks(cases_in(pictures), tmp_path / "out", few)
    assert result.done == ("b",)
    assert [failure["case"] for failure in json.loads((tmp_path / "out" / "failures.json").read_text())] == ["a"]
    discs(pictures / "a.png")
    find_masks(cases_in(pictures), tmp_path / "out", few)
    assert not (tmp_path / "out" / "failures.json").exists()


def test_scans_and_files_of_others_are_never_replaced(pictures: Path, few: FindMasksConfig, tmp_path: Path):
    before, cases = (pictures / "a.png").read_bytes(), cases_in(pictures)[:1]
    assert [failure.case for failure in find_masks(cases, pictures, few).failures] == ["a"]
    assert (pictures / "a.png").read_bytes() == before
    (tmp_path / "out").mkdir()
    shutil.copyfile(pictures / "a.png", tmp_path / "out" / "a.png")
    result = find_masks(cases, tmp_path / "out", few)
    assert "add --overwrite" in result.failures[0].reason
    assert find_masks(cases, tmp_path / "out", replace(few, overwrite=True)).done == ("a",)


def test_a_volume_has_its_masks_by_slice_in_square_millimetres(folder: Path, few: FindMasksConfig, tmp_path: Path):
    case = cases_in(folder)[0]
    result = find_masks([case], tmp_path / "out", few)
    volume, rows = case.read_image(), rows_of(tmp_path / "out")
    assert read_label_map(tmp_path / "out" / "case-0.nii.gz").geometry.shape == volume.geometry.shape
    assert result.masks == {"case-0": len(rows)}
    stack = few.slicer.view(volume)
    for row in rows:
        assert row["plane"] == stack.plane
        assert 0 <= int(row["slice"]) < len(stack)
        assert float(row["area"]) == pytest.approx(int(row["pixels"]) * stack.spacing[1] * stack.spacing[2], rel=1e-5)


def test_a_slice_without_contrast_has_no_mask(few: FindMasksConfig, tmp_path: Path):
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(tmp_path / "scans" / "flat.png")
    result = find_masks(cases_in(tmp_path / "scans"), tmp_path / "out", few)
    assert result.empty == ("flat",)
    assert not read_label_map(tmp_path / "out" / "flat.png", Labels.of({1: "mask 1"})).array.any()


def test_a_folder_in_use_and_a_wrong_number_of_workers_are_refused(
    pictures: Path, few: FindMasksConfig, tmp_path: Path
):
    with locked(tmp_path / "out" / ".handful"), pytest.raises(BusyError):
        find_masks(cases_in(pictures), tmp_path / "out", few)
    with pytest.raises(SettingsError, match="workers"):
        FindMasksConfig(workers=0)
