"""Episodes and phantoms are valid training data: in range, solvable, similar between subjects, fixed by a seed."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from handful.synthesis.episodes import Episode, phantom_cohort, random_episode
from handful.synthesis.worlds import TINY_WORLD


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def _many() -> list[Episode]:
    """Forty episodes of 3 subjects with 2 slices each and 3 targets."""
    return [random_episode(3, 2, 3, 48, _rng(seed)) for seed in range(40)]


def test_an_episode_has_slices_of_each_subject_in_order_and_images_in_range() -> None:
    for episode in _many():
        assert episode.images.shape[0] == episode.labels.shape[0] == 6
        assert episode.images.shape[1] in (1, 3)
        assert episode.images.isfinite().all()
        assert 0 <= float(episode.images.min()) < float(episode.images.max()) <= 1
        assert episode.masks.shape == (6, 3, 48, 48)
        assert episode.subject.tolist() == [0, 0, 1, 1, 2, 2]


def test_grey_and_colour_both_occur() -> None:
    assert {episode.images.shape[1] for episode in _many()} == {1, 3}


def test_masks_are_whole_structures_and_never_air() -> None:
    for episode in _many():
        for target in episode.masks.unbind(dim=1):
            inside, outside = episode.labels[target].unique(), episode.labels[~target].unique()
            assert 1 <= len(inside) <= 2
            assert 0 not in inside
            assert not set(inside.tolist()) & set(outside.tolist())


def test_every_target_is_in_two_subjects_and_never_most_of_a_slice() -> None:
    for episode in _many():
        present = episode.masks.any(dim=(2, 3)).reshape(3, 2, 3).any(dim=1)
        assert (present.sum(dim=0) >= 2).all()
        assert float(episode.masks.float().mean(dim=(2, 3)).max()) < 0.5


def test_some_targets_are_absent_from_some_slices_and_most_are_not() -> None:
    present = torch.stack([episode.masks.any(dim=(2, 3)) for episode in _many()])
    sometimes = (~present).any(dim=1).float().mean()
    assert 0.1 < float(sometimes) < 0.9
    assert float(present.float().mean()) > 0.7


def test_neighbouring_slices_are_more_similar_than_slices_of_other_subjects() -> None:
    labels = torch.stack([episode.labels for episode in _many()])
    neighbours = (labels[:, 0] == labels[:, 1]).float().mean()
    strangers = (labels[:, 0] == labels[:, 2]).float().mean()
    assert neighbours > 0.8
    assert neighbours > strangers + 0.1


def test_targets_differ_where_there_are_enough_structures() -> None:
    twins = sum(torch.equal(episode.masks[:, 0], episode.masks[:, 1]) for episode in _many())
    assert twins < 8


def test_one_seed_gives_one_episode() -> None:
    one, same, other = (random_episode(2, 2, 2, 32, _rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.masks, same.masks)
    assert one.images.shape != other.images.shape or not torch.equal(one.images, other.images)


def test_an_episode_lies_on_the_device_of_its_generator_and_moves_only_that() -> None:
    rng = _rng(3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    episode = random_episode(2, 1, 2, 33, rng)
    assert torch.equal(torch.get_rng_state(), before)
    for tensor in (episode.images, episode.labels, episode.masks, episode.subject):
        assert tensor.device == rng.device


def test_mixed_precision_around_it_does_not_change_an_episode() -> None:
    plain = random_episode(2, 1, 2, 32, _rng(5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = random_episode(2, 1, 2, 32, _rng(5))
    assert torch.equal(plain.images, mixed.images)
    assert torch.equal(plain.labels, mixed.labels)


def test_one_subject_alone_makes_an_episode_too() -> None:
    assert random_episode(1, 3, 2, 32, _rng(0)).masks.any(dim=(0, 2, 3)).all()


def test_phantoms_share_an_anatomy_and_differ_as_individuals() -> None:
    first, second = phantom_cohort(2, seed=3, shape=(40, 36, 10))
    assert first.image.shape == first.labels.shape == (40, 36, 10)
    assert set(np.unique(first.labels)) == set(first.names) | {0}
    both = (first.labels > 0) & (second.labels > 0)
    assert (first.labels[both] == second.labels[both]).mean() > 0.6
    assert (first.labels != second.labels).any()


def test_phantom_organs_differ_in_brightness_from_their_surroundings() -> None:
    phantom = next(phantom_cohort(1, seed=0, shape=(48, 44, 10)))
    background = phantom.image[phantom.labels == 0].mean()
    assert phantom.image[phantom.labels == 1].mean() > background + 100


def test_cropped_episodes_are_enlarged() -> None:
    """Pixels of an enlarged label map come in pairs: many columns are the very same as the next."""

    def enlarged(share: float) -> float:
        world = replace(TINY_WORLD, cropped=share)
        made = [random_episode(3, 2, 3, 48, _rng(seed), world).labels for seed in range(40)]
        twins = [(labels[:, :, 1:] == labels[:, :, :-1]).all(dim=(0, 1)).float().mean() for labels in made]
        return float((torch.stack(twins) > 0.15).float().mean())

    assert enlarged(1.0) > enlarged(0.0) + 0.1
