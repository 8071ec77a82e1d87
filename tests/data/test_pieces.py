import tracemalloc

import numpy as np
import pytest

from handful.data.label_values import boxes_of_values, renumbered
from handful.data.pieces import fractions_around, keep_largest_pieces, numbered_pieces, shares_in_largest_piece
from handful.data.support import SupportFacts
from handful.data.volume import IGNORE
from phantoms import LABELS, phantom_case


def volume() -> np.ndarray:
    """Label 1 in pieces of 13 (two joined by a corner), 4 and 1 voxels; label 3 in two pieces of one voxel."""
    labels = np.zeros((3, 9, 9), dtype=np.int16)
    labels[0, :3, :4] = 1
    labels[1, 3, 4] = 1
    labels[2, 6:8, 6:8] = 1
    labels[0, 8, 8] = 1
    labels[0, 5, 0], labels[2, 0, 0] = 3, 3
    return labels


def test_voxels_that_share_a_corner_are_one_piece():
    pieces, sizes = numbered_pieces(volume() == 1)
    assert sorted(sizes.tolist()) == [1, 4, 13]
    assert pieces[0, 0, 0] == pieces[1, 3, 4]


def test_only_the_largest_piece_of_the_named_values_is_kept():
    labels, expected = volume(), volume()
    expected[2, 6:8, 6:8] = 0
    expected[0, 8, 8] = 0
    keep_largest_pieces(labels, [1, 7])
    assert np.array_equal(labels, expected)


def test_each_slice_can_keep_its_own_largest_piece():
    labels, expected = volume(), volume()
    expected[0, 8, 8] = 0
    keep_largest_pieces(labels, [1, 3], per_slice=True)
    assert np.array_equal(labels, expected)


def test_of_equal_pieces_the_first_one_is_kept():
    labels = volume()
    keep_largest_pieces(labels, [3])
    assert np.argwhere(labels == 3).tolist() == [[0, 5, 0]]


def ventricles(small: int = 4) -> np.ndarray:
    """Label 2 with a speck far away; label 1 touches it with a piece of 2 × `small` voxels, and has one of 40 apart."""
    labels = np.zeros((3, 30, 30), dtype=np.int16)
    labels[1, 10:20, 10:20] = 2
    labels[1, 2, 28] = 2
    labels[1, 10 : 10 + small, 8:10] = 1
    labels[1, 22:27, 20:28] = 1
    return labels


@pytest.mark.parametrize(
    ("touching", "small", "kept"),
    [
        (None, 4, (24, 24)),  # the larger one
        ({1: [2]}, 4, (12, 9)),  # the one that touches
        ({1: [2]}, 1, (24, 24)),  # too small for an organ
        ({1: [3]}, 4, (24, 24)),  # nothing to touch
        ({2: [1]}, 4, (24, 24)),
    ],
)
@pytest.mark.parametrize("per_slice", [True, False])
def test_a_piece_that_touches_is_preferred(
    touching: dict[int, list[int]] | None, small: int, kept: tuple[int, int], per_slice: bool
):
    labels = ventricles(small)
    keep_largest_pieces(labels, [1, 2], touching, per_slice=per_slice)
    assert labels[1][kept] == 1
    assert numbered_pieces(labels == 1)[1].tolist() == [40 if kept == (24, 24) else 8]
    assert labels[1, 2, 28] == 0
    assert (labels == 2).sum() == 100


def test_a_piece_that_touches_a_speck_only_is_not_preferred():
    labels = ventricles()
    labels[1, 10:14, 8:10] = 0
    labels[1, 2:5, 26:28] = 1
    keep_largest_pieces(labels, [1, 2], {1: [2]})
    assert labels[1, 24, 24] == 1
    assert labels[1, 2, 26] == 0


def test_neighbours_are_counted_around_each_label():
    labels = np.zeros((1, 12, 12), dtype=np.int16)
    labels[0, 3:6, 3:6] = 1
    labels[0, 3:6, 6:9] = 2
    labels[0, 6:9, 3:6] = IGNORE
    labels[0, 0, 0] = 3
    around = fractions_around(labels, (1, 2, 3))
    assert around == {(1, 2): pytest.approx(3 / 9), (2, 1): pytest.approx(3 / 12)}
    assert fractions_around(labels, (1, 2, 3), per_slice=True) == around
    volume = np.stack([labels[0] == 1, 2 * (labels[0] == 1)])  # one above the other
    assert fractions_around(volume, (1, 2)) == {(1, 2): pytest.approx(9 / 21), (2, 1): pytest.approx(9 / 21)}
    assert fractions_around(volume, (1, 2), per_slice=True) == {}


def test_the_share_of_the_largest_piece_counts_voxels():
    shares = shares_in_largest_piece(volume(), (1, 3, 7))
    assert shares == {1: pytest.approx(13 / 18), 3: 0.5}
    assert shares_in_largest_piece(volume(), (1, 3), per_slice=True) == {1: pytest.approx(17 / 18), 3: 1.0}


def test_facts_measure_pieces_in_3d_or_on_each_slice_of_partly_labelled_scans():
    case = phantom_case(0)
    reference = case.read_reference().array
    reference[20:22, 1, 1:3] = 1
    reference[20:22, 4, 1:3] = 1
    share = SupportFacts.of(case, LABELS).in_largest_piece[1]
    assert share == pytest.approx(1 - 8 / (reference == 1).sum())
    reference[:, 4] = IGNORE  # slices lie along j
    reference[:, 1][reference[:, 1] == 1] = 0
    reference[20:22, 1, 1:3] = 1
    assert SupportFacts.of(case, LABELS).in_largest_piece == {1: 1.0, 3: 1.0}


def test_large_values_take_no_more_memory_than_small_ones() -> None:
    classes = np.zeros((9, 9, 3), np.int32)
    classes[1:3, 1:3, 1], classes[5:, 5:, :2], classes[0, 0, 0] = 2**31 - 1, 7, -1
    tracemalloc.start()
    boxes = boxes_of_values(classes)
    shares = shares_in_largest_piece(classes, (7, 2**31 - 1))
    small = renumbered(classes.clip(0), {7: 1, 2**31 - 1: 2})
    large = renumbered(small, {1: 2**31 - 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert boxes == {7: np.s_[5:9, 5:9, 0:2], 2**31 - 1: np.s_[1:3, 1:3, 1:2]}
    assert shares == {7: 1.0, 2**31 - 1: 1.0}
    np.testing.assert_array_equal(small, np.where(classes == 7, 1, np.where(classes > 7, 2, 0)))
    np.testing.assert_array_equal(large, np.where(classes == 7, 2**31 - 1, 0))


def test_of_noise_only_the_largest_pieces_are_tried():
    labels = np.zeros((1, 400, 400), dtype=np.int16)
    labels[0, ::2, ::2] = 1  # 40,000 pieces
    labels[0, 200:204, 1] = 2
    keep_largest_pieces(labels, [1, 2], {1: [2], 2: [1]})
    assert (labels == 1).sum() == 1
