"""Why an answer came out, judged by the picture's pixels: left what was found, right what the model was shown."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from handful.backbones.base import MemoryBackbone
from handful.data.cases import Case
from handful.data.label_colours import COLOURS
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import GeometryMismatch
from handful.methods.fate.method import Fate, FateSegmenter
from handful.methods.nearest_slice import NearestSlice
from handful.reports.explanation import write_preview
from handful.reports.overlay import write_overlay
from look import near, pixels
from phantoms import LABELS, phantom, phantom_case, support_set

SUPPORTS_LEFT = 700
"""Column of the picture, in pixels, right of which only supports and their captions stand."""


@pytest.fixture(scope="module")
def video() -> MemoryBackbone:
    return tiny_models.tiny_sam2_video(side=64)


@pytest.fixture(scope="module")
def segmenter(video: MemoryBackbone) -> FateSegmenter:
    return Fate(slicer=Slicer(plane="axial", window=(0.0, 400.0)), top_k=5).fit(support_set(2), video)


def preview(path: Path, segmenter: FateSegmenter, prediction: LabelMap | None = None, seed: int = 7) -> np.ndarray:
    """The picture of a phantom; the prediction is drawn by hand, as random weights find nothing."""
    image, truth = phantom(seed)
    _, reasons = segmenter.predict_explained(image)
    write_preview(path, image, prediction or truth, segmenter, reasons, "case")
    return pixels(path)


def test_a_row_for_each_slice_and_a_column_for_each_support(
    segmenter: FateSegmenter, video: MemoryBackbone, tmp_path: Path
):
    labels = phantom(7)[1]
    one = np.where(np.arange(6)[None, :, None] == 2, labels.array, 0)
    few = dataclasses.replace(segmenter.method, top_k=3).fit(support_set(2), video)
    four_rows = preview(tmp_path / "a.png", segmenter)
    one_row = preview(tmp_path / "b.png", segmenter, dataclasses.replace(labels, array=one))
    three_columns = preview(tmp_path / "c.png", few)
    assert (labels.array > 0).any(axis=(0, 2)).sum() == 4
    assert four_rows.shape[0] - one_row.shape[0] == pytest.approx(3 * 2.3 * 150, abs=3)
    assert four_rows.shape[1] - three_columns.shape[1] == pytest.approx(2 * 1.85 * 150, abs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_the_prediction_and_the_supports_are_drawn_in_the_colours_of_their_labels(
    segmenter: FateSegmenter, tmp_path: Path
):
    truth = phantom(7)[1]
    nothing = dataclasses.replace(truth, array=np.zeros_like(truth.array))
    with_both = preview(tmp_path / "a.png", segmenter)
    without = preview(tmp_path / "b.png", segmenter, nothing)
    rows = slice(130, 130 + 3 * 345)
    for colour in COLOURS[:2]:
        assert near(with_both[rows, :360], colour) > near(without[rows, :360], colour) + 500
        assert near(with_both[rows, SUPPORTS_LEFT:], colour) > 500


def test_other_supports_make_another_picture(segmenter: FateSegmenter, video: MemoryBackbone, tmp_path: Path):
    other = SupportSet((phantom_case(2), phantom_case(3)), LABELS)
    again, before, after = (
        preview(tmp_path / name, fitted)
        for name, fitted in (
            ("a.png", segmenter),
            ("b.png", segmenter),
            ("c.png", segmenter.method.fit(other, video)),
        )
    )
    assert (again == before).all()
    difference = (before != after).any(axis=-1)
    assert difference[:, SUPPORTS_LEFT:].sum() > 10_000
    assert not difference[130:, :350].any()


def test_a_method_without_supports_gets_the_contact_sheet(video: MemoryBackbone, tmp_path: Path):
    image, truth = phantom(7)
    nearest = NearestSlice().fit(support_set(1), video)
    found, reasons = nearest.predict_explained(image)
    assert reasons is None
    assert np.array_equal(found.array, nearest.predict(image).array)
    write_preview(tmp_path / "a.png", image, truth, nearest, reasons, "case")
    write_overlay(tmp_path / "b.png", image, truth, slicer=nearest.slicer, case="case")
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()


def test_a_slice_without_signal_has_no_labelled_slices(segmenter: FateSegmenter, tmp_path: Path):
    image, _ = phantom(7)
    blank = dataclasses.replace(image, array=np.full_like(image.array, 100))
    found, reasons = segmenter.predict_explained(blank)
    write_preview(tmp_path / "a.png", blank, found, segmenter, reasons)
    assert near(pixels(tmp_path / "a.png")[130:-80, SUPPORTS_LEFT:], "#8B9096") > 200


def test_a_coloured_picture_stands_next_to_coloured_ones_and_grey_ones(video: MemoryBackbone, tmp_path: Path):
    def picture(name: str, channels: int, value: int) -> Case:
        geometry = Geometry((40, 30, 1), np.eye(4), unit="pixel")
        array = np.zeros((channels, *geometry.shape), np.uint8)
        array[0] = value
        array[:, :5] = 90
        labels = np.zeros(geometry.shape, np.int16)
        labels[10:20, 5:25] = 1
        known = Labels((1,), ("a $patch$",))
        return Case(name, Volume(array, geometry), LabelMap(labels, geometry, known), known)

    support = SupportSet((picture("red", 3, 200), picture("grey", 1, 200)), Labels((1,), ("a $patch$",)))
    segmenter = Fate(slicer=Slicer(window="none")).fit(support, video)
    query = picture("query", 3, 100)
    _, reasons = segmenter.predict_explained(query.image)
    write_preview(tmp_path / "a.png", query.image, query.reference, segmenter, reasons)
    shown = pixels(tmp_path / "a.png")
    assert near(shown[:, :360], "#640000", 10) > 10_000
    assert near(shown[:, SUPPORTS_LEFT:], "#C80000", 10) > 5_000
    assert near(shown[:, SUPPORTS_LEFT:], "#C8C8C8", 10) > 5_000


def test_a_prediction_on_another_grid_is_refused_and_nothing_written(segmenter: FateSegmenter, tmp_path: Path):
    image, truth = phantom(7)
    _, reasons = segmenter.predict_explained(image)
    moved = LabelMap(truth.array, Geometry(truth.array.shape, np.eye(4)), LABELS)
    with pytest.raises(GeometryMismatch, match="preview"):
        write_preview(tmp_path / "a.png", image, moved, segmenter, reasons)
    assert not list(tmp_path.iterdir())


def test_no_label_is_left_out_of_the_picture_silently(video: MemoryBackbone, tmp_path: Path):
    """Eleven labels in every slice: nine lines of words, and one that counts the others."""
    geometry = Geometry((44, 20, 1), np.eye(4), unit="pixel")
    array = np.random.default_rng(0).uniform(0, 255, (1, *geometry.shape)).astype(np.uint8)
    labels = np.repeat(np.arange(1, 12), 4)[:, None, None].repeat(20, axis=1).astype(np.int16)
    known = Labels(tuple(range(1, 12)), tuple(f"part {value}" for value in range(1, 12)))
    case = Case("many", Volume(array, geometry), LabelMap(labels, geometry, known), known)
    segmenter = Fate().fit(SupportSet((case,), known), video)
    _, reasons = segmenter.predict_explained(case.image)
    assert not torch.isnan(reasons.object_score).any()
    write_preview(tmp_path / "a.png", case.image, case.reference, segmenter, reasons)
    shown = pixels(tmp_path / "a.png")[130 : 130 + 330, 360:SUPPORTS_LEFT]
    lines = (np.abs(shown - [16, 18, 20]).max(axis=(1, 2)) > 60).astype(int)
    assert (np.diff(lines) == 1).sum() == 10
