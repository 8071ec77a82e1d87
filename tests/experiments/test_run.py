"""An experiment is measured once, goes on after a kill, notices what changed, and gives one tidy table."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_cohort
import tiny_models
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case
from handful.data.files import read_cohort, read_label_map, write_label_map
from handful.data.support import SupportSet
from handful.data.volume import LabelMap
from handful.errors import BusyError, DamagedFile, InputError, SettingsError
from handful.evaluation.evaluate import evaluate
from handful.evaluation.results import Result, read_results
from handful.experiments.measure import fit, measure
from handful.experiments.plan import Configuration, DataSet, Plan, trials
from handful.experiments.run import ExperimentConfig, run_experiment
from handful.experiments.simulated_annotators import segmentation_function
from handful.experiments.store import experiment_status, read_study, write_experiment_report
from handful.methods.interactive.method import Interactive
from handful.methods.nearest_slice import NearestSlice

ONE = ExperimentConfig(workers=1)
SLOW = Configuration(method="few-shot-prompts", settings={"train": {"iterations": 30}, "views": 1, "batch": 2})


class Told:
    """What a run reported."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []

    def __call__(self, step: int, total: int, note: str) -> None:
        self.lines.append((step, total, note))

    @property
    def done(self) -> list[str]:
        return [note for step, _, note in self.lines if step]


def table(out: Path) -> list[dict[str, object]]:
    """The rows of results.csv without what a clock or the kernel measured."""
    write_experiment_report(out)
    measured = ("fit_s", "predict_s", "peak_mib")
    return [
        {key: str(value) for key, value in vars(row).items() if key not in measured}
        for row in read_results(out / "results.csv")
    ]


def test_the_table_has_a_row_for_each_case_and_label_of_every_fit(make_plan: Callable[..., Plan], tmp_path: Path):
    plan = make_plan(splits=(0, 1))
    found = run_experiment(plan, tmp_path / "out", ONE)
    assert (len(found.done), found.failed, found.missing) == (4, (), ())
    write_experiment_report(tmp_path / "out")
    rows = read_results(tmp_path / "out" / "results.csv")
    assert len({(row.shots, row.split, row.case, row.label) for row in rows}) == len(rows) == 4 * 2 * 2
    one = rows[0]
    assert (one.experiment, one.data_set, one.configuration, one.method) == (
        "trial",
        "phantoms",
        "nearest",
        "nearest-slice",
    )
    assert len(json.loads(one.support)) == one.shots == 1
    assert one.case not in json.loads(one.support)
    assert one.backbone_sha256 == load_backbone(plan.backbone).digest()
    assert all(row.fit_s > 0 and row.predict_s > 0 and row.peak_mib > 50 for row in rows)


def test_scores_are_those_of_the_method_fitted_by_hand(make_plan: Callable[..., Plan], tmp_path: Path):
    plan = make_plan(shots=(2,), cases=None)
    run_experiment(plan, tmp_path, ONE)
    cohort = read_cohort(plan.data["phantoms"].folder)
    assert cohort.labels is not None
    drawn, rest = cohort.split(2, 0)
    segmenter = NearestSlice().fit(SupportSet(tuple(drawn), cohort.labels), load_backbone(plan.backbone))
    by_hand = {(row.case, row.label): row for row in evaluate(segmenter.predict, rest, labels=cohort.labels).rows}
    study = read_study(tmp_path)
    assert {(row.case, row.label) for row in study.results} == by_hand.keys()
    for row in study.results:
        same = by_hand[row.case, row.label]
        assert (row.dice, row.hd95, row.status) == (pytest.approx(same.dice), pytest.approx(same.hd95), same.status)
        difference = row.predicted_volume - row.reference_volume
        assert difference == pytest.approx(same.volume_difference, abs=1e-4)


def test_what_is_done_is_not_done_again(make_plan: Callable[..., Plan], tmp_path: Path):
    first, second, larger = Told(), Told(), Told()
    run_experiment(make_plan(), tmp_path, ONE, report=first)
    assert len(first.done) == 2
    run_experiment(make_plan(), tmp_path, ONE, report=second)
    assert second.lines == []
    run_experiment(make_plan(shots=(1, 2, 3)), tmp_path, ONE, report=larger)
    assert larger.done == ["phantoms, nearest, 3 labelled, split 0"]


