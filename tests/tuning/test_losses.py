import torch

from handful.tuning.losses import bce, dice, dice_bce, dice_ce, dice_focal, focal

TARGET = torch.zeros(2, 2, 8, 8)
TARGET[0, 0, 2:6, 2:6] = 1
TARGET[1, 1, :, :3] = 1
KNOWN = torch.ones(2, 8, 8, dtype=torch.bool)


def test_every_loss_is_near_nothing_for_a_certain_right_answer():
    right = (TARGET * 2 - 1) * 20
    for loss in (dice, bce, focal, dice_bce, dice_focal, dice_ce):
        assert loss(right, TARGET, KNOWN) < 1e-3, loss.__name__


def test_every_loss_is_large_for_a_certain_wrong_answer():
    wrong = (1 - TARGET * 2) * 20
    for loss in (dice, bce, focal, dice_bce, dice_focal, dice_ce):
        assert loss(wrong, TARGET, KNOWN) > 0.5, loss.__name__


def test_dice_of_a_known_overlap_is_exact():
    target, answer = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), -50.0)
    target[..., :2], answer[..., 1:3] = 1, 50.0  # eight cells each, four in common
    assert torch.isclose(dice(answer, target, KNOWN[:1, :4, :4]), torch.tensor(1 - (8 + 1) / (16 + 1)))


def test_dice_pulls_an_answer_off_an_absent_label():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    dice(logits, torch.zeros(1, 1, 8, 8), KNOWN[:1]).backward()
    assert (logits.grad > 0).all()


def test_bce_of_an_undecided_answer_is_the_logarithm_of_two():
    assert torch.isclose(bce(torch.zeros_like(TARGET), TARGET, KNOWN), torch.log(torch.tensor(2.0)))


def test_unlabelled_voxels_have_no_say():
    known = KNOWN.clone()
    known[:, 4:] = False
    logits = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = torch.where(known[:, None], TARGET, 1 - TARGET)
    for loss in (dice_bce, dice_focal, dice_ce):
        value = loss(logits, TARGET, known)
        assert torch.isclose(value, loss(logits, other, known)), loss.__name__
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
    known = KNOWN[:1, :4, :4]
    assert dice_ce(one, target, known) < dice_ce(both, target, known) - 0.3


def test_a_soft_target_is_best_met_by_its_own_value():
    target = torch.full((1, 1, 8, 8), 0.3)
    exact = torch.logit(target)
    for off in (-2.0, 2.0):
        assert dice_bce(exact, target, KNOWN[:1]) < dice_bce(exact + off, target, KNOWN[:1])
