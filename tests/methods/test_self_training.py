"""Self-training: what it learns from without labels, how slices are mixed, and when it stops listening to itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import IGNORE, Labels
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.nearest_slice import NearestSlice
from handful.methods.self_training.gate import PATIENCE, ROUNDS, Gate, combined_probabilities, dice
from handful.methods.self_training.initial import INITIAL, initial_labels, initial_method, labels_at_hand
from handful.methods.self_training.method import SelfTraining
from handful.methods.self_training.mixing import labelled_parts
from handful.methods.self_training.polarity import of_other_polarity
from handful.methods.self_training.pool import Pool, labels_in_one_piece, largest_pieces
from handful.methods.self_training.training import Mixture, SelfTrainingLoss
from handful.methods.stacks import UNKNOWN, StackedSupport, evenly
from handful.methods.unet.network import Net
from handful.tuning.loop import TrainConfig
from methods.variants import support as partly_labelled
from phantoms import LABELS, dot, dots, phantom, phantom_case, support_set
from scores import mean_dice
from tiny_models import tiny_sam

SIDE = 32
QUICK = TrainConfig(iterations=10, learning_rate=2e-3, ema=0.9)
SMALL = SelfTraining(encoder="none", channels=4, batch=4, side=SIDE, initial="none", train=QUICK)


def cohort(labelled: int = 1, unlabelled: int = 4) -> SupportSet:
    further = tuple(phantom_case(seed) for seed in range(20, 20 + unlabelled))
    return replace(support_set(labelled), unlabelled=UnlabelledScans.of(further))


def pool_of(support: SupportSet) -> Pool:
    return Pool.of(support, support.resolve(Slicer()), SIDE)


def stacked(support: SupportSet) -> StackedSupport:
    return StackedSupport.of(support, support.resolve(Slicer()), SIDE, 1)


# What it learns from.


def test_the_pool_holds_unlabelled_scans_and_the_unlabelled_slices_of_labelled_ones():
    whole, part = pool_of(cohort()), pool_of(partly_labelled())
    assert whole.names == tuple(f"phantom-{seed}" for seed in range(20, 24))
    assert set(part.names) == {"phantom-0", "phantom-1"}
    assert sorted(part.number[part.case == 0].tolist()) == [0, 1, 5]
    assert not len(pool_of(support_set(1)))


def test_few_slices_of_a_scan_are_not_its_ends():
    assert (evenly(3, 5), evenly(6, 4), evenly(10, 2), evenly(10, 1)) == ([0, 1, 2], [0, 2, 3, 5], [2, 7], [5])


def test_first_labels_of_another_backbone_are_not_taken_up(tmp_path: Path):
    method = replace(SMALL, initial="nearest-slice", train=replace(QUICK, iterations=2))
    for seed in (0, 1):
        method.fit(cohort(unlabelled=1), tiny_sam(seed, side=64), Run(scratch=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_without_unlabelled_scans_it_learns_from_labelled_ones_and_says_so(sam: Backbone):
    segmenter = SMALL.fit(support_set(1), sam)
    assert "no scans without labels" in segmenter.decisions[-1]
    assert segmenter.reliability == {}


def test_labels_of_unlabelled_scans_have_no_say(sam: Backbone):
    support = cohort()
    swapped = replace(support, unlabelled=UnlabelledScans(tuple(phantom_case(seed) for seed in range(20, 24))))
    one, other = SMALL.fit(support, sam).learned(), SMALL.fit(swapped, sam).learned()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    fewer = SMALL.fit(cohort(unlabelled=3), sam).learned()
    assert not all(torch.equal(value, fewer[key]) for key, value in one.items())


@pytest.mark.learning
def test_unlabelled_scans_help(sam: Backbone):
    case = phantom_case(0)
    reference = case.read_reference()
    array = np.full_like(reference.array, IGNORE)
    array[:, 2:4] = reference.array[:, 2:4]
    few = replace(case, reference=replace(reference, array=array))
    support = replace(cohort(unlabelled=8), cases=(few,))
    method = replace(SMALL, channels=8, gate=0.0, train=TrainConfig(iterations=120, learning_rate=5e-3, ema=0.95))
    unseen = [phantom(seed) for seed in range(40, 46)]

    def score(one: SelfTraining) -> float:
        segmenter = one.fit(support, sam)
        return float(np.mean([mean_dice(segmenter.predict(image), truth) for image, truth in unseen]))

    assert score(method) > score(replace(method, unlabelled_weight=0, supervised=0.9)) + 0.01


# Pictures of two kinds.


def test_a_fit_says_how_many_pictures_are_negatives_of_the_labelled_ones(sam: Backbone):
    mixed = [line for line in SMALL.fit(dots(3), sam).decisions if "negatives" in line]
    assert len(mixed) == 1
    assert mixed[0].startswith("3 of 8 unlabelled pictures")
    assert not any("negatives" in line for line in SMALL.fit(dots(0), sam).decisions)


@pytest.mark.learning
def test_negatives_of_labelled_pictures_are_segmented(sam: Backbone):
    method = replace(SMALL, train=TrainConfig(iterations=60, learning_rate=1e-2, ema=0.9))
    unseen = [dot(seed, negative=True) for seed in range(40, 46)]

    def score(support: SupportSet) -> float:
        segmenter = method.fit(support, sam)
        return float(np.mean([mean_dice(segmenter.predict(c.read_image()), c.read_reference()) for c in unseen]))

    assert score(dots(3)) > 0.7
    assert score(dots(1)) < 0.5


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "expected"),
    [
        ([0.05, 0.1], [0.05] * 6 + [0.7, 0.9], 2),
        ([0.7, 0.9], [0.8] * 6 + [0.1, 0.2], 2),
        ([0.05, 0.1], [0.05] * 7 + [0.9], 0),  # a single one
        ([0.05, 0.7], [0.05] * 6 + [0.7, 0.9], 0),  # both kinds are labelled
        ([0.3, 0.45], [0.4] * 6 + [0.6, 0.7], 0),  # brighter, but no other kind
        ([0.05] * 2, [0.05] * 98 + [0.9] * 2, 0),  # too few
    ],
)
def test_pictures_of_the_other_polarity_are_counted(labelled: list[float], unlabelled: list[float], expected: int):
    def slices(levels: list[float]) -> Tensor:
        return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 4)

    assert of_other_polarity(slices(labelled), slices(unlabelled)) == expected


# Pieces.


def two_pieces() -> Tensor:
    classes = torch.zeros(1, 16, 16, dtype=torch.int16)
    classes[0, 1:7, 1:7] = 1
    classes[0, 10:12, 10:12] = 1
    classes[0, 1:3, 10:15] = 2
    classes[0, 12:15, 1:3] = 2
    return classes


def test_only_the_largest_piece_of_a_label_that_comes_in_one_is_kept():
    kept = largest_pieces(two_pieces(), [1])
    assert int((kept == 1).sum()) == 36
    assert int((kept == 2).sum()) == int((two_pieces() == 2).sum())


def test_what_comes_in_one_piece_is_learned_from_the_labelled_slices():
    assert labels_in_one_piece(stacked(support_set(2)), len(LABELS)) == (1, 2)
    scattered = stacked(support_set(2))
    scattered.classes[:, ::4, ::4] = 2
    assert labels_in_one_piece(scattered, len(LABELS)) == (1,)


# Mixing.


def test_boxes_are_a_third_to_two_thirds_wide_and_take_turns():
    parts = labelled_parts(40, 60, Generator().manual_seed(0))
    boxes = torch.where((torch.arange(40) % 2 == 1)[:, None, None], parts, ~parts)
    for box in boxes:
        rows, columns = box.any(dim=1).sum(), box.any(dim=0).sum()
        assert rows == columns
        assert 20 <= int(rows) <= 40
        assert int(box.sum()) == int(rows * columns)


def test_unlabelled_slices_gain_their_weight_step_by_step():
    mixture = Mixture(first=100, full=200, weight=0.5, strength=1.0, confidence=0.9)
    assert mixture.weight_at(100) == pytest.approx(0.005)
    assert mixture.weight_at(149) == pytest.approx(0.25)
    assert mixture.weight_at(199) == mixture.weight_at(900) == 0.5


class LabelOne(Net):
    """A net that finds the first label everywhere with a probability of 0.73, and the others not at all."""

    def exits(self, stacks: Tensor) -> list[Tensor]:
        logits = torch.full((len(stacks), len(LABELS), *stacks.shape[2:]), -20.0)
        logits[:, 0] = 1.0
        return [logits]


def learned_labels(confidence: float, initial: Tensor | None = None) -> set[int]:
    """Classes of unmoved slices by that net as the teacher."""
    support, half = cohort(), replace(SMALL, confidence=confidence)
    pool, labels, plan = pool_of(support), stacked(support), SMALL.plan(support, support.resolve(Slicer()), tiny_sam())
    gate, teacher = Gate(pool, 0.0, 0, 80, initial, None), LabelOne(plan)
    net = SMALL.net(plan, len(LABELS))
    supervised = SMALL.loss(net, labels, len(LABELS), SMALL.views(plan, alone=False), 10, None)
    loss = SelfTrainingLoss(supervised, teacher, pool, half.mixture(10), gate, (), initial)
    slices, everywhere = pool.slices[:4].float(), torch.ones(4, SIDE, SIDE, dtype=torch.bool)
    unmoved = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(4, -1, -1), list(slices.shape), False)
    gate.check(0, *[lambda part: torch.ones(part[:, 0].shape).short()] * 2)
    return set(loss.pseudo_labels(slices, torch.arange(4), unmoved, everywhere, step=0).unique().tolist())


def test_pixels_of_which_the_teacher_is_unsure_are_left_out_unless_they_have_a_first_label():
    assert learned_labels(0.7) == {1}
    assert learned_labels(0.8) == {UNKNOWN}
    first = torch.full((len(pool_of(cohort())), SIDE, SIDE), 1, dtype=torch.int16)
    first[:, :8] = UNKNOWN
    assert learned_labels(0.8, first) == {1, UNKNOWN}


# The first labels.


def test_first_labels_are_the_methods_own_predictions_and_are_made_once(
    sam: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    support, method = cohort(), NearestSlice()
    slicer = support.resolve(Slicer())
    pool = pool_of(support)
    found = initial_labels(method, support, pool, slicer, sam, Run(tmp_path))
    segmenter = method.fit(support, sam)
    (_, image), *_ = support.unlabelled
    view = slicer.view(image)
    expected = np.searchsorted([0, *LABELS.values], view.of(segmenter.predict(image).array))
    number = int(pool.number[0])
    shown = torch.nn.functional.interpolate(found[None, :1].float(), view.size)[0, 0].numpy()
    assert (shown == expected[number]).mean() > 0.95
    monkeypatch.setattr(NearestSlice, "fit", lambda *_: pytest.fail("fitted again"))
    again = initial_labels(method, support, pool, slicer, sam, Run(tmp_path))
    assert torch.equal(again, found)


def test_voxels_of_uncertain_labels_that_are_ignored_are_unknown():
    case = phantom_case(20)
    reference = case.read_reference()
    array = reference.array.copy()
    array[: len(array) // 2] = IGNORE
    support = replace(
        support_set(1), unlabelled=UnlabelledScans((case,), labels={case.name: replace(reference, array=array)})
    )
    slicer, pool = support.resolve(Slicer()), pool_of(support)
    whole = replace(support, unlabelled=UnlabelledScans((case,), labels={case.name: reference}))
    found, known = (labels_at_hand(one, pool, slicer) for one in (support, whole))
    view = slicer.view(case.read_image())
    ignored = torch.from_numpy(view.of(array)[pool.number.numpy()] == IGNORE)
    shares = torch.nn.functional.interpolate(ignored[None].float(), (SIDE, SIDE), mode="area")[0]
    assert (found[shares == 1] == UNKNOWN).all()
    assert (known != UNKNOWN).all()
    seen = found != UNKNOWN
    assert seen.float().mean() > 0.4
    assert torch.equal(found[seen], known[seen])


def test_uncertain_labels_that_are_not_learned_are_background():
    case = phantom_case(20)
    reference = case.read_reference()
    one = Labels.of({LABELS.values[1]: LABELS.names[1]})
    support = replace(
        support_set(1), labels=one, unlabelled=UnlabelledScans((case,), labels={case.name: reference}), known_facts=None
    )
    all_labels = replace(support_set(1), unlabelled=support.unlabelled)
    slicer, pool = support.resolve(Slicer()), pool_of(support)
    found, known = labels_at_hand(support, pool, slicer), labels_at_hand(all_labels, pool, slicer)
    assert (known == 1).any()
    assert (found[known == 1] != 1).float().mean() > 0.9
    assert ((found == 1) == (known == 2)).float().mean() > 0.99


def test_a_method_for_the_first_labels_is_chosen_by_name():
    assert initial_method("none", {}) is None
    method = initial_method("unet", {"side": "64", "train": {"iterations": 7}})
    assert method == INITIAL["unet"](side=64, train=replace(method.train, iterations=7))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"initial": "fat"}, "did you mean 'fate'"),
        ({"initial": "none", "initial_settings": {"window": 0}}, "has no settings"),
        ({"initial": "fate", "initial_settings": {"windw": 0}}, "has no setting 'windw'"),
        ({"gate": 1.5}, "gate must be from 0 to 1"),
        ({"supervised": -0.1}, "supervised must be from 0"),
        ({"dims": 3}, "dims=2"),
        ({"augmentation": "always"}, "augmentation=nnunet"),
        ({"train": TrainConfig()}, r"train\.ema above 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], said: str):
    with pytest.raises(SettingsError, match=said):
        SelfTraining(**settings)


# The gate.


def opinion(pool: Pool, size: int) -> Tensor:
    """A square of that size in every slice that is checked."""
    classes = torch.zeros(len(pool), SIDE, SIDE, dtype=torch.int16)
    classes[:, :size, :size] = 1
    return classes


def checked(gate: Gate, steps: int, student: Tensor, teacher: Tensor) -> Gate:
    """The gate after all checks, in which both always say the same."""
    for step in range(steps):
        check(gate, step, student, teacher)
    return gate


def check(gate: Gate, step: int, student: Tensor, teacher: Tensor) -> None:
    """A check at this step, if one is due, of what they say."""
    ask = [iter(torch.split(one[gate.rows], 8)) for one in (student, teacher)]
    gate.check(step, lambda _: next(ask[0]), lambda _: next(ask[1]))


def test_reliability_is_the_agreement_of_all_three():
    pool = pool_of(cohort())
    first, small = opinion(pool, 16), opinion(pool, 8)
    assert dice(small, first) == pytest.approx(2 * 64 / (64 + 256))
    agreed = checked(Gate(pool, 0.4, 0, 80, first, None), 80, first, first)
    assert set(agreed.of_cases().values()) == {1.0}
    first[:, 8:] = UNKNOWN
    first[:, :8, 8:] = UNKNOWN
    assert set(checked(Gate(pool, 0.4, 0, 80, first, None), 80, small, small).of_cases().values()) == {1.0}
    large = opinion(pool, 16)
    assert set(checked(Gate(pool, 0.4, 0, 80, first, None), 80, large, large).of_cases().values()) == {1.0}
    first = large
    one_apart = checked(Gate(pool, 0.4, 0, 80, first, None), 80, small, first)
    assert set(one_apart.of_cases().values()) == {0.4}
    assert set(one_apart.of_cases()) == set(pool.names)


def test_nothing_found_anywhere_is_no_agreement():
    nothing = torch.zeros(2, SIDE, SIDE, dtype=torch.int16)
    assert dice(nothing, nothing) == 0.0


def volumes_of_nothing_but(middle: range, cases: int, slices: int) -> tuple[Pool, Tensor]:
    """A pool of volumes, and labels that are a square in the `middle` of each volume's slices."""
    case = torch.arange(cases).repeat_interleave(slices)
    number = torch.arange(slices).repeat(cases)
    names = tuple(f"case-{one}" for one in range(cases))
    pool = Pool(names, tuple(range(cases)), torch.zeros(cases * slices, 1, SIDE, SIDE).half(), case, number)
    labels = torch.zeros(len(pool), SIDE, SIDE, dtype=torch.int16)
    labels[(number >= middle.start) & (number < middle.stop), :16, :16] = 1
    return pool, labels


