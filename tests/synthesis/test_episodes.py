"""Episodes and phantoms are what a learner can learn from: in range, solvable, alike between subjects, seeded."""

import numpy as np
import torch

from handful.synthesis.episodes import phantom_cohort, random_episode


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_episode_has_images_in_range_and_every_target_in_the_first_slice() -> None:
    for seed in range(6):
        episode = random_episode(3, 4, 48, _rng(seed))
        assert episode.images.shape[0] == 3
        assert episode.images.shape[1] in (1, 3)
        assert 0 <= float(episode.images.min()) < float(episode.images.max()) <= 1
        assert episode.masks.shape == (3, 4, 48, 48)
        assert episode.masks[0].any(dim=(1, 2)).all()


def test_one_seed_gives_one_episode() -> None:
    one, same, other = (random_episode(2, 2, 32, _rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.masks, same.masks)
    assert one.images.shape != other.images.shape or not torch.equal(one.images, other.images)


def test_phantoms_share_an_anatomy_and_differ_as_individuals() -> None:
    first, second = phantom_cohort(2, seed=3, shape=(40, 36, 10))
    assert first.image.shape == first.labels.shape == (40, 36, 10)
    assert set(np.unique(first.labels)) == set(first.names) | {0}
    both = (first.labels > 0) & (second.labels > 0)
    assert (first.labels[both] == second.labels[both]).mean() > 0.6
    assert (first.labels != second.labels).any()


def test_phantom_organs_can_be_told_from_their_surroundings() -> None:
    phantom = next(phantom_cohort(1, seed=0, shape=(48, 44, 10)))
    background = phantom.image[phantom.labels == 0].mean()
    assert phantom.image[phantom.labels == 1].mean() > background + 100
