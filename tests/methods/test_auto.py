"""Auto: the rules of its choice, and its check on labelled cases that are left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.auto.check import Check, Stopwatch
from handful.methods.auto.choice import (
    ENOUGH_UNLABELLED,
    FEWEST_STEPS,
    MOST_STEPS,
    SELF_TRAINING,
    SMALLEST_SIDE,
    UNET,
    Choice,
    Rival,
    Situation,
    Speed,
    on_ladder,
    paced,
    preferred_method,
    training_reason,
    with_training,
)
from handful.methods.auto.method import NOTE, Auto, after_check, after_training
from handful.methods.left_out import one_left_out
from handful.methods.self_training.method import SelfTraining
from handful.methods.unet.method import UNet
from handful.tuning.loop import TrainConfig
from methods.variants import support as partly_labelled
from phantoms import LABELS, phantom, phantom_case, support_set

QUICK = TrainConfig(iterations=4, learning_rate=2e-3, ema=0.9)
SMALL = {"encoder": "none", "channels": 4, "batch": 2, "side": 32, "train": QUICK}
AUTO = Auto(unet=UNet(**SMALL), self_training=SelfTraining(initial="none", **SMALL))


def with_unlabelled(support: SupportSet, count: int) -> SupportSet:
    cases = tuple(phantom_case(seed) for seed in range(20, 20 + count))
    return replace(support, unlabelled=UnlabelledScans.of(cases))


# The rules.


@pytest.mark.parametrize(
    ("unlabelled", "method"), [(0, UNET), (ENOUGH_UNLABELLED - 1, UNET), (ENOUGH_UNLABELLED, SELF_TRAINING)]
)
def test_unlabelled_scans_are_used_if_there_are_enough(unlabelled: int, method: str):
    situation = Situation(patients=4, labelled=4, unlabelled=unlabelled)
    choice = preferred_method(situation)
    assert choice.method == method
    assert f"{unlabelled or 'no'} unlabelled scans" in choice.reasons[0]


def test_uncertain_labels_are_learned_from_however_few():
    support = with_unlabelled(support_set(2), 1)
    scans = replace(support.unlabelled, labels={"phantom-20": phantom(20)[1]})
    choice = preferred_method(Situation.of(replace(support, unlabelled=scans)))
    assert (choice.method, choice.reasons) == (
        SELF_TRAINING,
        ("2 labelled cases and 1 with uncertain labels, so these are used too",),
    )


def test_scans_that_are_labelled_in_part_count_as_unlabelled_too():
    whole, part = (Situation.of(with_unlabelled(cases, 3)) for cases in (support_set(2), partly_labelled()))
    assert (whole.labelled, whole.patients, whole.unlabelled) == (2, 2, 3)
    assert part.unlabelled == 5


def test_more_time_means_more_steps_and_never_more_than_the_time_allows():
    speed, minutes = Speed(side=128, seconds=0.5), (5, 10, 20)
    found = [with_training(Choice(method=UNET), speed, time) for time in minutes]
    steps = [choice.steps for choice in found if choice and choice.steps]
    assert steps == sorted(set(steps))
    planned = [choice.steps * speed.at(choice.side or 128) for choice in found if choice and choice.steps]
    assert all(0.5 * 60 * time < seconds < 60 * time for time, seconds in zip(minutes, planned, strict=True))
    unlimited = with_training(Choice(method=UNET), Speed(side=128, seconds=0.5), 10_000)
    assert unlimited
    assert unlimited.steps == MOST_STEPS[UNET]


def test_slices_are_reduced_before_training_becomes_short_and_the_reason_says_so():
    choice = with_training(Choice(method=UNET), Speed(side=256, seconds=4.0), 30)
    assert choice
    assert choice.side is not None
    assert SMALLEST_SIDE <= choice.side < 256
    assert "reduced from 256" in training_reason(choice, 256, 30)
    assert with_training(Choice(method=UNET), Speed(side=128, seconds=100.0), 30) is None


def test_the_time_left_after_the_check_decides_the_steps():
    choice = Choice(method=SELF_TRAINING, steps=2000, side=96)
    slower, faster = paced(choice, 1.0, 900), paced(choice, 0.1, 900)
    assert slower.steps == 900
    assert faster.steps == 9000
    assert slower.side == 96
    assert paced(choice, 1.0, -5).steps == FEWEST_STEPS


def test_a_stopwatch_times_the_training_and_passes_reports_on():
    seen: list[int] = []
    watch = Stopwatch(lambda step, total, note: seen.append(step), steps=3)
    for step, total in ((0, 3), (1, 9), (1, 3)):
        watch(step, total, "")
    assert watch.seconds_per_step is None
    watch(2, 3, "")
    assert watch.seconds_per_step is not None
    assert watch.seconds_per_step >= 0
    assert seen == [0, 1, 1, 2]


def test_a_little_slower_machine_trains_as_long():
    first, second = (with_training(Choice(method=UNET), Speed(side=128, seconds=s), 30) for s in (0.5, 0.54))
    assert first
    assert second
    assert first.steps == second.steps


@pytest.mark.parametrize(("steps", "rung"), [(0.3, 0), (1, 1), (999, 900), (1000, 1000), (1499, 1400), (5999, 5600)])
def test_steps_are_rounded_down_to_usual_numbers(steps: float, rung: int):
    assert on_ladder(steps) == rung


def test_a_choice_survives_being_saved():
    choice = Choice(method=UNET, steps=300, side=96, reasons=("because", "größer"))
    assert Choice.unpack(choice.pack()) == choice


# What it fits.


def test_self_training_is_fitted_where_scans_are_unlabelled(sam: Backbone):
    segmenter = replace(AUTO, check=False).fit(with_unlabelled(support_set(1), ENOUGH_UNLABELLED), sam)
    assert segmenter.choice.method == SELF_TRAINING
    assert segmenter.decisions[0] == "chosen: self-training"
    assert len(segmenter.reliability) == ENOUGH_UNLABELLED


def test_a_side_that_is_set_is_timed_and_kept_and_the_reason_names_it(sam: Backbone):
    settings = SMALL | {"side": 64, "train": replace(QUICK, iterations=None)}
    trained = SelfTraining(initial="none", **settings)
    method = replace(AUTO, check=False, self_training=trained, budget_minutes=100_000)  # enough on any machine
    support = with_unlabelled(support_set(1), ENOUGH_UNLABELLED)
    choice = method._choice(support, method.resolved_slicer(support), sam, Run())
    assert (choice.method, choice.side) == (SELF_TRAINING, None)
    assert "steps on 64 × 64 pixels" in choice.reasons[-1]
    choice = with_training(Choice(method=UNET), Speed(side=256, seconds=2.0), 30, smallest=256)
    assert choice is not None
    assert choice.side is None


def test_a_single_patient_cannot_be_left_out_and_that_is_said(sam: Backbone):
    segmenter = AUTO.fit(support_set(1), sam)
    assert segmenter.choice.method == UNET
    assert any("not checked" in reason for reason in segmenter.decisions)


def test_a_training_that_comes_to_nothing_is_replaced_by_what_the_check_found_better(sam: Backbone):
    untrained = replace(AUTO, unet=replace(AUTO.unet, train=replace(QUICK, iterations=1)))
    segmenter = untrained.fit(support_set(3), sam)
    assert segmenter.choice.method == "nearest-slice"
    check = next(reason for reason in segmenter.decisions if "left out" in reason)
    assert "so nearest-slice is used in place of unet" in check


def test_without_time_nothing_is_trained(sam: Backbone):
    free = replace(AUTO, unet=replace(AUTO.unet, train=replace(QUICK, iterations=None)), budget_minutes=1e-4)
    segmenter = free.fit(support_set(1), sam)
    assert segmenter.choice.method == "nearest-slice"  # FATE needs a backbone with a memory
    (reason,) = [one for one in segmenter.decisions if f"{FEWEST_STEPS} training steps" in one]
    assert reason.endswith("so nearest-slice is used, without training")


def test_a_resumed_fit_keeps_its_choice(sam: Backbone, tmp_path: Path):
    chosen = replace(AUTO, check=False)
    chosen.fit(support_set(1), sam, Run(scratch=tmp_path))
    (note,) = tmp_path.glob(f"**/{NOTE}")
    note.write_text(Choice(method=UNET, reasons=("of the first start",)).to_json(), "utf-8")
    assert "of the first start" in chosen.fit(support_set(1), sam, Run(scratch=tmp_path)).decisions


@pytest.mark.parametrize(("steps", "method"), [(600, "fate"), (3000, SELF_TRAINING)])
def test_a_long_training_is_not_given_up_for_a_score_of_its_first_steps(steps: int, method: str):
    found = Check(("case",), {SELF_TRAINING: 0.45, "fate": 0.84, "nearest-slice": 0.6}, 0.1)
    choice = after_check(Choice(method=SELF_TRAINING, steps=steps), found)
    assert choice.method == method
    assert choice.rival == (Rival(method="fate", dice=0.84, cases=("case",)) if steps == 3000 else None)
    assert Choice.unpack(choice.pack()) == choice


@pytest.mark.parametrize(("dice", "method"), [(0.83, "fate"), (0.84, SELF_TRAINING)])
def test_a_long_training_is_compared_when_it_is_done(dice: float, method: str):
    rival = Rival(method="fate", dice=0.84, cases=("case",))
    choice = after_training(Choice(method=SELF_TRAINING, steps=3000, rival=rival), rival, dice)
    assert (choice.method, choice.rival) == (method, None)
    assert f"self-training has a Dice of {dice:.2f} on case after its whole training" in choice.reasons[-1]


@pytest.mark.parametrize(("dice", "method"), [(0.0, UNET), (1.0, "nearest-slice")])
def test_a_fit_compares_the_trained_method_on_the_cases_of_the_check(
    sam: Backbone, tmp_path: Path, dice: float, method: str
):
    support, run = support_set(3), Run(scratch=tmp_path)
    AUTO.fit(support, sam, run)
    (note,) = tmp_path.glob(f"**/{NOTE}")
    rival = Rival(method="nearest-slice", dice=dice, cases=(support.cases[0].name,))
    note.write_text(Choice(method=UNET, steps=4, rival=rival).to_json(), "utf-8")
    segmenter = AUTO.fit(support, sam, run)
    assert (segmenter.choice.method, segmenter.choice.rival) == (method, None)
    assert segmenter.decisions[0] == f"chosen: {method}"


def test_a_quarter_of_the_patients_is_left_out():
    group = one_left_out(support_set(4))
    assert group is not None
    assert len(group) == 1
    assert one_left_out(support_set(1)) is None


def test_a_healthy_patient_is_not_left_out_since_it_has_no_dice():
    image, truth = phantom(9)
    nothing = replace(truth, array=np.zeros_like(truth.array))
    healthy = Case("a-healthy-one", image, nothing, LABELS, patient="a")
    support = SupportSet((healthy, *support_set(2).cases), LABELS)
    group = one_left_out(support)
    assert group is not None
    assert [case.name for case in group] == ["phantom-0"]
    assert one_left_out(SupportSet((healthy, *support_set(1).cases), LABELS)) is None


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="budget_minutes"):
        Auto(budget_minutes=0)
    with pytest.raises(SettingsError, match=r"unet\.slicer"):
        Auto(unet=UNet(slicer=replace(UNet().slicer, plane="axial")))
