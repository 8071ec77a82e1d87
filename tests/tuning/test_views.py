"""Views of slices: what is moved stays on its labels, what is relit stays where it is, and some slices stay plain."""

import pytest
import torch
from torch import Generator, Tensor

from handful.tuning.views import UNKNOWN, Moves, moved, moved_classes, random_grids, relit

STILL = Moves(rotation=0, scale=1, stretch=1, shift=0, elastic=0)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def squares(n: int) -> tuple[Tensor, Tensor]:
    """Bright squares off the middle, and the classes that mark them."""
    classes = torch.zeros(n, 1, 64, 64, dtype=torch.int16)
    classes[:, :, 20:36, 24:48] = 1
    return 0.2 + 0.6 * classes.float(), classes


def test_labels_move_with_the_pixels():
    slices, classes = squares(16)
    grids = random_grids(16, (64, 64), Moves(), rng())
    bright, found = moved(slices, grids) > 0.5, moved_classes(classes, grids)
    assert (bright == (found == 1)).float().mean() > 0.99
    assert not torch.equal(found, classes)


def test_nothing_is_known_outside_of_the_slice():
    slices, classes = squares(8)
    grids = random_grids(8, (64, 64), Moves(shift=0.3), rng())
    found = moved_classes(classes, grids)
    assert (found == UNKNOWN).any()
    assert (moved(slices, grids)[found == UNKNOWN] < 0.2).all()


def test_black_around_a_slice_is_background_if_all_of_the_slice_is_labelled():
    slices, classes = squares(8)
    classes[1, 0, 60, 60] = UNKNOWN
    grids = random_grids(8, (64, 64), Moves(shift=0.3), rng())
    found = moved_classes(classes, grids, black_is_background=True)
    outside = moved(torch.ones_like(slices), grids) == 0
    assert outside[[0, 1]].any(dim=(-3, -2, -1)).all()
    assert (found[1][outside[1]] == UNKNOWN).all()
    rest = [0, *range(2, 8)]
    assert (found[rest] != UNKNOWN).all()
    assert (found[rest][outside[rest]] == 0).all()


def test_no_move_is_no_change():
    slices, classes = squares(4)
    grids = random_grids(4, (64, 64), STILL, rng())
    assert torch.allclose(moved(slices, grids), slices, atol=1e-5)
    assert torch.equal(moved_classes(classes, grids), classes)


def test_mirroring_happens_where_it_is_allowed_and_about_as_often_as_not():
    slices, _ = squares(200)
    grids = random_grids(200, (64, 64), Moves(rotation=0, scale=1, stretch=1, shift=0, elastic=0, mirror=True), rng())
    flipped = (moved(slices, grids) - slices.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 0.4 < flipped.float().mean() < 0.6


def test_some_slices_keep_their_grey_values_and_the_others_do_not():
    slices, _ = squares(200)
    same = (relit(slices, rng()) - slices).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.02 < same.float().mean() < 0.3


def test_a_stronger_view_is_further_away():
    slices, _ = squares(200)
    far = [(relit(slices, rng(), strength) - slices).abs().mean() for strength in (0.0, 1.0, 1.5)]
    assert far[0] < 1e-6
    assert far[1] < far[2]


def test_negatives_are_a_share_of_the_same_views():
    slices = torch.rand(400, 1, 8, 8, generator=rng())
    plain, some = relit(slices, rng(5)), relit(slices, rng(5), inverted=0.3)
    negative = (some == 1 - plain).flatten(1).all(1)
    kept = (some == plain).flatten(1).all(1)
    assert bool((negative ^ kept).all())
    assert 0.2 < float(negative.float().mean()) < 0.4


@pytest.mark.parametrize("channels", [1, 3])
def test_one_generator_gives_one_view(channels: int):
    slices = torch.rand(6, channels, 32, 32, generator=rng())
    assert torch.equal(relit(slices, rng(3)), relit(slices, rng(3)))
    assert not torch.equal(relit(slices, rng(3)), relit(slices, rng(4)))
    grids = [random_grids(6, (32, 32), Moves(), rng(seed)) for seed in (3, 3, 4)]
    assert torch.equal(grids[0], grids[1])
    assert not torch.equal(grids[0], grids[2])