def test_what_the_table_of_another_run_holds_is_not_measured_again(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(), tmp_path / "first", ONE)
    for path in write_experiment_report(tmp_path / "first")[:2]:
        out, told = tmp_path / path.suffix[1:], Told()
        known = read_results(path)
        run_experiment(make_plan(shots=(2, 3)), out, ExperimentConfig(workers=1, known=known), report=told)
        assert told.done == ["phantoms, nearest, 3 labelled, split 0"]
        assert read_study(out).results[: len(known) // 2] == tuple(row for row in known if row.shots == 2)


def test_a_fit_that_tables_hold_several_times_is_taken_over_once(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(), tmp_path / "first", ONE)
    known = read_study(tmp_path / "first").results
    renamed = [replace(row, configuration="by pixels") for row in known]
    run_experiment(make_plan(), tmp_path / "second", replace(ONE, known=[*known, *renamed]))
    assert read_study(tmp_path / "second").results == known


def test_a_table_of_other_fits_spares_nothing(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(shots=(1,)), tmp_path / "first", ONE)
    known, told = read_study(tmp_path / "first").results, Told()
    run_experiment(
        make_plan(shots=(1,), tolerance=2.0),
        tmp_path / "second",
        ExperimentConfig(workers=1, known=known),
        report=told,
    )
    assert len(told.done) == 1
    assert {row.tolerance for row in read_study(tmp_path / "second").results} == {2.0}


def test_configurations_encode_a_slice_once_between_them(make_plan: Callable[..., Plan], tmp_path: Path):
    configurations = {
        name: Configuration(method="auto-sam", settings={"head": name, "train.iterations": 1})
        for name in ("vit", "linear")
    }
    plan, kept = make_plan(configurations={"vit": configurations["vit"]}, shots=(1,)), tmp_path / "kept"
    run_experiment(plan, tmp_path / "out", ExperimentConfig(workers=1, cache=kept))
    entries = sorted(path.name for path in kept.rglob("*") if path.is_file())
    assert entries
    found = run_experiment(
        make_plan(configurations=configurations, shots=(1,)), tmp_path / "out", ExperimentConfig(workers=1, cache=kept)
    )
    assert (len(found.done), found.failed) == (2, ())
    assert sorted(path.name for path in kept.rglob("*") if path.is_file()) == entries


def test_a_part_of_a_plan_may_be_measured_first(make_plan: Callable[..., Plan], tmp_path: Path):
    configurations = {"nearest": Configuration(method="nearest-slice"), "carried": Configuration(method="zero-shot")}
    plan, told = make_plan(configurations=configurations, splits=(0, 1)), Told()
    part = ExperimentConfig(workers=1, data_sets=("phantoms",), configurations=("carried",), shots=(2,), splits=(1,))
    found = run_experiment(plan, tmp_path, part, report=told)
    assert told.done == ["phantoms, carried, 2 labelled, split 1"]
    assert (len(found.done), len(found.missing)) == (1, 7)
    assert len(run_experiment(plan, tmp_path, ONE).done) == 8


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"configurations": ("nearset",)}, "has no configuration 'nearset'; did you mean 'nearest'"),
        ({"data_sets": ("hearts",)}, "has no data set 'hearts'; it has phantoms"),
        ({"shots": (1, 7)}, "has no shots 7; it has 1, 2"),
        ({"splits": (0, 3)}, "has no splits 3; it has 0"),
        ({"configurations": ("few",), "shots": (2,)}, "nothing to measure: none of its fits has the chosen parts"),
    ],
)
def test_a_part_that_the_plan_does_not_have_is_named(
    make_plan: Callable[..., Plan], part: dict[str, tuple[object, ...]], said: str, tmp_path: Path
):
    nearest = Configuration(method="nearest-slice")
    plan = make_plan(configurations={"nearest": nearest, "few": replace(nearest, shots=(1,))})
    with pytest.raises(SettingsError, match=said):
        run_experiment(plan, tmp_path, ExperimentConfig(**part))  # type: ignore[arg-type]


def test_another_name_of_a_configuration_measures_nothing_again(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(), tmp_path, ONE)
    told = Told()
    run_experiment(
        make_plan(configurations={"by pixels": Configuration(method="nearest-slice")}), tmp_path, ONE, report=told
    )
    assert told.lines == []
    assert read_study(tmp_path).configurations == ["by pixels"]


def equal_splits(plan: Plan) -> tuple[int, int]:
    """Two splits with the same labelled case: there are more splits than cases."""
    cohort = read_cohort(plan.data["phantoms"].folder)
    by_case: dict[str, list[int]] = {}
    for split in range(len(cohort.cases) + 1):
        by_case.setdefault(cohort.split(1, split)[0][0].name, []).append(split)
    first, second, *_ = max(by_case.values(), key=len)
    return first, second


