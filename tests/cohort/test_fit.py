import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small_cohort
from handful.backbones.base import Backbone
from handful.checkpoint.model import load, open_model
from handful.cohort.choice import choose_support, choose_unlabelled
from handful.cohort.fit import FitConfig, dice_on_support, fit_to_folder
from handful.data.cases import Cohort
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import IGNORE
from handful.errors import BusyError, CheckpointError, InputError, LabelError
from handful.evaluation.evaluate import evaluate
from handful.jobs.digests import digest_of
from handful.jobs.lock import locked
from handful.methods.few_shot_prompts.method import FewShotPrompts
from handful.methods.left_out import mean_of_labels, score_left_out
from handful.methods.nearest_slice import NearestSlice
from handful.methods.self_training.method import SelfTraining
from handful.tuning.loop import TrainConfig

EVERY_STEP = FitConfig(save_every_s=0.0)


def few_shot(iterations: int = 6, seed: int = 0) -> FewShotPrompts:
    return FewShotPrompts(views=2, batch=2, train=TrainConfig(iterations=iterations, seed=seed))


def stop_at(step: int):
    def report(done: int, total: int, note: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return report


def test_a_model_folder_is_all_that_is_left(support: SupportSet, backbone: Backbone, tmp_path: Path):
    assert fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "m").anew
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert load(tmp_path / "m", backbone).labels == support.labels


def test_the_same_fit_again_is_already_done(support: SupportSet, backbone: Backbone, tmp_path: Path):
    for expected in (True, False):
        assert fit_to_folder("few-shot-prompts", few_shot(2), support, backbone, tmp_path / "m").anew is expected
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_fit_that_trains_nothing_prints_the_dice_to_expect_on_unseen_scans(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    result = fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")
    assert result.dice_left_out == mean_of_labels(score_left_out(NearestSlice(), support, backbone))
    assert set(result.dice_left_out) == set(support.labels.names)
    again = fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")
    assert again.dice_left_out == result.dice_left_out
    without = FitConfig(leave_out=False)
    assert not fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "n", without).dice_left_out


def test_a_training_leaves_cases_out_on_request_only(support: SupportSet, backbone: Backbone, tmp_path: Path):
    assert not fit_to_folder("few-shot-prompts", few_shot(2), support, backbone, tmp_path / "m").dice_left_out
    requested = FitConfig(leave_out=True)
    assert fit_to_folder("few-shot-prompts", few_shot(2), support, backbone, tmp_path / "n", requested).dice_left_out


