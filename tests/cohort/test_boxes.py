"""Boxes of unlabelled pictures become masks, from which self-training learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.backbones.base import Backbone
from handful.backbones.catalog import open_backbone
from handful.cohort.boxes import with_boxes
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError
from handful.evaluation.metrics import overlap
from handful.methods.self_training.method import SelfTraining
from handful.tuning.loop import TrainConfig

LESION = Labels((1,), ("lesion",))
SIZE = (96, 64)
"""Columns and rows of the pictures."""


def picture(seed: int, centre: tuple[int, int]) -> Case:
    """A bright disc on a darker, noisy ground; voxels are (column, row, 1)."""
    columns, rows = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= 14**2
    noise = np.random.default_rng(seed).normal(0, 6, SIZE)
    pixels = np.clip(60 + 120 * disc + noise, 0, 255).astype(np.uint8)
    geometry = Geometry((*SIZE, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), "pixel")
    reference = LabelMap(disc[..., None].astype(np.int16), geometry, LESION)
    return Case(f"lesion-{seed}", Volume(pixels[None, ..., None], geometry), reference, LESION)


CASES = [picture(seed, centre) for seed, centre in enumerate([(40, 30), (60, 24), (30, 40), (52, 36)])]


def support() -> SupportSet:
    return SupportSet((CASES[0],), LESION, unlabelled=UnlabelledScans.of(tuple(CASES[1:])))


def box_file(folder: Path, *lines: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text("\n".join(["case,label,x_min,y_min,x_max,y_max", *lines]), "utf-8")
    return path


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return open_backbone("handful-tiny", "cpu", None)


def test_a_box_becomes_the_mask_of_what_is_in_it(tmp_path: Path, tiny: Backbone):
    found = with_boxes(support(), box_file(tmp_path, "lesion-1,lesion,46,10,74,38"), Slicer(), tiny)
    assert [case.name for case in found.unlabelled.cases] == ["lesion-1"], "the others have no box"
    mask, truth = found.unlabelled.labels["lesion-1"], CASES[1].read_reference()
    assert overlap(mask.array == 1, truth.array == 1).dice > 0.8
    assert mask.geometry.shape == truth.geometry.shape


def test_self_training_learns_from_these_masks(tmp_path: Path, backbone: Backbone):
    masked = replace(support(), unlabelled=replace(
        support().unlabelled, labels={case.name: case.read_reference() for case in CASES[1:]}))  # fmt: skip
    method = SelfTraining(initial="none", encoder="none", channels=4, side=32, batch=2, gate=0.0, train=TrainConfig(
        iterations=6, learning_rate=1e-3, ema=0.9))  # fmt: skip
    moved = {name: replace(one, array=np.roll(one.array, 20, 0)) for name, one in masked.unlabelled.labels.items()}
    other = replace(masked, unlabelled=replace(masked.unlabelled, labels=moved))
    one, same, another = (method.fit(cases, backbone).learned() for cases in (masked, masked, other))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != another[name]).any() for name in one)


@pytest.mark.parametrize("line", ["lesion-1,lesion,46,10,96,38", "lesion-1,lesion,-1,10,74,38"])
def test_a_box_outside_the_picture_is_refused(line: str, tmp_path: Path, backbone: Backbone):
    with pytest.raises(InputError, match="leaves the picture of 96 × 64 pixels"):
        with_boxes(support(), box_file(tmp_path, line), Slicer(), backbone)


def test_boxes_of_volumes_are_refused(tmp_path: Path, backbone: Backbone):
    volume = Volume(np.zeros((1, 8, 8, 5), np.uint8), Geometry((8, 8, 5), np.eye(4)))
    cases = replace(support(), unlabelled=UnlabelledScans((Case("scan", volume),)))
    with pytest.raises(InputError, match="5 slices, but boxes are for pictures"):
        with_boxes(cases, box_file(tmp_path, "scan,lesion,0,0,1,1"), Slicer(), backbone)
