"""Anatomies are functions of space: the same at every resolution, smooth, different between subjects."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from handful.synthesis import bodies
from handful.synthesis.anatomy import Anatomy, Field, Organ, Subject, View
from handful.synthesis.rng import Rng

BODIES = [
    bodies.random_anatomy,
    bodies.chest,
    bodies.chest_slice,
    bodies.head,
    bodies.two_part,
    bodies.retina,
    bodies.mucosa,
    bodies.tissue_layers,
    bodies.chambers,
    bodies.cells,
]


def _rng(seed: int) -> Rng:
    return Rng.of(torch.Generator().manual_seed(seed))


def _slices(side: int, *heights: float) -> Float[Tensor, "n side side 3"]:
    upright = View((0.0, 0.0, 0.0), 1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    return upright.points(side, list(heights), _rng(0))


def _plain(paired: bool = False, **what: object) -> Organ:
    still = Field(torch.zeros(1, 4, 4, 4))
    return Organ(torch.tensor([0.45, 0.0, 0.0]), torch.eye(3) / 0.4, still, 0.0, paired, (), **what)  # type: ignore[arg-type]


def _cube() -> Float[Tensor, "n n n 3"]:
    line = torch.linspace(-1, 1, 61)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)


def test_one_seed_gives_one_anatomy() -> None:
    points = _slices(32, 0.1)
    assert torch.equal(bodies.random_anatomy(_rng(4)).at(points), bodies.random_anatomy(_rng(4)).at(points))
    assert not torch.equal(bodies.random_anatomy(_rng(4)).at(points), bodies.random_anatomy(_rng(5)).at(points))


@pytest.mark.parametrize("body", BODIES)
def test_labels_stay_below_the_count_the_anatomy_gives(body: Callable[[Rng], Anatomy]) -> None:
    for seed in range(6):
        anatomy = body(_rng(seed))
        labels = anatomy.individual(_rng(seed)).at(_slices(32, -0.5, 0.0, 0.5))
        assert int(labels.min()) >= 0
        assert int(labels.max()) < anatomy.labels == len(anatomy.appearance)
        assert all(same <= label for label, same in enumerate(anatomy.appearance))


def test_resolution_does_not_change_where_things_are() -> None:
    anatomy = bodies.random_anatomy(_rng(7))
    coarse, fine = anatomy.at(_slices(33, 0.0)), anatomy.at(_slices(99, 0.0))
    assert torch.equal(coarse[0], fine[0, 1::3, 1::3])


def test_interpolated_depths_give_nearly_the_labels_of_exact_depths() -> None:
    for seed in range(4):
        anatomy = bodies.random_anatomy(_rng(seed))
        quick, exact = anatomy.at(_slices(48, 0.0), enlarge=2), anatomy.at(_slices(96, 0.0))
        assert quick.shape == exact.shape
        assert (quick == exact).float().mean() > 0.97


def test_neighbouring_slices_belong_together() -> None:
    anatomy = bodies.random_anatomy(_rng(2))
    here, near, far = anatomy.at(_slices(48, 0.0, 0.03, 0.6))
    assert (here == near).float().mean() > 0.9
    assert (here == near).float().mean() > (here == far).float().mean()


def test_a_round_organ_has_its_volume_and_a_paired_one_twice_it() -> None:
    nothing = Field(torch.zeros(1, 4, 4, 4))
    for organ, parts in ((_plain(), 1), (_plain(paired=True), 2), (_plain(paired=True, sides_distinct=False), 1)):
        painted = Anatomy(nothing, (organ,), None).at(_cube())
        expected = 4 / 3 * torch.pi * 0.4**3 / 8 * (2 if organ.paired else 1)
        assert abs((painted > 1).float().mean() - expected) < 0.1 * expected
        assert painted.unique().tolist() == list(range(1, parts + 2))


def test_an_organ_cut_by_a_plane_has_two_halves_of_one_appearance() -> None:
    organ = _plain(cut=torch.tensor([0.0, 1.0, 0.0]))
    anatomy = Anatomy(Field(torch.zeros(1, 4, 4, 4)), (organ,), None)
    labels = anatomy.at(_cube())
    first, second = (labels == 2).sum(), (labels == 3).sum()
    assert 0.85 < float(first / second) < 1.2
    assert anatomy.appearance == (0, 1, 2, 2)


def test_lesions_lie_elsewhere_in_every_individual_and_organs_do_not() -> None:
    for body, moves in ((bodies.mucosa, True), (bodies.chambers, False)):
        anatomy = body(_rng(3))
        one, other = (anatomy.individual(_rng(seed)).at(_slices(32, 0.0)) for seed in (1, 2))
        assert torch.equal(one, other) is not moves


def test_a_subject_without_variety_is_the_anatomy_itself() -> None:
    points = _slices(16, 0.2)
    torch.testing.assert_close(Subject.random(_rng(0), variety=0.0).to_anatomy(points), points)
