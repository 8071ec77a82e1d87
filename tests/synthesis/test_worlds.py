"""The wide world has what handful-tiny's lacks, and that one stays what it was."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy import ndimage

from handful.synthesis import bodies, wide_bodies
from handful.synthesis.anatomy import Anatomy, Kind, Shape
from handful.synthesis.episodes import Episode, random_episode
from handful.synthesis.looks import dressed
from handful.synthesis.modalities import MODALITIES, projection_contrast
from handful.synthesis.rng import Rng
from handful.synthesis.scans import Scanner, render
from handful.synthesis.worlds import TINY_WORLD, WIDE_WORLD, Scene, World

BODIES = [
    wide_bodies.rings,
    wide_bodies.tubes,
    wide_bodies.torso,
    wide_bodies.limb,
    wide_bodies.column,
    wide_bodies.skin,
    wide_bodies.glands,
]


LABEL_MEANS = [4.91, 3.28, 2.22, 4.09]
"""Of four episodes of TINY_WORLD."""
MASK_SUMS = [7689, 6927, 3298, 4295]


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def _many(world: World) -> list[Episode]:
    return [random_episode(3, 2, 2, 48, _rng(seed), world) for seed in range(30)]


def test_the_world_of_handful_tiny_stays_as_it_was():
    episodes = [random_episode(3, 2, 3, 48, _rng(seed)) for seed in range(4)]
    assert [round(float(episode.labels.float().mean()), 2) for episode in episodes] == LABEL_MEANS
    assert [int(episode.masks.sum()) for episode in episodes] == pytest.approx(MASK_SUMS, rel=0.01)


def test_one_seed_gives_one_episode_of_the_wide_world():
    for seed in range(5):
        one, same = (random_episode(2, 2, 2, 32, _rng(seed), WIDE_WORLD) for _ in range(2))
        assert torch.equal(one.images, same.images)
        assert torch.equal(one.masks, same.masks)
        assert one.modality == same.modality


def test_wide_episodes_are_valid():
    for episode in _many(WIDE_WORLD):
        assert episode.images.isfinite().all()
        assert 0 <= float(episode.images.min()) <= float(episode.images.max()) <= 1
        assert episode.images.shape[1] in (1, 3)
        assert len(episode.shapes) == episode.masks.shape[1] == 2
        present = episode.masks.any(dim=(2, 3)).reshape(3, 2, 2).any(dim=1)
        assert (present.sum(dim=0) >= 2).all()


def test_rings_tubes_and_labels_in_pieces_are_targets_about_as_often_as_blobs():
    counts = Counter(shape for episode in _many(WIDE_WORLD) for shape in episode.shapes)
    for shape in (Shape.RING, Shape.TUBE, Shape.PIECES):
        assert counts[shape] > counts[Shape.BLOB] / 4, shape.name
    narrow = Counter(shape for episode in _many(TINY_WORLD) for shape in episode.shapes)
    rare = counts[Shape.TUBE] + counts[Shape.PIECES] + counts[Shape.RING]
    assert rare > narrow[Shape.TUBE] + narrow[Shape.PIECES] + narrow[Shape.RING]


def test_labels_come_in_several_pieces_and_targets_are_tiny_or_absent_more_often():
    def shares(world: World) -> tuple[float, float, float]:
        masks = torch.stack([episode.masks for episode in _many(world)]).flatten(0, 2)
        area = masks.float().mean(dim=(1, 2))
        pieces = [ndimage.label(mask.numpy())[1] > 2 for mask in masks if mask.any()]
        return float((area == 0).float().mean()), sum(pieces) / len(pieces), 1 / _smallest(world)

    for wide, tiny in zip(shares(WIDE_WORLD), shares(TINY_WORLD), strict=True):
        assert wide > tiny


def _smallest(world: World) -> float:
    """Return the area of the smallest target, each in the slice that shows most of it."""
    return min(float(episode.masks.float().mean(dim=(2, 3)).amax(dim=0).min()) for episode in _many(world))


def test_a_third_of_the_wide_world_is_in_colour():
    colour = sum(episode.images.shape[1] == 3 for episode in _many(WIDE_WORLD)) / 30
    assert 0.2 < colour < 0.7
    assert colour > sum(episode.images.shape[1] == 3 for episode in _many(TINY_WORLD)) / 30


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_each_anatomy_of_the_wide_world_has_targets(body, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.synthesis.episodes.MOST", 8)  # views of one anatomy
    assert random_episode(2, 1, 1, 32, _rng(0), _world_of(body(Rng.of(_rng(0))))).masks.any()


def test_a_world_without_targets_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("handful.synthesis.episodes.MOST", 3)
    anatomy = replace(wide_bodies.torso(Rng.of(_rng(0))), structures=())
    with pytest.raises(ValueError, match="none of 3 slices"):
        random_episode(2, 1, 1, 32, _rng(0), _world_of(anatomy))


def _world_of(anatomy: Anatomy) -> World:
    return World(scenes=(Scene(1.0, lambda rng: anatomy, ("anything",), 0.6),), cropped=0.0)


def test_a_subject_that_lacks_a_structure_keeps_the_numbers_of_the_others():
    rng = Rng.of(_rng(0))
    anatomy = bodies.chest_slice(rng)
    without = anatomy.lacking(1.0, rng)
    assert without.kinds == anatomy.kinds
    assert without.shapes == anatomy.shapes
    points = 2 * torch.rand(1, 20, 20, 3, generator=_rng(1)) - 1
    regions = 1 + len(anatomy.regions.values)
    assert (anatomy.at(points) >= regions).any()
    assert (without.at(points) < regions).all()
    assert torch.equal(anatomy.lacking(0.0, rng).at(points), anatomy.at(points))


def test_vertebrae_are_the_same_in_every_subject_and_lesions_are_not():
    rng = Rng.of(_rng(0))
    column = wide_bodies.column(rng)
    row = next(one for one in column.structures if one.shapes == (Shape.PIECES,) and one.kinds == (Kind.BONE,))
    assert row.individual(rng) is row
    many = bodies.cells(rng).structures[0]
    assert not torch.equal(many.individual(rng).centres[:1], many.centres[:1])


def test_a_projection_shows_what_lies_behind():
    """Two label maps of one picture: a bone in one of them stays visible where the other has lung."""
    anatomy = wide_bodies.torso(Rng.of(_rng(0)))
    lung, bone = anatomy.kinds.index(Kind.LUNG), anatomy.kinds.index(Kind.BONE)
    planes = torch.full((1, 2, 64, 64), lung)
    planes[:, 1, :, 32:] = bone
    rng = Rng.of(_rng(1))
    quiet = replace(
        Scanner.random(rng), noise=0.0, speckle=0.0, bias=0.0, inverted=False, coarser=(1.0, 1.0), ghost=0.0
    )
    image = render(planes[:, 0], projection_contrast(anatomy, rng), quiet, rng, planes=planes)
    assert float(image[..., 40:].mean()) > float(image[..., :24].mean()) + 0.3
    assert MODALITIES["projection"].planes > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_effects_change_pictures_and_stay_in_range(channels: int):
    images = torch.rand(2, channels, 48, 48, generator=_rng(0))
    labels = torch.randint(0, 4, (2, 48, 48), generator=_rng(1))
    changed = dressed(images, labels, 1.0, Rng.of(_rng(2)))
    assert changed.shape == (2, 3, 48, 48)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert (changed - images).abs().mean() > 0.01
    assert torch.equal(dressed(images, labels, 0.0, Rng.of(_rng(2))), images)


def test_the_whole_of_a_layered_organ_is_its_wall_with_its_cavity():
    rng = Rng.of(_rng(0))
    ring = bodies.organ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), rng, layers=(0.6,))
    anatomy = Anatomy(bodies.cells(rng).regions, (ring,), None)
    first = 1 + len(anatomy.regions.values)
    assert anatomy.wholes == ((first, first + 1),)
    assert anatomy.shapes[first:] == (Shape.RING, Shape.BLOB)


def test_the_shape_of_several_labels_is_that_of_what_they_are_together():
    rng = Rng.of(_rng(0))
    regions = bodies.cells(rng).regions
    ring = bodies.organ((0.0, 0.0, 0.0), (0.3, 0.3, 0.3), rng, layers=(0.8, 0.5))
    pair = bodies.organ((0.5, 0.0, 0.0), (0.2, 0.2, 0.2), rng, paired=True, layers=(0.6,))
    tissue, first = len(regions.values), 1 + len(regions.values)
    anatomy = Anatomy(regions, (ring, pair), None)
    together = {
        (0,): Shape.RING,
        (2,): Shape.BLOB,
        (0, 1): Shape.RING,
        (0, 2): Shape.RING,
        (1, 2): Shape.BLOB,
        (0, 1, 2): Shape.BLOB,
        (3, 4): Shape.BLOB,
        (3, 5): Shape.PIECES,
        (3, 4, 5, 6): Shape.PIECES,
        (2, 4): Shape.PIECES,
    }
    for parts, shape in together.items():
        assert anatomy.shape_of([first + part for part in parts]) == shape, parts
    assert anatomy.shape_of([tissue, first]) == Shape.TISSUE
    assert [anatomy.shape_of([label]) for label in range(1, anatomy.labels)] == list(anatomy.shapes[1:])
    assert all(wide.shape_of([label]) == wide.shapes[label] for wide in _anatomies() for label in range(wide.labels))


def _anatomies() -> list[Anatomy]:
    return [body(Rng.of(_rng(seed))) for body in BODIES for seed in range(3)]


def test_a_target_of_a_wall_with_its_cavity_is_no_ring():
    ring = bodies.organ((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), Rng.of(_rng(0)), layers=(0.6,))
    anatomy = Anatomy(bodies.cells(Rng.of(_rng(0))).regions, (ring,), None)
    world = replace(_world_of(anatomy), balanced=True, whole=1.0)
    shapes = set()
    for seed in range(8):
        episode = random_episode(2, 1, 1, 48, _rng(seed), world)
        if tuple(episode.labels[episode.masks[:, 0]].unique().tolist()) in anatomy.wholes:
            shapes |= set(episode.shapes)
    assert shapes == {Shape.BLOB}