def test_splits_with_the_same_labelled_cases_share_a_fit_and_stay_two(make_plan: Callable[..., Plan], tmp_path: Path):
    splits = equal_splits(make_plan())
    plan, told = make_plan(shots=(1,), splits=splits, cases=None), Told()
    run_experiment(plan, tmp_path, ONE, report=told)
    assert len(told.done) == 1
    rows = read_study(tmp_path).results
    assert [row.split for row in rows] == [split for split in splits for _ in range(4 * 2)]


def test_other_settings_and_other_weights_are_measured(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(shots=(1,)), tmp_path / "out", ONE)
    for changes in (
        {"configurations": {"nearest": Configuration(method="nearest-slice", settings={"similarity": "embedding"})}},
        {"backbone": "handful-tiny"},
        {"tolerance": 2.0},
        {"cases": 1},
    ):
        told = Told()
        run_experiment(make_plan(shots=(1,), **changes), tmp_path / "out", ONE, report=told)
        assert len(told.done) == 1, changes


def test_a_corrected_label_map_is_noticed_by_the_fits_it_matters_to(
    make_plan: Callable[..., Plan], folder: Path, tmp_path: Path
):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    plan = make_plan(data={"own": DataSet(folder=own)}, shots=(1,), splits=(0, 1, 2, 3), cases=1)
    run_experiment(plan, tmp_path / "out", ONE)
    used = [{*json.loads(row.support), row.case} for row in read_study(tmp_path / "out").results if row.label == 1]
    case = sorted(used[0])[0]
    path = own / "labels" / f"{case}.nii.gz"
    reference = read_label_map(path)
    array = np.roll(reference.array, 1, axis=0)
    write_label_map(path, LabelMap(array, reference.geometry, reference.labels))
    told = Told()
    run_experiment(plan, tmp_path / "out", ONE, report=told)
    assert len(told.done) == sum(case in names for names in used)
    assert len(told.done) < 4
    (own / "labels" / f"{case}.slices.json").write_text('{"axis": 1, "labelled": [2, 3]}')  # the others are unlabelled
    run_experiment(plan, tmp_path / "out", ONE, report=(again := Told()))
    assert len(again.done) == len(told.done)


def test_label_maps_without_a_picture_do_not_stay_in_memory(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
):
    (trial,), _ = trials(make_plan(shots=(1,), cases=None, pictures=0))
    predicted: list[weakref.ref[LabelMap]] = []
    alive: list[int] = []

    def watched(*given: Any) -> Callable[[Case], LabelMap]:
        segment = segmentation_function(*given)

        def segmented(case: Case) -> LabelMap:
            gc.collect()
            alive.append(sum(label_map() is not None for label_map in predicted))
            label_map = segment(case)
            predicted.append(weakref.ref(label_map))
            return label_map

        return segmented

    monkeypatch.setattr("handful.experiments.measure.segmentation_function", watched)
    measure(trial, fit(trial, tiny_models.tiny_sam(side=64)))
    assert len(alive) == 4
    assert max(alive) <= 1


def test_an_annotator_may_prompt(make_plan: Callable[..., Plan], tmp_path: Path):
    configurations = {
        "box": Configuration(method="zero-shot", annotator="box", jitter=0.1),
        "clicks": Configuration(
            method="interactive", annotator="clicks-2", settings={"train.iterations": 1, "regions": 1}
        ),
    }
    found = run_experiment(make_plan(configurations=configurations, shots=(1,)), tmp_path, ONE)
    assert found.failed == ()
    study = read_study(tmp_path)
    assert study.annotators == {"box", "clicks"}
    assert {row.annotator for row in study.results} == {"box, jitter 0.1", "clicks-2"}
    of_box, of_clicks = (
        {
            (row.case, row.label): (row.size_share, row.complexity, row.contrast)
            for row in study.rows("phantoms", name, 1)
        }
        for name in ("box", "clicks")
    )
    assert of_box == of_clicks
    assert all(
        0 < size < 1 and 0.7 < complexity < 5 and 0 < contrast < 1 for size, complexity, contrast in of_box.values()
    )


