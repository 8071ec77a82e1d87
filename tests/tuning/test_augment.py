"""Other views of labelled slices: truth moves with the picture, values stay in range, one seed gives one view."""

from __future__ import annotations

import torch

from handful.tuning.augment import augmented, coarsened


def disc(n: int = 4, side: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bright discs a little left of the middle, their masks, all known."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = (((rows - 32) ** 2 + (columns - 26) ** 2) < 100).float().expand(n, 1, side, side)
    return 0.1 + 0.7 * inside, inside.clone(), torch.ones(n, side, side, dtype=torch.bool)


def test_masks_move_with_their_slices() -> None:
    slices, masks, valid_mask = augmented(*disc(16), torch.Generator().manual_seed(3))
    for picture, mask, shown in zip(slices[:, 0], masks[:, 0] > 0.5, valid_mask, strict=True):
        assert picture[mask & shown].mean() > 2 * picture[~mask & shown].mean()


def test_values_stay_between_0_and_1_and_what_comes_from_outside_is_unknown() -> None:
    slices, _, valid_mask = augmented(*disc(16), torch.Generator().manual_seed(0))
    assert float(slices.amin()) >= 0
    assert float(slices.amax()) <= 1
    assert 0.3 < float(valid_mask.float().mean()) < 1


def test_one_seed_gives_one_view_and_another_seed_another() -> None:
    first, again, other = (augmented(*disc(), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_left_stays_left() -> None:
    """What lies well left of another thing does so in every view: slices are turned a little and never flipped."""
    ones = torch.zeros(32, 2, 64, 64)
    ones[:, 0, 28:36, 20:28], ones[:, 1, 28:36, 36:44] = 1, 1
    _, masks, _ = augmented(
        torch.rand(32, 1, 64, 64, generator=torch.Generator().manual_seed(0)),
        ones,
        torch.ones(32, 64, 64, dtype=torch.bool),
        torch.Generator().manual_seed(5),
    )
    columns = torch.arange(64.0)
    middles = (masks.sum(dim=2) * columns).sum(dim=2) / masks.sum(dim=(2, 3))
    assert bool((middles[:, 0] < middles[:, 1]).all())


def test_a_coarser_slice_keeps_its_size_and_loses_its_detail() -> None:
    slices = torch.rand(3, 1, 40, 56, generator=torch.Generator().manual_seed(0))
    found = coarsened(slices, 1.0, torch.Generator().manual_seed(1))
    assert found.shape == slices.shape
    assert bool((found.std(dim=(2, 3)) < 0.95 * slices.std(dim=(2, 3))).all())
    assert torch.equal(coarsened(slices, 0.0, torch.Generator().manual_seed(1)), slices)
