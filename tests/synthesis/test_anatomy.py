"""Anatomies are functions of space: the same at every resolution, smooth, various between subjects."""

import torch

from handful.synthesis.anatomy import Field, Organ, Subject, random_anatomy, slice_points


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_seed_gives_one_anatomy() -> None:
    points = slice_points(32, 0.1)
    assert torch.equal(random_anatomy(_rng(4)).at(points), random_anatomy(_rng(4)).at(points))
    assert not torch.equal(random_anatomy(_rng(4)).at(points), random_anatomy(_rng(5)).at(points))


def test_labels_stay_below_the_count_the_anatomy_gives() -> None:
    for seed in range(12):
        anatomy = random_anatomy(_rng(seed))
        seen = torch.stack([anatomy.at(slice_points(32, z)) for z in (-0.6, 0.0, 0.6)])
        assert int(seen.min()) >= 0
        assert int(seen.max()) < anatomy.labels


def test_resolution_does_not_change_where_things_are() -> None:
    anatomy = random_anatomy(_rng(7))
    coarse, fine = anatomy.at(slice_points(33, 0.0)), anatomy.at(slice_points(99, 0.0))
    assert torch.equal(coarse, fine[1::3, 1::3])


def test_neighbouring_slices_belong_together() -> None:
    anatomy = random_anatomy(_rng(2))
    here, near, far = (anatomy.at(slice_points(48, z)) for z in (0.0, 0.03, 0.6))
    assert (here == near).float().mean() > 0.9
    assert (here == near).float().mean() > (here == far).float().mean()


def test_a_round_organ_has_its_volume_and_a_paired_one_twice_it() -> None:
    still = Field(torch.zeros(1, 24, 24, 24))
    line = torch.linspace(-1, 1, 61)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    empty = torch.zeros(points.shape[:-1], dtype=torch.long)
    for paired, structures in ((False, 1), (True, 2)):
        organ = Organ(torch.tensor([0.45, 0.0, 0.0]), torch.eye(3) / 0.4, still, 0.0, paired, ())
        painted = organ.paint(points, empty, 1)
        expected = 4 / 3 * torch.pi * 0.4**3 / 8 * structures
        assert abs((painted > 0).float().mean() - expected) < 0.1 * expected
        assert painted.unique().tolist() == list(range(structures + 1))


def test_a_subject_without_variety_is_the_anatomy_itself() -> None:
    points = slice_points(16, 0.2)
    torch.testing.assert_close(Subject.random(_rng(0), variety=0.0).to_anatomy(points), points)