def test_annotators_of_a_backbone_without_training(make_plan: Callable[..., Plan], tmp_path: Path):
    kinds = ("box", "boxes", "everything", "clicks-3")
    configurations = {kind: Configuration(method="zero-shot", annotator=kind, jitter=0.0) for kind in kinds}
    plan = make_plan(configurations=configurations, shots=(1,), cases=1, backbone="handful-tiny")
    assert run_experiment(plan, tmp_path, ONE).failed == ()
    rows = read_study(tmp_path).results
    dice = {kind: float(np.mean([row.dice for row in rows if row.configuration == kind])) for kind in kinds}
    assert dice["boxes"] == pytest.approx(dice["box"], abs=0.02), "each label of the phantoms is one piece"
    assert dice["clicks-3"] > 0.9
    assert dice["everything"] > 0.3


CLICKED = {
    f"{n} clicks": Configuration(
        method="interactive", annotator=f"clicks-{n}", settings={"train.iterations": 1, "regions": 1}
    )
    for n in (1, 3)
}


def test_annotators_of_one_method_share_a_fit_and_score_as_they_do_alone(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fits, fit = [], Interactive.fit
    monkeypatch.setattr(Interactive, "fit", lambda *given: fits.append(1) or fit(*given))
    plan = make_plan(configurations=CLICKED, shots=(1,))
    run_experiment(plan, tmp_path / "together", ONE)
    assert len(fits) == 1
    assert len({row.trial for row in read_study(tmp_path / "together").results}) == 2
    for configuration in CLICKED:
        run_experiment(plan, tmp_path / "alone", ExperimentConfig(workers=1, configurations=(configuration,)))
    assert len(fits) == 3
    assert table(tmp_path / "together") == table(tmp_path / "alone")


def test_an_annotator_of_a_method_without_prompts_does_not_stop_the_others(
    make_plan: Callable[..., Plan], tmp_path: Path
):
    configurations = {
        "clicked": Configuration(method="nearest-slice", annotator="clicks-3"),
        "alone": Configuration(method="nearest-slice"),
    }
    found = run_experiment(make_plan(configurations=configurations, shots=(1,)), tmp_path, ONE)
    assert [one.configuration for one in found.done] == ["alone"]
    assert [failure.case for failure in found.failed] == ["phantoms, clicked, 1 labelled, split 0"]


def test_a_fit_that_fails_is_reported_and_the_others_go_on(make_plan: Callable[..., Plan], tmp_path: Path):
    plan = make_plan(
        configurations={
            "bad": Configuration(method="nearest-slice", annotator="box"),
            "good": Configuration(method="nearest-slice"),
        }
    )
    found = run_experiment(plan, tmp_path, ONE)
    assert len(found.done) == 2
    assert [failure.case for failure in found.failed] == [f"phantoms, bad, {n} labelled, split 0" for n in (1, 2)]
    assert "nearest-slice does not take the prompts" in found.failed[0].reason
    again = Told()
    run_experiment(plan, tmp_path, ONE, report=again)
    assert len(again.done) == 2, "what failed is tried again"


def test_a_scan_that_cannot_be_read_fails_where_it_is_labelled_and_is_missed_where_it_is_not(
    make_plan: Callable[..., Plan], folder: Path, tmp_path: Path
):
    own = Path(shutil.copytree(folder, tmp_path / "jane-doe"))
    cohort = read_cohort(own)
    broken = cohort.split(1, 0)[0][0].name
    other = next(split for split in range(1, 99) if cohort.split(1, split)[0][0].name != broken)
    path = own / "images" / f"{broken}.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    plan = make_plan(data={"own": DataSet(folder=own)}, shots=(1,), splits=(0, other), cases=None, pictures=2)
    (failed,) = run_experiment(plan, tmp_path / "out", ONE).failed
    study = read_study(tmp_path / "out")
    assert {(row.case, row.status) for row in study.results if row.failure} == {(broken, "missed")}
    assert len({picture.case for picture in study.pictures} - {broken}) == len(study.pictures) == 2
    for reason in (failed.reason, *{row.failure for row in study.results if row.failure}):
        assert f"{broken}.nii.gz" in reason
        assert "jane-doe" not in reason


@pytest.mark.process
def test_several_processes_give_the_table_of_one_and_annotators_share_a_fit(
    make_plan: Callable[..., Plan], tmp_path: Path
):
    plan = make_plan(configurations={"nearest": Configuration(method="nearest-slice"), **CLICKED})
    run_experiment(plan, tmp_path / "one", ONE)
    found = run_experiment(plan, tmp_path / "two", ExperimentConfig(workers=2))
    assert (len(found.done), found.failed) == (6, ())
    clicked = {(row.shots, row.fit_s) for row in read_study(tmp_path / "two").results if row.configuration in CLICKED}
    assert len(clicked) == 2
    assert table(tmp_path / "one") == table(tmp_path / "two")


def test_a_stopped_run_goes_on_and_ends_with_the_table_of_an_undisturbed_one(
    make_plan: Callable[..., Plan], tmp_path: Path
):
    plan = make_plan(
        configurations={"carried": Configuration(method="zero-shot"), "nearest": Configuration(method="nearest-slice")},
        splits=(0, 1),
    )

    def stop(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan, tmp_path / "stopped", ONE, report=stop)
    kept = tmp_path / "stopped" / "trials"
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("[!.]*.json")}
    assert 2 <= len(before) < 8
    told = Told()
    run_experiment(plan, tmp_path / "stopped", ONE, report=told)
    assert len(told.done) == 8 - len(before)
    assert {name: (kept / name).stat().st_mtime_ns for name in before} == before
    run_experiment(plan, tmp_path / "whole", ONE)
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_fit_whose_process_is_killed_is_done_again(make_plan: Callable[..., Plan], tmp_path: Path):
    plan, before = make_plan(configurations={"slow": SLOW}, splits=(0, 1)), multiprocessing.active_children()

    def kill_one(step: int, total: int, note: str) -> None:
        if step == 1:
            (origin,) = {*multiprocessing.active_children()} - {*before}
            workers = Path(f"/proc/{origin.pid}/task/{origin.pid}/children").read_text().split()
            os.kill(int(workers[0]), signal.SIGKILL)

    found = run_experiment(plan, tmp_path, ExperimentConfig(workers=2), report=kill_one)
    assert (len(found.done), found.failed) == (4, ())


