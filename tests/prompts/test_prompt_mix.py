"""Every way to ask lands where it says, and what is drawn depends on the seed alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handful.errors import SettingsError
from handful.prompts.prompt_mix import (
    BEHAVIOURS,
    SLOTS,
    PromptMix,
    confusion_negatives,
    edge_band,
    packed,
    simulate_prompts,
)
from handful.prompts.prompts import PADDING, Prompts

BOXES = {"tight_box", "jittered_box", "loose_box"}
INSIDE = {"centre", "uniform", "boundary", "scribble"}


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _masks() -> torch.Tensor:
    """A rectangle, a ring, a lone pixel and an absent region; on the second slice a bar and a full slice."""
    masks = torch.zeros(2, 4, 40, 50, dtype=torch.bool)
    masks[0, 0, 5:15, 10:30] = True
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    radius = ((y - 25) ** 2 + (x - 35) ** 2).sqrt()
    masks[0, 1] = (radius > 5) & (radius < 10)
    masks[0, 2, 39, 49] = True
    masks[1, 0, 20:23, 4:44] = True
    masks[1, 1] = True
    return masks


def _points(prompts: Prompts) -> list[tuple[int, int, int, int, int]]:
    """(slice, region, x, y, label) of all points."""
    assert prompts.points is not None
    assert prompts.point_labels is not None
    used = (prompts.point_labels != PADDING).nonzero().tolist()
    return [(n, k, *prompts.points[n, k, p].long().tolist(), int(prompts.point_labels[n, k, p])) for n, k, p in used]


def _same(one: Prompts, other: Prompts) -> bool:
    parts = ("points", "point_labels", "boxes")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.parametrize("name", sorted(INSIDE))
def test_a_click_meant_to_be_inside_is_inside(name: str) -> None:
    masks = _masks()
    for seed in range(5):
        said = _points(simulate_prompts(masks, PromptMix.only(name), _rng(seed)))
        assert {(n, k) for n, k, *_ in said} == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}
        assert all(masks[n, k, y, x] and label == 1 for n, k, x, y, label in said)


def test_a_boundary_click_is_within_three_pixels_of_the_edge() -> None:
    masks = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    masks[0, 0, 5:35, 5:35] = True
    said = [_points(simulate_prompts(masks, PromptMix.only("boundary"), _rng(seed)))[0] for seed in range(20)]
    assert all(min(x - 5, 34 - x, y - 5, 34 - y) < 3 for _, _, x, y, _ in said)
    assert len({(x, y) for _, _, x, y, _ in said}) > 10


def test_a_near_miss_is_just_outside_and_still_meant_as_inside() -> None:
    masks = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    masks[0, 0, 10:20, 10:20] = True
    for seed in range(20):
        ((_, _, x, y, label),) = _points(simulate_prompts(masks, PromptMix.only("near_miss"), _rng(seed)))
        assert label == 1
        assert not masks[0, 0, y, x]
        assert 7 <= x <= 22
        assert 7 <= y <= 22


def test_mixed_clicks_are_two_to_five_the_first_inside_and_negative_ones_outside() -> None:
    masks = _masks()[:, :2]
    counts, signs = set(), set()
    for seed in range(30):
        said = _points(simulate_prompts(masks, PromptMix.only("clicks"), _rng(seed)))
        for place in {(n, k) for n, k, *_ in said}:
            mine = [point for point in said if point[:2] == place]
            counts.add(len(mine))
            signs |= {label for *_, label in mine}
            assert mine[0][-1] == 1
        assert all(bool(masks[n, k, y, x]) == (label == 1) for n, k, x, y, label in said)
    assert counts == {2, 3, 4, 5}
    assert signs == {0, 1}


def test_a_tight_box_touches_all_sides_and_a_loose_one_is_larger_by_a_tenth_to_three_tenths() -> None:
    masks = _masks()[:1, :1]
    tight = simulate_prompts(masks, PromptMix.only("tight_box"), _rng()).boxes
    assert tight is not None
    assert tight[0, 0].tolist() == [10, 5, 29, 14]
    for seed in range(10):
        loose = simulate_prompts(masks, PromptMix.only("loose_box"), _rng(seed)).boxes
        assert loose is not None
        off = (loose - tight)[0, 0] * torch.tensor([-1, -1, 1, 1]) / torch.tensor([20, 10, 20, 10])
        assert ((off >= 0.099) & (off <= 0.301)).all()


def test_a_jittered_box_moves_each_side_on_its_own_and_by_twenty_pixels_at_most() -> None:
    masks = torch.zeros(1, 1, 600, 600, dtype=torch.bool)
    masks[0, 0, 50:550, 50:550] = True
    off = torch.cat(
        [simulate_prompts(masks, PromptMix.only("jittered_box"), _rng(seed)).boxes[0] for seed in range(40)]  # type: ignore[index]
    ) - torch.tensor([50.0, 50, 549, 549])
    assert off.abs().max() <= 20
    assert off.abs().max() > 10
    assert off.std(dim=0).min() > 5
    assert abs(float(torch.corrcoef(off.T)[0, 2])) < 0.5


@pytest.mark.parametrize("name", sorted(BOXES))
def test_boxes_stay_in_the_slice_with_their_corners_in_order(name: str) -> None:
    for seed in range(10):
        found = simulate_prompts(_masks(), PromptMix.only(name), _rng(seed))
        assert found.boxes is not None
        x0, y0, x1, y1 = found.boxes.unbind(-1)
        assert bool((x0 <= x1).all() and (y0 <= y1).all())
        assert bool((found.boxes >= 0).all() and (x1 <= 49).all() and (y1 <= 39).all())
        assert not found.boxes[~_masks().flatten(2).any(dim=2)].any()
        assert not _points(found)


def test_a_scribble_runs_along_the_region() -> None:
    for seed in range(5):
        said = [
            p for p in _points(simulate_prompts(_masks(), PromptMix.only("scribble"), _rng(seed))) if p[:2] == (1, 0)
        ]
        columns = [x for _, _, x, _, _ in said]
        assert 5 <= len(said) <= 8
        assert columns in (sorted(columns), sorted(columns, reverse=True))
        assert max(columns) - min(columns) > 24
        assert {y for _, _, _, y, _ in said} == {21}  # the middle row is the deepest


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    first, again, other = (simulate_prompts(_masks(), PromptMix(), _rng(seed)) for seed in (3, 3, 4))
    assert _same(first, again)
    assert not _same(first, other)


def test_kinds_of_prompts_are_independent_and_follow_their_frequencies() -> None:
    masks = torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    masks[0, 0, 8:16, 8:16] = True
    many = simulate_prompts(masks.expand(300, 4, -1, -1).clone(), PromptMix(confusion=0.0), _rng())
    assert many.boxes is not None
    boxed = many.boxes.any(dim=2).float()
    assert abs(float(boxed.mean()) - 0.35) < 0.05
    assert abs(float(torch.corrcoef(boxed.T)[0, 1])) < 0.15


def test_an_absent_region_has_no_prompt() -> None:
    for seed in range(10):
        said = simulate_prompts(_masks(), PromptMix(), _rng(seed))
        assert said.boxes is not None
        assert (0, 3) not in {(n, k) for n, k, *_ in _points(said)}
        assert not said.boxes[0, 3].any()


def test_confusion_negatives_lie_where_the_mask_overlaps_the_neighbour_most() -> None:
    masks = torch.zeros(1, 3, 20, 30, dtype=torch.bool)
    masks[0, 0, 5:15, 0:10] = True
    masks[0, 1, 5:15, 10:20] = True
    masks[0, 2, 5:15, 20:30] = True
    shown = torch.zeros_like(masks)
    shown[0, 0, 5:15, 0:14] = True
    shown[0, 2, 5:15, 21:30] = True
    ((_, k, x, y, label),) = _points(confusion_negatives(masks, shown, 1.0, _rng()))
    assert (k, label) == (0, 0)
    assert 10 <= x < 14
    assert masks[0, 1, y, x]


def test_without_a_mask_confusion_negatives_lie_in_a_near_neighbour() -> None:
    masks = torch.zeros(1, 3, 20, 60, dtype=torch.bool)
    masks[0, 0, 5:15, 0:10] = True
    masks[0, 1, 5:15, 12:20] = True
    masks[0, 2, 5:15, 50:60] = True  # too far from anything
    said = _points(confusion_negatives(masks, None, 1.0, _rng()))
    assert [k for _, k, *_ in said] == [0, 1]
    assert all(label == 0 and masks[n, 1 - k, y, x] for n, k, x, y, label in said)
    assert not _points(confusion_negatives(masks, None, 0.0, _rng()))


def test_packing_puts_points_first_and_pads_to_a_multiple() -> None:
    points = torch.arange(2 * 3 * 2).reshape(1, 2, 3, 2).float()
    labels = torch.tensor([[[PADDING, 1, 0], [PADDING, PADDING, PADDING]]])
    found = packed(Prompts(points, labels))
    assert found.points is not None
    assert found.point_labels is not None
    assert found.point_labels.shape == (1, 2, SLOTS)
    assert found.point_labels[0, 0].tolist() == [1, 0] + [PADDING] * (SLOTS - 2)
    assert found.points[0, 0, :3].tolist() == [[2, 3], [4, 5], [0, 0]]
    assert found.boxes is not None
    assert not found.boxes.any()


@settings(max_examples=25)
@given(st.integers(0, 20))
def test_packing_loses_no_point_and_repeats_itself(count: int) -> None:
    labels = torch.randint(-1, 2, (2, 3, count), generator=_rng(count))
    prompts = Prompts(torch.rand(2, 3, count, 2, generator=_rng(count)) * 20, labels, torch.ones(2, 3, 4))
    once = packed(prompts)
    assert sorted(_points(once)) == sorted(_points(prompts))
    assert _same(packed(once), once)
    assert once.point_labels is not None
    assert once.point_labels.shape[2] % SLOTS == 0


def test_a_mask_without_an_edge_in_the_slice_is_all_edge() -> None:
    full = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    assert edge_band(full).all()


def test_unknown_behaviours_and_impossible_shares_are_refused() -> None:
    with pytest.raises(SettingsError, match="lasso"):
        PromptMix.only("lasso")
    with pytest.raises(SettingsError, match="frequencies"):
        PromptMix(centre=-0.1)
    with pytest.raises(SettingsError, match="confusion"):
        PromptMix(confusion=1.5)
    assert set(BEHAVIOURS) >= BOXES | INSIDE