def test_of_many_volumes_few_slices_are_checked_that_are_not_the_outermost_ones():
    pool, first = volumes_of_nothing_but(range(2, 6), cases=192, slices=8)
    gate = checked(Gate(pool, 0.4, 0, 80, first, None), 80, first, first)
    assert pool.number[gate.rows].tolist() == [2, 6] * 192
    assert set(gate.of_cases().values()) == {1.0}
    assert gate.reliable(79).all()


def test_volumes_that_show_nothing_in_the_slices_that_are_checked_count_as_the_others():
    pool, first = volumes_of_nothing_but(range(2, 6), cases=192, slices=8)
    first[(pool.case > 50) & (pool.number != 4)] = 0
    gate = checked(Gate(pool, 0.4, 0, 80, first, None), 80, opinion(pool, 8) * (first > 0), first)
    assert set(gate.of_cases().values()) == {0.4}


def test_noise_is_not_learned_from_once_there_was_time_to_agree():
    pool = pool_of(cohort())
    first = opinion(pool, 16)
    gate = checked(Gate(pool, 0.5, 0, 80, first, None), 80, opinion(pool, 8), first)
    judged = PATIENCE * (80 // ROUNDS)
    assert gate.reliable(judged - 1).all()
    assert not gate.reliable(judged).any()
    assert f"after step {judged}" in gate.summary()[0]
    assert "0.40" in gate.summary()[0]


def test_a_single_case_without_agreement_is_left_out():
    pool = pool_of(cohort())
    first = opinion(pool, 16)
    student = first.clone()
    student[pool.case == 1] = 0
    gate = checked(Gate(pool, 0.5, 0, 80, first, None), 80, student, first)
    assert torch.equal(gate.reliable(79), pool.case != 1)
    assert "1 of 4 left out in the end" in gate.summary()[0]


def test_without_first_labels_the_teacher_is_compared_with_itself_earlier():
    pool = pool_of(cohort())
    gate = Gate(pool, 0.4, 0, 80, None, None)
    for step, size in ((0, 8), (10, 16), (20, 16)):
        check(gate, step, opinion(pool, size), opinion(pool, size))
    assert [one.median for one in gate.checks] == [1.0, 0.4, 1.0]


def test_a_teacher_that_changes_before_it_learns_from_itself_is_not_learned_from():
    pool = pool_of(cohort())
    gate = Gate(pool, 0.5, 20, 100, None, None)
    for step in range(100):
        same = opinion(pool, 16 if step >= 20 else 8)
        check(gate, step, same, same)
    assert [one.step for one in gate.checks] == list(range(10, 100, 10))
    assert gate.reliable(19).all()
    assert not any(gate.reliable(step).any() for step in (20, 30, 99))
    assert "left out 4 unlabelled scans after step 20: teacher and U-Net agree with a median Dice of 0.40" in str(
        gate.summary()
    )


def test_the_last_steps_with_labels_alone_are_checked(sam: Backbone):
    segmenter = replace(SMALL, gate=0.0).fit(cohort(), sam)
    assert "learned from 4 unlabelled scans" in segmenter.decisions[-1]
    stopped = replace(SMALL, gate=1.0).fit(cohort(), sam)
    assert "left out 4 unlabelled scans after step 2:" in stopped.decisions[-1]  # a fifth of 10 steps


def test_a_resumed_gate_knows_what_was_found(tmp_path: Path):
    pool = pool_of(cohort())
    first = opinion(pool, 16)
    before = checked(Gate(pool, 0.5, 0, 80, None, tmp_path), 45, opinion(pool, 8), first)
    resumed = Gate(pool, 0.5, 0, 80, None, tmp_path)
    assert resumed.checks == before.checks
    assert torch.equal(resumed.reliable(44), before.reliable(44))
    assert checked(resumed, 80, first, first).checks == checked(before, 80, first, first).checks


def test_opinions_are_weighed_by_reliability():
    teacher = torch.full((2, 3, 4, 4), 1 / 3)
    first = torch.full((2, 4, 4), 2)
    shares = combined_probabilities(teacher, first, torch.tensor([1.0, 0.0]))
    assert torch.allclose(shares[0], teacher[0])
    assert torch.equal(shares[1, 2], torch.ones(4, 4))
    first[1, 0] = UNKNOWN
    shares = combined_probabilities(teacher, first, torch.tensor([1.0, 0.0]))
    assert torch.allclose(shares[1, :, 0], teacher[1, :, 0])
    assert torch.equal(shares[1, 2, 1:], torch.ones(3, 4))


def test_the_segmenter_tells_how_reliable_each_case_was(sam: Backbone):
    segmenter = SMALL.fit(cohort(), sam)
    assert set(segmenter.reliability) == {f"phantom-{seed}" for seed in range(20, 24)}
    assert all(0 <= value <= 1 for value in segmenter.reliability.values())
    assert "4 unlabelled scans" in " ".join(segmenter.decisions)