@pytest.mark.process
def test_a_killed_run_goes_on_and_ends_with_the_table_of_an_undisturbed_one(
    make_plan: Callable[..., Plan], folder: Path, backbone: Path, tmp_path: Path
):
    toml = f"""
        name = "trial"
        shots = [1, 2]
        splits = [0, 1]
        cases = 2
        backbone = "{backbone}"
        [data.phantoms]
        folder = "{folder}"
        [configurations.slow]
        method = "few-shot-prompts"
        settings = {{ train.iterations = 30, views = 1, batch = 2 }}
        [configurations.nearest]
        method = "nearest-slice"
        """
    (tmp_path / "plan.toml").write_text(toml)
    script = f"""
import time
import torch
torch.set_num_threads(1)
from pathlib import Path
from handful.experiments.plan import read_plan
from handful.experiments.run import ExperimentConfig, run_experiment
if __name__ == "__main__":
    plan = read_plan(Path({str(tmp_path / "plan.toml")!r}))
    never_done = lambda step, total, note: step == total - 1 and time.sleep(600)
    run_experiment(plan, Path({str(tmp_path / "killed")!r}), ExperimentConfig(workers=1), never_done)
"""
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kept = tmp_path / "killed" / "trials"
    small_cohort.wait_until(lambda: len(list(kept.glob("[!.]*.json"))) >= 2, process)
    process.kill()
    process.wait()
    plan = make_plan(configurations={"slow": SLOW, "nearest": Configuration(method="nearest-slice")}, splits=(0, 1))
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("[!.]*.json")}
    assert 2 <= len(before) < 8
    run_experiment(plan, tmp_path / "killed", ONE)
    run_experiment(plan, tmp_path / "whole", ONE)
    assert {name: (kept / name).stat().st_mtime_ns for name in before} == before
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


def test_two_runs_do_not_work_in_one_folder(make_plan: Callable[..., Plan], tmp_path: Path):
    def begin_another(step: int, total: int, note: str) -> None:
        with pytest.raises(BusyError, match=f"process {os.getpid()} on .* works in this folder"):
            run_experiment(make_plan(), tmp_path, ONE)

    run_experiment(make_plan(shots=(1,)), tmp_path, ONE, report=begin_another)


def test_status_knows_what_is_missing_and_the_report_what_is_there(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(shots=(1, 9)), tmp_path, ExperimentConfig(workers=1, command="as typed"))
    next((tmp_path / "trials").iterdir()).unlink()
    found = experiment_status(tmp_path)
    assert [one.name for one in found.missing] == ["phantoms, nearest, 1 labelled, split 0"]
    assert found.left_out == (
        "phantoms with 9 labelled: only 5 labelled patients, so none is left to score; take at most 4",
    )
    assert {path.name for path in write_experiment_report(tmp_path, with_latex=True)} >= {
        "results.csv",
        "report.html",
        "tables.md",
        "tables.tex",
    }
    assert "Nothing has been measured yet." in (tmp_path / "report.html").read_text()
    run_experiment(make_plan(shots=(1,)), tmp_path, ONE)
    assert tmp_path / "tables.tex" in write_experiment_report(tmp_path)
    assert "nearest" in (tmp_path / "tables.tex").read_text()


