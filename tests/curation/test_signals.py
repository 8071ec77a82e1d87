"""Shapes of labels, how consistent they are from slice to slice, and what is flagged, on masks drawn by hand."""

import math

import numpy as np
import pytest

from handful.curation.signals import ShapeStatistics, consistency, flags, voxel_size
from handful.data.volume import Geometry

SHAPE = (5, 8, 8)


def mask(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    made = np.zeros(SHAPE, dtype=bool)
    for box in boxes:
        made[box] = True
    return made


def shape(made: np.ndarray, known: np.ndarray | None = None) -> ShapeStatistics:
    return ShapeStatistics.of(made, np.ones(SHAPE, dtype=bool) if known is None else known, 0.5)


BALL = mask((slice(1, 4), slice(2, 4), slice(2, 4)))
HALF = mask((slice(1, 3), slice(2, 4), slice(2, 4)), (slice(3, 4), slice(2, 4), slice(2, 3)))


def test_the_size_counts_voxels_and_the_consistency_is_the_mean_dice_of_neighbours():
    found = shape(HALF)
    assert (found.voxels, found.size, found.pieces, found.at_border) == (10, 5.0, 1, False)
    assert found.consistency == pytest.approx((1 + 2 * 2 / 6) / 2)


def test_a_label_that_is_not_there_has_no_shape():
    found = shape(mask())
    assert (found.voxels, found.size, found.pieces, found.at_border) == (0, 0.0, 0, False)
    assert math.isnan(found.consistency)


def test_a_label_on_one_slice_has_no_neighbours():
    assert math.isnan(shape(mask((slice(1, 2), slice(2, 4), slice(2, 4)))).consistency)


def test_the_size_is_unknown_where_slices_are_unlabelled_and_they_are_not_compared():
    known = np.ones(SHAPE, dtype=bool)
    known[3] = False
    found = shape(HALF & known, known)
    assert math.isnan(found.size)
    assert found.consistency == 1.0


def test_parts_that_share_a_corner_are_one_piece_and_specks_are_none():
    first, touching, apart = ((slice(1, 2), slice(k, k + 1), slice(k, k + 1)) for k in (1, 2, 5))
    assert shape(mask(first, touching)).pieces == 1
    assert shape(mask(first, touching, apart)).pieces == 2
    speck = mask((slice(0, 4), slice(0, 4), slice(0, 4)), (slice(1, 2), slice(6, 7), slice(6, 7)))
    assert shape(speck).pieces == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_either_end_of_each_axis_is_a_border(axis: int):
    for end in (0, -1):
        made = BALL.copy()
        np.moveaxis(made, axis, 0)[end, 2, 2] = True
        assert shape(made).at_border


def test_a_picture_of_one_slice_has_no_border_in_depth():
    made = np.zeros((1, 8, 8), dtype=bool)
    made[0, 2:4, 2:4] = True
    assert not ShapeStatistics.of(made, np.ones_like(made), 1.0).at_border


def test_a_voxel_is_in_millilitres_or_a_fraction_of_the_image():
    assert voxel_size(Geometry((10, 10, 4), np.diag([1.0, 2.0, 5.0, 1.0]))) == pytest.approx(0.01)
    assert voxel_size(Geometry((10, 10, 1), np.eye(4), unit="pixel")) == pytest.approx(0.01)


def test_consistency_is_relative_to_the_references_and_never_above_one():
    one = mask((slice(1, 2), slice(2, 4), slice(2, 4)))
    assert consistency(shape(BALL), [shape(HALF)]) == 1.0
    assert consistency(shape(HALF), [shape(BALL)]) == pytest.approx(5 / 6)
    assert consistency(shape(one), [shape(BALL)]) == 0.0
    assert math.isnan(consistency(shape(BALL), [shape(one)]))


def test_a_label_like_its_references_has_no_flag_and_without_any_nothing_is_unusual():
    assert list(flags(shape(BALL), [shape(BALL)])) == []
    assert list(flags(shape(HALF), [])) == []


@pytest.mark.parametrize(
    ("made", "flag"),
    [
        (mask(), "empty"),
        (BALL | mask((slice(1, 4), slice(6, 7), slice(6, 7))), "several pieces"),
        (BALL | mask((slice(1, 2), slice(0, 2), slice(2, 3))), "touches the border"),
        (mask((slice(1, 3), slice(2, 3), slice(2, 4))), "too small"),
        (mask((slice(1, 4), slice(1, 6), slice(1, 6))), "too large"),
    ],
)
def test_what_differs_from_the_references_is_flagged(made: np.ndarray, flag: str):
    assert list(flags(shape(made), [shape(BALL)])) == [flag]
