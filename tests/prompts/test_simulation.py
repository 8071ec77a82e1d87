"""The simulated annotator clicks in errors alone, with the right sign, and counts its clicks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from handful.errors import SettingsError
from handful.prompts.prompt_mix import PromptMix, simulate_prompts
from handful.prompts.prompts import PADDING, Prompts
from handful.prompts.simulation import Annotator, clicks_to_reach, correct, hard_dice, largest_error, simulate

CAREFUL = Annotator(careful=1, quick=0, sloppy=0)
QUICK = Annotator(careful=0, quick=1, sloppy=0)
SLOPPY = Annotator(careful=0, quick=0, sloppy=1)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _blobs(seed: int, shape: tuple[int, int, int, int] = (2, 3, 20, 24)) -> Tensor:
    noise = torch.rand(shape, generator=_rng(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) > 0.5


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([CAREFUL, QUICK, SLOPPY, Annotator()]), st.booleans())
def test_positive_clicks_lie_in_missed_and_negative_ones_in_false_positive_regions(
    seed: int, annotator: Annotator, weighted: bool
) -> None:
    truth, shown = _blobs(seed), _blobs(seed + 1)
    error = torch.rand(truth.shape, generator=_rng(seed)) if weighted else None
    said = correct(shown, truth, annotator, _rng(seed), error)
    assert said.points is not None
    assert said.point_labels is not None
    for n in range(2):
        for k in range(3):
            x, y = said.points[n, k, 0].long().tolist()
            label = int(said.point_labels[n, k, 0])
            if label == PADDING:
                assert torch.equal(shown[n, k], truth[n, k])
            else:
                assert bool(truth[n, k, y, x]) == (label == 1)
                assert bool(shown[n, k, y, x]) == (label == 0)


def test_the_largest_connected_error_decides_the_sign() -> None:
    truth = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    truth[0, 0, 5:15, 5:15] = True
    shown = truth.clone()
    shown[0, 0, 5:15:2, 5:15] = False  # 50 pixels missed, in strips of ten
    shown[0, 0, 17:20, 20:24] = True  # 12 false_positive, in one piece
    region, sign = largest_error(shown, truth)
    assert sign.tolist() == [[0]]
    assert int(region.sum()) == 12
    assert bool((region & shown & ~truth).sum() == 12)


def test_an_error_map_can_make_a_small_error_the_largest() -> None:
    truth = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    truth[0, 0, 2:10, 2:10] = True
    shown = torch.zeros_like(truth)
    shown[0, 0, 15:17, 20:22] = True
    error = torch.zeros(1, 1, 20, 30)
    error[0, 0, 15:17, 20:22] = 1.0
    assert largest_error(shown, truth)[1].item() == 1
    assert largest_error(shown, truth, error)[1].item() == 0


def test_an_error_map_makes_clicks_likelier_where_it_is_large() -> None:
    truth = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    truth[0, 0, 2:18, 2:18] = True
    error = torch.zeros(1, 1, 20, 20)
    error[0, 0, 15, 16] = 1.0
    said = correct(torch.zeros_like(truth), truth, QUICK, _rng(), error)
    assert said.points is not None
    assert said.points[0, 0, 0].tolist() == [16, 15]


def test_careful_annotators_click_in_the_middle_and_sloppy_ones_near_the_edge() -> None:
    truth = torch.zeros(1, 1, 41, 41, dtype=torch.bool)
    truth[0, 0, 5:36, 5:36] = True
    nothing = torch.zeros_like(truth)
    middle = correct(nothing, truth, CAREFUL, _rng()).points
    assert middle is not None
    assert middle[0, 0, 0].tolist() == [20, 20]
    for seed in range(10):
        near = correct(nothing, truth, SLOPPY, _rng(seed)).points
        assert near is not None
        x, y = near[0, 0, 0].tolist()
        assert min(x - 5, 35 - x, y - 5, 35 - y) < 3


def test_one_seed_gives_one_click() -> None:
    truth, shown = _blobs(1), _blobs(2)
    first, again = (correct(shown, truth, Annotator(), _rng(5)) for _ in range(2))
    assert torch.equal(first.points, again.points)  # type: ignore[arg-type]
    assert torch.equal(first.point_labels, again.point_labels)  # type: ignore[arg-type]


def _painter(truth: Tensor):  # type: ignore[no-untyped-def]
    """A model that gets right a square of nine pixels round every click."""

    def ask(prompts: Prompts) -> Tensor:
        shown = torch.zeros_like(truth) if prompts.masks is None else prompts.masks > 0
        assert prompts.points is not None
        assert prompts.point_labels is not None
        for n, k, p in (prompts.point_labels != PADDING).nonzero().tolist():
            x, y = prompts.points[n, k, p].long().tolist()
            part = (n, k, slice(max(0, y - 4), y + 5), slice(max(0, x - 4), x + 5))
            shown[part] = truth[part]
        return torch.where(shown, 5.0, -5.0)

    return ask


def test_a_simulated_annotator_corrects_until_all_is_right() -> None:
    truth = torch.zeros(1, 2, 30, 30, dtype=torch.bool)
    truth[0, 0, 5:20, 5:25] = True
    first = simulate_prompts(truth, PromptMix.only("centre"), _rng())
    rounds = simulate(_painter(truth), truth, first, CAREFUL, 8, _rng())
    assert rounds.dice.shape == (1, 2, 9)
    found = rounds.dice[0, 0]
    assert bool((found.diff() >= 0).all())
    assert found[0] < 0.6
    assert found[-1] == 1
    assert rounds.dice[0, 1].isnan().all()
    assert torch.equal(rounds.logits > 0, truth)


def test_clicks_are_counted_from_one_and_those_that_never_reach_count_as_the_most_there_were() -> None:
    dice = torch.tensor([[[0.5, 0.86, 0.91], [0.9, 0.2, 0.2], [0.1, 0.1, 0.1]]])
    assert clicks_to_reach(dice, 0.85).tolist() == [[2, 1, 3]]
    assert clicks_to_reach(dice, 0.9).tolist() == [[3, 1, 3]]


def test_dice_is_exact_and_unknown_where_there_is_no_truth() -> None:
    truth = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    truth[0, 0, :2] = True
    shown = torch.zeros_like(truth)
    shown[0, 0, 1:3] = True
    found = hard_dice(shown, truth)
    assert found[0, 0] == 0.5
    assert found[0, 1].isnan()


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(SettingsError, match="annotator"):
        Annotator(careful=0, quick=0, sloppy=0)
