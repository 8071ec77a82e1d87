"""The contact sheet, judged by its pixels."""

import numpy as np
import pytest

from handful.data.label_colours import COLOURS
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import GeometryMismatch
from handful.reports.overlay import write_overlay
from look import near, pixels

SIZE = (40, 30, 20)
LABELS = Labels((1, 2), ("liver", "spleen"))


def label_map(boxes: dict[int, tuple[slice, slice, slice]], spacing=(1.0, 1.0, 5.0), size=SIZE) -> LabelMap:
    array = np.zeros(size, dtype=np.int16)
    for value, box in boxes.items():
        array[box] = value
    return LabelMap(array, Geometry(size, np.diag([*spacing, 1.0])), LABELS)


def scan(labels: LabelMap, channels: int = 1) -> Volume:
    grey = np.random.default_rng(0).uniform(90, 110, (channels, *labels.array.shape))
    return Volume(grey.astype(np.float32), labels.geometry)


LIVER = {1: (slice(10, 25), slice(8, 20), slice(4, 6))}
SPLEEN = {2: (slice(28, 34), slice(10, 18), slice(4, 6))}


def test_each_predicted_label_is_drawn_in_its_colour(tmp_path):
    labels = label_map(LIVER | SPLEEN)
    write_overlay(tmp_path / "a.png", scan(labels), labels)
    with_both = pixels(tmp_path / "a.png")
    write_overlay(tmp_path / "b.png", scan(labels), label_map(LIVER))
    liver_only = pixels(tmp_path / "b.png")
    assert near(with_both, COLOURS[0]) > 1000
    assert near(with_both, COLOURS[1]) > 2 * near(liver_only, COLOURS[1])


def test_the_reference_is_a_white_line_over_the_prediction(tmp_path):
    labels = label_map(LIVER)
    write_overlay(tmp_path / "a.png", scan(labels), labels, slicer=Slicer(window=(0.0, 400.0)))
    write_overlay(tmp_path / "b.png", scan(labels), labels, labels, slicer=Slicer(window=(0.0, 400.0)))
    assert near(pixels(tmp_path / "b.png"), "#FFFFFF") > near(pixels(tmp_path / "a.png"), "#FFFFFF") + 1000


def test_pixels_keep_their_shape_in_the_patient(tmp_path):
    """A 20 x 20 mm square of 20 x 5 voxels is as high as it is wide."""
    square = label_map({1: (slice(10, 30), slice(12, 17), slice(0, 1))}, spacing=(1.0, 4.0, 1.0), size=(40, 30, 1))
    write_overlay(tmp_path / "a.png", scan(square), square, slicer=Slicer(window=(0.0, 400.0)))
    picture = pixels(tmp_path / "a.png")
    filled = np.argwhere((picture[..., 2] - picture[..., 0] > 30)[: int(picture.shape[0] * 0.85)])
    height, width = np.ptp(filled, axis=0)
    assert height > 100
    assert height == pytest.approx(width, rel=0.04)


def test_more_slices_than_eight_are_thinned_out(tmp_path):
    few, many = (label_map({1: (slice(10, 25), slice(8, 20), slice(4, end))}) for end in (12, 16))
    write_overlay(tmp_path / "few.png", scan(few), few)
    write_overlay(tmp_path / "many.png", scan(many), many)
    assert pixels(tmp_path / "few.png").shape == pixels(tmp_path / "many.png").shape


def test_a_colour_picture_is_drawn_in_colour(tmp_path):
    labels = label_map({1: (slice(10, 20), slice(8, 20), slice(0, 1))}, spacing=(1.0, 1.0, 1.0), size=(40, 30, 1))
    red = np.zeros((3, 40, 30, 1), dtype=np.uint8)
    red[0] = 200
    write_overlay(tmp_path / "a.png", Volume(red, labels.geometry), labels, labels)
    assert near(pixels(tmp_path / "a.png"), "#C80000", 10) > 10_000


def test_nothing_labelled_still_shows_the_scan(tmp_path):
    nothing = label_map({})
    write_overlay(tmp_path / "a.png", scan(nothing), nothing, nothing)
    assert near(pixels(tmp_path / "a.png"), "#808080", 60) > 10_000


def test_neighbour_channels_are_not_taken_for_colours(tmp_path):
    labels = label_map(LIVER)
    write_overlay(tmp_path / "plain.png", scan(labels), labels, case="x")
    write_overlay(tmp_path / "beside.png", scan(labels), labels, slicer=Slicer(neighbours=True), case="x")
    assert (pixels(tmp_path / "plain.png") == pixels(tmp_path / "beside.png")).all()


def test_names_are_written_as_they_are(tmp_path):
    """Neither dollars nor a leading underscore are for matplotlib to read: more letters leave more ink."""
    for file, name in (("short", "_"), ("long", "_a $ bcd ^ $ efgh")):
        labels = label_map(LIVER)
        named = LabelMap(labels.array, labels.geometry, Labels((1,), (name,)))
        write_overlay(tmp_path / f"{file}.png", scan(named), named, case="x $^$")
    short, long = (pixels(tmp_path / f"{file}.png")[-60:] for file in ("short", "long"))
    assert near(long, "#E8EAED", 60) > near(short, "#E8EAED", 60) + 200


def test_a_map_on_another_grid_is_refused_and_nothing_written(tmp_path):
    labels = label_map(LIVER)
    with pytest.raises(GeometryMismatch, match="reference"):
        write_overlay(tmp_path / "a.png", scan(labels), labels, label_map({}, spacing=(1.0, 1.0, 9.0)))
    assert not list(tmp_path.iterdir())