def test_a_folder_of_something_else_is_no_experiment(tmp_path: Path):
    with pytest.raises(InputError, match=r"no experiment\.json"):
        experiment_status(tmp_path)


def test_a_damaged_result_is_named(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(shots=(1,)), tmp_path, ONE)
    for damage in ('{"rows": []}', '{"shared": {}, "rows": [{"case": "a"}], "pictures": []}', "{"):
        next((tmp_path / "trials").iterdir()).write_text(damage)
        with pytest.raises(DamagedFile, match="delete it and run the experiment again"):
            read_study(tmp_path)


def test_only_fits_on_the_most_labels_keep_pictures(make_plan: Callable[..., Plan], tmp_path: Path):
    run_experiment(make_plan(pictures=1), tmp_path, ONE)
    (one,) = read_study(tmp_path).pictures
    assert one.shots == 2
    assert one.webp[:4] == b"RIFF"
    of_cases: dict[str, list[Result]] = {}
    for row in read_study(tmp_path).results:
        if row.shots == 2:
            of_cases.setdefault(row.case, []).append(row)
    worst = min(of_cases, key=lambda case: np.mean([row.dice for row in of_cases[case]]))
    assert one.case == worst


def test_what_a_fit_decides_is_kept(make_plan: Callable[..., Plan], tmp_path: Path):
    chosen = {"auto": Configuration(method="auto", settings={"budget_minutes": 0.001})}
    run_experiment(make_plan(shots=(2,), configurations=chosen), tmp_path, ONE)
    (fit,) = read_study(tmp_path).decisions
    assert (fit.configuration, fit.shots, fit.split) == ("auto", 2, 0)
    assert any(sentence.startswith("chosen: ") for sentence in fit.sentences)


def test_scored_scans_are_learned_from_only_where_the_plan_allows_it(make_plan: Callable[..., Plan]):
    settings = {"side": 32, "channels": 2, "train.iterations": 1, "contrast.iterations": 1, "contrast_batch": 2}
    simclr = {**settings, "pretrain": "simclr"}
    (trial, *_), _ = trials(make_plan(configurations={"U-Net": Configuration(method="unet", settings=simclr)}, cases=1))
    cohort = read_cohort(trial.folder)
    drawn, scored = ({case.name for case in cases} for cases in trial.divide(cohort))
    everyone = {case.name for case in cohort.cases}

    def pool(**changes: object) -> set[str]:
        configuration = replace(trial.configuration, **changes)
        return {case.name for case in replace(trial, configuration=configuration).pool(cohort)}

    assert pool() == everyone - drawn - scored
    assert pool()
    assert pool(unlabelled="all") == everyone - drawn
    assert pool(unlabelled="none") == pool(settings=settings) == set()


def test_a_method_that_learns_from_unlabelled_scans_is_run(make_plan: Callable[..., Plan], tmp_path: Path):
    settings = {"side": 32, "channels": 2, "train.iterations": 1, "contrast.iterations": 1, "contrast_batch": 2}
    configuration = Configuration(method="unet", settings={**settings, "pretrain": "simclr"}, unlabelled="all")
    found = run_experiment(make_plan(configurations={"U-Net": configuration}), tmp_path / "out", ONE)
    assert not found.failed
    assert all(not row.failure for row in read_study(tmp_path / "out").results)


def test_one_backbone_at_a_time_is_in_memory(
    make_plan: Callable[..., Plan], backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "other"
    tiny_models.tiny_sam(side=128).model.save_pretrained(other)
    configurations = {
        name: Configuration(method="nearest-slice", backbone=str(path))
        for name, path in (("first", backbone), ("second", other))
    }
    loaded: list[weakref.ref[object]] = []
    alive: list[int] = []

    def load(name: str) -> object:
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))
        found = load_backbone(name)
        loaded.append(weakref.ref(found))
        return found

    monkeypatch.setattr("handful.experiments.run.load_backbone", load)
    run_experiment(make_plan(configurations=configurations, splits=(0, 1)), tmp_path / "out", ONE)
    assert alive == [0, 0, 0, 0]  # two for the digests of the weights, and each once for its four fits
