import tomllib
from pathlib import Path

import torch

from handful.tuning.losses import bce, dice, dice_bce, dice_ce, dice_focal, fading, focal, whole_batch

TARGET = torch.zeros(2, 2, 8, 8)
TARGET[0, 0, 2:6, 2:6] = 1
TARGET[1, 1, :, :3] = 1
KNOWN = torch.ones(2, 8, 8, dtype=torch.bool)


def test_every_loss_is_near_nothing_for_a_certain_right_prediction():
    right = (TARGET * 2 - 1) * 20
    for loss in (dice, bce, focal, dice_bce, dice_focal, dice_ce):
        assert loss(right, TARGET, KNOWN) < 1e-3, loss.__name__


def test_every_loss_is_large_for_a_certain_wrong_prediction():
    wrong = (1 - TARGET * 2) * 20
    for loss in (dice, bce, focal, dice_bce, dice_focal, dice_ce):
        assert loss(wrong, TARGET, KNOWN) > 0.5, loss.__name__


def test_dice_of_a_known_overlap_is_exact():
    target, answer = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), -50.0)
    target[..., :2], answer[..., 1:3] = 1, 50.0  # eight cells each, four in common
    assert torch.isclose(dice(answer, target, KNOWN[:1, :4, :4]), torch.tensor(1 - (8 + 1) / (16 + 1)))


def test_dice_pulls_a_prediction_off_an_absent_label():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    dice(logits, torch.zeros(1, 1, 8, 8), KNOWN[:1]).backward()
    assert (logits.grad > 0).all()


def test_bce_of_an_undecided_prediction_is_the_logarithm_of_two():
    assert torch.isclose(bce(torch.zeros_like(TARGET), TARGET, KNOWN), torch.log(torch.tensor(2.0)))


def test_unlabelled_voxels_change_nothing():
    valid_mask = KNOWN.clone()
    valid_mask[:, 4:] = False
    logits = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = torch.where(valid_mask[:, None], TARGET, 1 - TARGET)
    for loss in (dice_bce, dice_focal, dice_ce):
        value = loss(logits, TARGET, valid_mask)
        assert torch.isclose(value, loss(logits, other, valid_mask)), loss.__name__
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient[:, :, 4:].any()
        assert gradient[:, :, :4].any()


def test_nothing_known_costs_nothing():
    nothing = torch.zeros_like(KNOWN)
    assert bce(torch.randn(TARGET.shape), TARGET, nothing) == 0


def test_softmax_loss_makes_labels_compete():
    both = torch.full((1, 2, 4, 4), 8.0)
    target = torch.zeros(1, 2, 4, 4)
    target[:, 0] = 1
    one = both.clone()
    one[:, 1] = -8
    valid_mask = KNOWN[:1, :4, :4]
    assert dice_ce(one, target, valid_mask) < dice_ce(both, target, valid_mask) - 0.3


def test_a_soft_target_is_best_met_by_its_own_value():
    target = torch.full((1, 1, 8, 8), 0.3)
    exact = torch.logit(target)
    for off in (-2.0, 2.0):
        assert dice_bce(exact, target, KNOWN[:1]) < dice_bce(exact + off, target, KNOWN[:1])


def test_finding_nothing_is_no_bargain_where_most_slices_lack_the_label():
    target = torch.zeros(4, 1, 8, 8)
    target[0, 0, 2:6, 2:6] = 1
    valid_mask = torch.ones(4, 8, 8, dtype=torch.bool)
    nothing = torch.full_like(target, -20)
    assert dice_ce(nothing, target, valid_mask) - bce(nothing, target, valid_mask) < 0.3, "each slice by itself"
    assert dice_ce(*whole_batch(nothing, target, valid_mask)) - bce(nothing, target, valid_mask) > 0.9


def test_the_dice_of_a_batch_is_that_of_all_its_pixels():
    target, answer = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), -50.0)
    target[0, :, :2], answer[:, :, 0] = 1, 50.0  # eight true, eight found, four of them right
    valid_mask = torch.ones(2, 4, 4, dtype=torch.bool)
    assert torch.isclose(dice(*whole_batch(answer, target, valid_mask)), torch.tensor(1 - (8 + 1) / (16 + 1)))


def test_a_balanced_entropy_hears_rare_labels_louder_and_is_no_louder_in_all():
    target = torch.zeros(1, 1, 8, 8)
    target[..., 0, 0] = 1
    valid_mask = torch.ones(1, 8, 8, dtype=torch.bool)

    def pull(rare_class_weight: float) -> torch.Tensor:
        logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(dice_ce(logits, target, valid_mask, rare_class_weight), logits)
        return gradient[0, 0]

    even, halfway = pull(0.0), pull(0.5)
    assert halfway[0, 0] < 3 * even[0, 0] < 0
    assert 0 < halfway[4, 4] < even[4, 4]
    undecided = torch.zeros(1, 1, 8, 8)
    assert torch.isclose(dice_ce(undecided, target, valid_mask, 0.5), dice_ce(undecided, target, valid_mask), rtol=1e-3)


def test_a_label_that_no_pixel_shows_does_not_upset_the_balance():
    nothing = torch.zeros(1, 2, 8, 8)
    value = dice_ce(nothing, nothing, KNOWN[:1], 0.5)
    assert torch.isfinite(value)
    assert torch.isfinite(dice_ce(nothing, nothing, torch.zeros_like(KNOWN[:1]), 0.5))


def test_a_fading_balance_is_whole_at_first_and_nothing_in_the_end():
    assert [fading(0.5, step, 10) for step in (0, 5, 10)] == [0.5, 0.25, 0.0]


def test_the_oldest_monai_that_is_allowed_masks_after_the_softmax():
    """Before 1.6, MaskedDiceLoss cleared logits of unlabelled pixels, which then entered the denominator."""
    requirements = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    (monai,) = [line for line in requirements["project"]["dependencies"] if line.startswith("monai")]
    assert monai == "monai>=1.6"
