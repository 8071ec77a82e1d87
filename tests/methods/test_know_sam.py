"""KnowSAM: how two networks and a SAM learn from each other, and what of them a prediction needs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from handful.backbones.absent import AbsentBackbone
from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.errors import SettingsError
from handful.methods.know_sam.method import KnowSam
from handful.methods.know_sam.mixing import PATCHES, REPLACED, exchanged, most_certain
from handful.methods.know_sam.networks import (
    WIDEST_ODDS,
    Fusion,
    LearnedPrompts,
    SamBranch,
    distance,
    entropy,
    odds,
    with_background,
)
from handful.methods.know_sam.training import KnowSamLoss, Weights, disagreement
from handful.methods.self_training.pool import Pool
from handful.methods.stacks import StackedSupport
from handful.tuning.loop import TrainConfig
from phantoms import LABELS, dots, phantom_case, support_set

SIDE = 32
QUICK = TrainConfig(iterations=8, learning_rate=2e-3, ema=0.9)
SMALL = KnowSam(encoder="none", channels=4, batch=4, side=SIDE, train=QUICK)
WEIGHTS = Weights(distillation=1.0, temperature=10.0, certainty=0.9, strength=1.3, mixing_from=4, steps=8)


def cohort(unlabelled: int = 3) -> SupportSet:
    further = tuple(phantom_case(seed) for seed in range(20, 20 + unlabelled))
    return replace(support_set(1), unlabelled=UnlabelledScans.of(further))


def loss_of(backbone: Backbone, support: SupportSet) -> KnowSamLoss:
    slicer, labels, unet = support.resolve(Slicer()), len(support.labels), SMALL._unet()
    plan = unet.plan(support, slicer, backbone)
    stacked, pool = StackedSupport.of(support, slicer, SIDE, 1), Pool.of(support, slicer, SIDE)
    networks = SMALL._networks(plan, labels, backbone, with_sam=True)
    return KnowSamLoss(networks, stacked, pool, labels, unet.views(plan, alone=False), SMALL.batch, WEIGHTS)


def random_logits(seed: int, classes: int = 4) -> Tensor:
    return torch.randn(2, classes - 1, 8, 8, generator=Generator().manual_seed(seed))


# What the terms of the loss compare.


def test_distillation_and_agreement_compare_all_classes():
    teacher = torch.zeros(1, 3, 4, 4)
    for label in range(3):
        changed = teacher.clone()
        changed[:, label] += 2.0
        assert distance(changed, teacher, 10.0) > 0.01
        assert disagreement(changed, teacher) > disagreement(teacher, teacher) + 0.01
    assert distance(teacher, teacher, 10.0) == pytest.approx(0, abs=1e-6)


def test_distillation_is_that_of_softened_predictions():
    student, teacher = random_logits(1), random_logits(2)
    p = (with_background(teacher) / 10).softmax(1)
    q = (with_background(student) / 10).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean() * 100
    torch.testing.assert_close(distance(student, teacher, 10.0), expected)


def test_agreement_gives_gradients_to_one_network_and_never_to_the_other():
    own, other = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    disagreement(own, other).backward()
    assert own.grad is not None
    assert own.grad.abs().sum() > 0
    assert other.grad is None


def test_agreement_counts_more_and_more():
    assert [round(WEIGHTS.agreement_at(step), 3) for step in (0, 4, 8)] == [
        round(math.exp(-5), 3),
        round(math.exp(-1.25), 3),
        1.0,
    ]


def test_entropy_is_a_share_of_the_largest():
    certain = torch.tensor([40.0, 0, 0]).reshape(1, 3, 1, 1)
    assert entropy(torch.zeros(1, 4, 1, 1)).item() == pytest.approx(1)
    assert entropy(with_background(certain)).item() == pytest.approx(0, abs=1e-4)


def test_a_mask_prompt_is_the_logit_of_its_class_against_all_others():
    logits = with_background(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1))
    shares = logits.softmax(1)
    torch.testing.assert_close(odds(logits), (shares / (1 - shares)).log())
    assert odds(with_background(torch.full((1, 1, 1, 1), 90.0))).abs().max() == WIDEST_ODDS


# The networks.


def test_a_fusion_starts_as_the_mean_and_learns_from_where_networks_differ():
    fusion, one, other = Fusion(3, seed=0), random_logits(1), random_logits(2)
    torch.testing.assert_close(fusion(one, other), (one + other) / 2)
    fusion(one, other).square().mean().backward()
    weight = fusion.layers[-1].weight
    assert isinstance(weight, Tensor)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_each_class_has_prompts_of_its_own_which_depend_on_the_slice():
    prompts, main = LearnedPrompts(16, 3), torch.randn(2, 16, 8, 8, generator=Generator().manual_seed(0))
    tokens = prompts(main)
    assert tokens.shape == (2, 3, 2, 16)
    assert not torch.allclose(tokens[0], tokens[1])
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])


def test_the_sam_is_prompted_by_the_fused_masks_and_leaves_the_backbone_as_it_was(sam: Backbone):
    before, digest = [p.requires_grad for p in sam.parameters()], sam.digest()
    branch = SamBranch(sam, labels=2, width=4, seed=0)
    slices = torch.rand(1, 1, SIDE, SIDE, generator=Generator().manual_seed(0))
    fused = torch.full((1, 2, SIDE, SIDE), -5.0)
    nothing = branch(slices, fused)
    fused[:, 0, 8:20, 8:20] = 5
    something = branch(slices, fused)
    assert something.shape == fused.shape
    assert not torch.allclose(nothing, something)
    something.square().mean().backward()
    assert all(p.grad is not None for p in branch.prompts.parameters())
    assert (before, digest) == ([p.requires_grad for p in sam.parameters()], sam.digest())
    assert all(p.grad is None for p in sam.parameters())


# Mixing.


def test_the_most_certain_patches_are_those_of_lowest_entropy():
    entropies = torch.ones(1, 16, 16)
    entropies[0, :4, :16] = 0  # the first row of patches
    entropies[0, 4:8, 4:8] = 0.5
    chosen = most_certain(entropies)
    assert int(chosen.sum()) == REPLACED * (16 // PATCHES) ** 2
    assert bool(chosen[0, :4].all())
    assert bool(chosen[0, 4:8, 4:8].all())


def test_slices_and_labels_are_exchanged_at_the_same_places():
    one, other = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    here, there = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    here[0, 0, 0] = there[0, 3, 3] = True
    for a, b in (exchanged(one, other, here, there), exchanged(one[:, 0], other[:, 0], here, there)):
        assert a.sum() == a.numel() // 16
        assert (1 - b).sum() == b.numel() // 16
        assert bool((a[..., 0, 0] == 1).all())
        assert bool((b[..., 3, 3] == 0).all())


# A training step.


def test_a_step_trains_both_networks_the_fusion_and_the_sam(sam: Backbone):
    loss = loss_of(sam, cohort())
    for step in (0, 6):
        loss.networks.zero_grad()
        loss(step, Generator().manual_seed(step)).backward()
        for part in (loss.networks.first, loss.networks.second, loss.networks.fusion, loss.sam.prompts):
            assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0


def test_mixed_slices_are_learned_from_after_the_first_part_of_the_training(sam: Backbone):
    loss = loss_of(sam, cohort())
    calls: list[int] = []
    loss.networks.register_forward_hook(lambda _, arguments, __: calls.append(len(arguments[0])))
    loss(WEIGHTS.mixing_from - 1, Generator().manual_seed(0))
    assert calls == [4]
    loss(WEIGHTS.mixing_from, Generator().manual_seed(0))
    assert calls == [4, 4, 4]


def test_without_unlabelled_scans_it_learns_from_labelled_ones_and_says_so(sam: Backbone):
    segmenter = SMALL.fit(support_set(1), sam)
    assert segmenter.decisions[-1] == "learned from no unlabelled scans, since there are none"
    assert SMALL.fit(cohort(), sam).decisions[-1] == "learned from 3 unlabelled scans"


def test_the_fused_answer_needs_no_backbone_and_stores_none_of_it(sam: Backbone):
    names = SMALL.fit(cohort(), sam).learned()
    assert not [name for name in names if name.startswith("networks/sam.")]
    assert not SMALL.needs_backbone(names)
    restored = SMALL.restore(LABELS, Slicer(), AbsentBackbone("sam"), names)
    assert restored(torch.rand(1, 1, 32, 32)).isfinite().all()
    by_sam = replace(SMALL, answer="sam")
    answered = by_sam.fit(cohort(), sam).learned()
    assert [name for name in answered if name.startswith("networks/sam.")]
    assert by_sam.needs_backbone(answered)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 1}, "batch must be at least 2"),
        ({"mixing": 1.5}, "mixing must be from 0 to 1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"sam_rate": -1.0}, "sam_rate must be above 0"),
        ({"side": 33}, "side must be a multiple of 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(SettingsError, match=message):
        KnowSam(**settings)  # type: ignore[arg-type]


def test_pictures_that_are_negatives_of_the_labelled_ones_are_noted(sam: Backbone):
    notes = [[line for line in SMALL.fit(dots(count), sam).decisions if "negatives" in line] for count in (3, 0)]
    assert [len(lines) for lines in notes] == [1, 0]