def test_the_dice_on_left_out_cases_is_added_to_a_model_that_is_there(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    method, requested = few_shot(2), FitConfig(leave_out=True)
    fit_to_folder("few-shot-prompts", method, support, backbone, tmp_path / "m")
    whole = fit_to_folder("few-shot-prompts", method, support, backbone, tmp_path / "n", requested)
    added = fit_to_folder("few-shot-prompts", method, support, backbone, tmp_path / "m", requested)
    assert (added.anew, added.dice_left_out) == (False, whole.dice_left_out)
    for name in small_cohort.files_below(tmp_path / "n"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    assert fit_to_folder("few-shot-prompts", method, support, backbone, tmp_path / "m").dice_left_out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


@pytest.mark.parametrize("anonymous", [True, False])
def test_an_anonymous_fit_is_not_the_same_as_one_with_equal_names(
    anonymous: bool, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    same_names = support.without_names()  # as if the cases had these names
    wanted, other = FitConfig(anonymous=anonymous), FitConfig(anonymous=not anonymous)
    fit_to_folder("few-shot-prompts", few_shot(1), same_names, backbone, tmp_path / "m", other)
    with pytest.raises(CheckpointError, match=rf"fitted {'without' if anonymous else 'with'} --anonymous.*--overwrite"):
        fit_to_folder("few-shot-prompts", few_shot(1), same_names, backbone, tmp_path / "m", wanted)
    wanted = replace(wanted, overwrite=True)
    assert fit_to_folder("few-shot-prompts", few_shot(1), same_names, backbone, tmp_path / "m", wanted).anew
    assert open_model(tmp_path / "m").record.anonymous is anonymous


def test_other_things_in_a_model_folder_stop_a_fit_before_it_starts(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    class Unused(NearestSlice):
        def fit(self, *_: object) -> None:
            raise AssertionError("no fit may start")

    fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")
    (tmp_path / "m" / "predictions").mkdir()
    (tmp_path / "m" / "predictions" / "ben.nii.gz").write_text("corrected by hand")
    before = small_cohort.files_below(tmp_path)
    other = Unused(similarity="embedding")
    with pytest.raises(CheckpointError, match=r"m/predictions is not part of the model"):
        fit_to_folder("nearest-slice", other, support, backbone, tmp_path / "m", FitConfig(overwrite=True))
    assert not fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m").anew
    assert small_cohort.files_below(tmp_path) == before


@pytest.mark.parametrize("name", [".", ".."])
def test_a_model_folder_without_a_name_is_refused(
    name: str, support: SupportSet, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"cannot be a model folder.*such as .*model"):
        fit_to_folder("nearest-slice", NearestSlice(), support, backbone, name)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("what", ["settings", "cases"])
def test_another_model_is_replaced_on_request_only(
    what: str, cohort: Cohort, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")
    before = (tmp_path / "m" / "weights.safetensors").read_bytes()
    method = NearestSlice(similarity="embedding") if what == "settings" else NearestSlice()
    other = choose_support(cohort, ["case-2"]) if what == "cases" else support
    with pytest.raises(CheckpointError, match="overwrite"):
        fit_to_folder("nearest-slice", method, other, backbone, tmp_path / "m")
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() == before
    assert fit_to_folder("nearest-slice", method, other, backbone, tmp_path / "m", FitConfig(overwrite=True)).anew
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["m", "m.partial"])
def test_a_folder_of_other_things_is_left_alone(name: str, support: SupportSet, backbone: Backbone, tmp_path: Path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="did not make it"):
        fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m", FitConfig(overwrite=True))
    assert small_cohort.files_below(tmp_path) == [f"{name}/thesis.txt"]


def test_a_stopped_fit_goes_on_to_the_bytes_of_an_undisturbed_one(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    steps: list[int] = []
    fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "m", EVERY_STEP, stop_at(4))
    assert (tmp_path / "m.partial").is_dir()
    fit_to_folder(
        "few-shot-prompts", few_shot(), support, backbone, tmp_path / "m", report=lambda s, *_: steps.append(s)
    )
    assert steps == [0, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "whole"]
    for name in small_cohort.files_below(tmp_path / "whole"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_half_done_work_of_a_fit_killed_after_its_model_was_saved_is_removed(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    def fit(iterations: int, **options: Any) -> bool:
        return fit_to_folder(
            "few-shot-prompts", few_shot(iterations), support, backbone, tmp_path / "m", **options
        ).anew

    stopped = {"config": FitConfig(save_every_s=0.0, overwrite=True), "report": stop_at(2)}
    with pytest.raises(KeyboardInterrupt):
        fit(4, **stopped)
    shutil.copytree(tmp_path / "m.partial", tmp_path / "copy")
    assert fit(4)
    (tmp_path / "copy").rename(tmp_path / "m.partial")
    assert not fit(4)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    with pytest.raises(KeyboardInterrupt):
        fit(5, **stopped)
    assert not fit(4)
    assert (tmp_path / "m.partial" / "training").exists()  # that of the other fit


def test_half_done_work_of_another_fit_is_dropped(support: SupportSet, backbone: Backbone, tmp_path: Path):
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "m", EVERY_STEP, stop_at(4))
    other = few_shot(seed=1)
    fit_to_folder("few-shot-prompts", other, support, backbone, tmp_path / "m", report=lambda s, *_: steps.append(s))
    assert steps == [0, 1, 2, 3, 4, 5, 6]


def test_a_fit_that_fails_leaves_nothing(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    class Failing(NearestSlice):
        def fit(self, *_: object) -> None:
            raise LabelError("too small")

    with pytest.raises(LabelError):
        fit_to_folder("nearest-slice", Failing(), choose_support(cohort), backbone, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_fit_reports_the_dice_on_its_own_support_cases(
    cohort: Cohort, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    first = fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "m")
    again = fit_to_folder("few-shot-prompts", few_shot(), support, backbone, tmp_path / "m")
    assert (first.anew, again.anew) == (True, False)
    assert first.dice_on_support == again.dice_on_support
    assert list(first.dice_on_support) == list(support.labels.names)
    segmenter = load(tmp_path / "m", backbone)
    rows = evaluate(segmenter.predict, support.cases, labels=support.labels).rows
    for name, dice in first.dice_on_support.items():
        own = max((row for row in rows if row.name == name), key=lambda row: row.counts.n_ref)
        assert dice == pytest.approx(own.dice, abs=1e-4)
    assert f"{name}: {dice:.2f}" in (tmp_path / "m" / "README.md").read_text()


def test_partly_labelled_cases_and_methods_without_training_are_not_scored(
    support: SupportSet, backbone: Backbone, tmp_path: Path
):
    whole = support.cases[0]
    reference = whole.read_reference()
    assert reference is not None
    array = reference.array.copy()
    array[:, :, 0] = IGNORE
    part = replace(whole, reference=replace(reference, array=array))
    segmenter = NearestSlice().fit(support, backbone)
    assert dice_on_support(segmenter, SupportSet((part,), support.labels)) == {}
    assert list(dice_on_support(segmenter, SupportSet((whole,), support.labels))) == list(support.labels.names)
    assert fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m").dice_on_support == {}


def test_the_provenance_names_content_and_nothing_of_this_machine(model: Path, folder: Path):
    text = (model / "segmenter.json").read_text()
    provenance = json.loads(text)["provenance"]
    assert [case["case"] for case in provenance["support"]] == ["case-0", "case-1"]
    assert all(len(case["image_sha256"]) == len(case["labels_sha256"]) == 64 for case in provenance["support"])
    assert str(folder) not in text


def test_the_provenance_names_unlabelled_scans_by_their_content(
    support: SupportSet, cohort: Cohort, folder: Path, backbone: Backbone, tmp_path: Path
):
    pool = choose_unlabelled(cohort, support, str(folder))
    fit_to_folder("nearest-slice", NearestSlice(), replace(support, unlabelled=pool), backbone, tmp_path / "m")
    record = (tmp_path / "m" / "segmenter.json").read_text()
    assert str(folder) not in record
    listed = json.loads(record)["provenance"]["unlabelled"]
    expected = [{"case": c.name, "image_sha256": digest_of(c.read_image().array)} for c in pool.cases]
    assert listed == expected
    assert expected
    fewer = replace(support, unlabelled=UnlabelledScans(pool.cases[1:]))
    with pytest.raises(CheckpointError, match="overwrite"):
        fit_to_folder("nearest-slice", NearestSlice(), fewer, backbone, tmp_path / "m")


def test_the_agreement_on_unlabelled_scans_is_found_by_their_content(
    support: SupportSet, cohort: Cohort, backbone: Backbone, tmp_path: Path
):
    taken = {case.name for case in support.cases}
    others = tuple(case for case in cohort.cases if case.name not in taken)
    learner = SelfTraining(initial="none", encoder="none", channels=4, side=32, batch=2, train=TrainConfig(
        iterations=4, learning_rate=1e-3, ema=0.9))  # fmt: skip
    fit_to_folder(
        "self-training", learner, replace(support, unlabelled=UnlabelledScans.of(others)), backbone, tmp_path / "m"
    )
    scans = {digest_of(case.read_image().array) for case in others}
    assert set(open_model(tmp_path / "m").agreement) == scans


def test_two_fits_into_one_folder_do_not_meet(support: SupportSet, backbone: Backbone, tmp_path: Path):
    with locked(tmp_path / "m.partial"), pytest.raises(BusyError):
        fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")


def test_what_a_killed_save_left_is_cleared_away(support: SupportSet, backbone: Backbone, tmp_path: Path):
    for leftover in (".0123456789ab.tmp.m", ".0123456789ab.old.m", ".m.other"):
        (tmp_path / leftover).mkdir()
    fit_to_folder("nearest-slice", NearestSlice(), support, backbone, tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.other", "m"]
