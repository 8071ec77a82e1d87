"""Continual learning: experts that are added to a model one after the other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from expert_tasks import negative_case, negatives, picture_case, pictures, scans
from handful.backbones.base import Backbone
from handful.checkpoint.experts import MergedLabels, save_experts
from handful.checkpoint.model import load, open_model, save
from handful.cohort.experts import expert_name, fit_expert
from handful.cohort.fit import FitConfig, FitResult, fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort, predict_file
from handful.cohort.review import review_folder
from handful.data.cases import Case, Cohort
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import CheckpointError, InputError, SettingsError, UnsupportedInput
from handful.jobs.digests import digest_of_file
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method
from handful.methods.experts import ExpertsSegmenter
from phantoms import phantom, phantom_case
from small_cohort import files_below

NEAREST = build_method("nearest-slice", {"roi_margin": "none"})
MERGED = Labels((1, 2, 3), ("ball", "cube", "egg"))


def nearest(support: SupportSet, backbone: Backbone, out: Path, expert: str, add_to: Path | None = None) -> FitResult:
    return fit_expert("nearest-slice", NEAREST, support, backbone, out, expert=expert, add_to=add_to)


def digests(folder: Path) -> dict[str, str]:
    return {name: digest_of_file(folder / name) for name in files_below(folder)}


@pytest.fixture(scope="module")
def single(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the phantoms, without experts."""
    out = tmp_path_factory.mktemp("models") / "scans"
    fit_to_folder("nearest-slice", NEAREST, scans(range(2)), backbone, out, FitConfig(leave_out=False))
    return out


@pytest.fixture(scope="module")
def first(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one expert."""
    out = tmp_path_factory.mktemp("models") / "one"
    nearest(scans(range(2)), backbone, out, "scans")
    return out


@pytest.fixture(scope="module")
def second(first: Path, backbone: Backbone) -> Path:
    """A model with two experts."""
    nearest(negatives(range(2)), backbone, first.with_name("two"), "negatives", first)
    return first.with_name("two")


@pytest.fixture(scope="module")
def third(second: Path, backbone: Backbone) -> Path:
    """A model with three experts, the last for pictures in colour."""
    nearest(pictures(range(2)), backbone, second.with_name("three"), "pictures", second)
    return second.with_name("three")


@pytest.fixture(scope="module")
def segmenter(third: Path, backbone: Backbone) -> Segmenter:
    return load(third, backbone)


def own_model(task: SupportSet, backbone: Backbone) -> Segmenter:
    """The segmenter of a task that was never part of another model."""
    return NEAREST.fit(task, backbone)


# What each expert is.


def test_an_expert_is_its_own_model_byte_by_byte_and_the_earlier_model_stays(
    first: Path, backbone: Backbone, tmp_path: Path
):
    fit_to_folder("nearest-slice", NEAREST, scans(range(2)), backbone, tmp_path / "own", FitConfig(leave_out=False))
    before = digests(first)
    nearest(negatives(range(2)), backbone, tmp_path / "new", "negatives", first)
    assert digests(first) == before
    assert digests(tmp_path / "new" / "experts" / "scans") == digests(first / "experts" / "scans")
    own = open_model(tmp_path / "own")
    part = open_model(tmp_path / "new" / "experts" / "scans")
    assert part.record.weights_sha256 == own.record.weights_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "own"]


@pytest.mark.parametrize("task", ["scans", "negatives", "pictures"])
def test_the_predictions_of_an_expert_are_those_of_its_own_model(task: str, segmenter: Segmenter, backbone: Backbone):
    support = {"scans": scans, "negatives": negatives, "pictures": pictures}[task](range(2))
    case = {"scans": phantom_case, "negatives": negative_case, "pictures": picture_case}[task](7)
    expected = own_model(support, backbone).predict(case.read_image())
    route = segmenter.route(case.read_image())
    assert route.expert == task
    assert route.margin is not None
    assert route.margin > 0
    found = segmenter.predict(case.read_image())
    names, values = expected.labels.as_dict(), {name: value for value, name in found.labels.as_dict().items()}
    for value, name in names.items():
        assert np.array_equal(found.array == values[name], expected.array == value)
    assert np.array_equal(found.array == 0, expected.array == 0)


def test_any_method_is_an_expert_also_one_that_auto_chose(first: Path, backbone: Backbone, tmp_path: Path):
    net = {"encoder": "none", "channels": 4, "side": 32, "train.iterations": 2, "batch": 2}
    method: Method = build_method("auto", {f"unet.{key}": value for key, value in net.items()} | {"check": False})
    result = fit_expert("auto", method, negatives(range(1)), backbone, tmp_path / "two", expert="nets", add_to=first)
    assert any(line.startswith("chosen: ") for line in result.decisions)
    assert open_model(tmp_path / "two").experts["nets"].record.method == "auto"
    again = fit_expert(
        "nearest-slice",
        NEAREST,
        pictures(range(1)),
        backbone,
        tmp_path / "three",
        expert="pictures",
        add_to=tmp_path / "two",
    )
    assert again.anew
    assert set(load(tmp_path / "three", backbone).experts) == {"scans", "nets", "pictures"}


# Labels.


@pytest.mark.parametrize(
    ("tasks", "names", "values"),
    [
        ([{1: "liver"}, {1: "liver"}], {1: "liver"}, [{1: 1}, {1: 1}]),
        ([{1: "liver"}, {2: "liver"}], {1: "liver"}, [{1: 1}, {2: 1}]),
        ([{1: "liver"}, {1: "spleen"}], {1: "liver", 2: "spleen"}, [{1: 1}, {1: 2}]),
        ([{1: "liver"}, {1: "spleen", 2: "cyst"}], {1: "liver", 2: "cyst", 3: "spleen"}, [{1: 1}, {1: 3, 2: 2}]),
        ([{1: "a", 2: "b"}, {1: "b", 2: "a"}], {1: "a", 2: "b"}, [{1: 1, 2: 2}, {1: 2, 2: 1}]),
        ([{6: "Liver"}, {1: "liver", 6: "cyst"}], {2: "cyst", 6: "Liver"}, [{6: 6}, {1: 6, 6: 2}]),
        ([{1: "a"}, {1: "x", 2: "X"}], {1: "a", 2: "X", 3: "x"}, [{1: 1}, {1: 3, 2: 2}]),
        ([{1: "a"}, {1: "b"}, {1: "c"}], {1: "a", 2: "b", 3: "c"}, [{1: 1}, {1: 2}, {1: 3}]),
    ],
)
def test_a_name_has_one_value_and_a_value_one_name(
    tasks: list[dict[int, str]], names: dict[int, str], values: list[dict[int, int]]
):
    merged = MergedLabels.of({f"task-{number}": labels for number, labels in enumerate(tasks)})
    assert merged.names == names
    assert list(merged.values.values()) == values
    for changed, placed in zip(merged.changes.values(), values, strict=True):
        assert len(changed) == sum(old != new for old, new in placed.items())


def test_labels_that_get_other_values_are_reported(first: Path, backbone: Backbone, tmp_path: Path):
    result = nearest(negatives(range(1)), backbone, tmp_path / "m", "negatives", first)
    lines = [line for line in result.decisions if line.startswith("label ")]
    assert lines == [
        "label 1 'egg' of negatives becomes 3, the value that this name has already",
        "label 3 'ball' of negatives becomes 1, the value that this name has already",
    ]
    assert open_model(tmp_path / "m").record.labels == MERGED.as_dict()


# The promises of a segmenter.


def test_a_model_of_experts_keeps_the_promises_of_a_segmenter(segmenter: Segmenter):
    assert segmenter.labels == Labels((1, 2, 3, 4), (*MERGED.names, "blob"))
    slices = torch.rand(3, 1, 21, 34, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = segmenter(slices)
        apart = torch.cat([segmenter(one) for one in slices.split(1)])
    assert together.shape == (3, 4, 21, 34)
    assert torch.equal(together, apart)
    image = negative_case(7).read_image()
    label_map = segmenter.predict(image)
    assert label_map.geometry.shape == image.geometry.shape
    into = np.zeros((4, *image.geometry.shape), np.float32)
    segmenter.add_probabilities(image, into)
    assert into[3].max() == 0  # a blob is not looked for
    classes = np.concatenate([0.5 * np.ones_like(into[:1]), into]).argmax(axis=0)
    assert np.array_equal(classes, label_map.array)
    assert segmenter.confidence(image, label_map).keys() == set(np.unique(label_map.array)) - {0}
    assert segmenter.promptable() is None
    assert segmenter.holds == {"masks", "pictures", "sums"}


def test_a_segmenter_with_experts_is_not_saved_without_them(segmenter: Segmenter, tmp_path: Path):
    with pytest.raises(SettingsError, match="fit_expert"):
        save(segmenter, tmp_path / "m", method_name="nearest-slice", method=NEAREST, provenance={})
    assert not (tmp_path / "m").exists()


# The router and the kind of scans.


def test_a_model_without_experts_becomes_one_from_the_scans_that_it_was_fitted_on(
    single: Path, first: Path, second: Path, backbone: Backbone, tmp_path: Path
):
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    broken = dataclasses.replace(phantom_case(9), name="broken", image=tmp_path / "broken.nii.gz")
    cases = [broken, *(phantom_case(seed) for seed in range(4))]
    fit_expert(
        *("nearest-slice", NEAREST, negatives(range(2)), backbone, tmp_path / "m"),
        expert="negatives",
        add_to=single,
        scans=cases,
    )
    found, expected = open_model(tmp_path / "m"), open_model(second)
    assert list(found.experts) == ["scans", "negatives"]
    torch.testing.assert_close(found.router().weights, expected.router().weights)
    with pytest.raises(InputError, match=r"missing \(phantom-0\).*--from-input.*; broken cannot be read: "):
        fit_expert(
            *("nearest-slice", NEAREST, negatives(range(2)), backbone, tmp_path / "other"),
            expert="negatives",
            add_to=single,
            scans=[broken, *cases[2:]],
        )
    assert not (tmp_path / "other").exists()


def test_an_expert_that_refuses_the_scan_is_passed_over_and_named(third: Path, segmenter: Segmenter):
    assert isinstance(segmenter, ExpertsSegmenter)
    kinds = {name: model.record.made_for for name, model in open_model(third).experts.items()}
    image = phantom(7)[0]
    swapped = ExpertsSegmenter(
        segmenter.experts, kinds | {"scans": kinds["pictures"]}, segmenter.labels, segmenter.router
    )
    route = swapped.route(image)
    assert route.expert == "negatives"
    assert route.margin is not None
    assert route.margin < 0
    assert "preferred the expert 'scans'" in route.passed_over[0]
    assert "this one is grey" in route.passed_over[0]
    refusing = dict.fromkeys(kinds, kinds["pictures"])
    none = ExpertsSegmenter(segmenter.experts, refusing, segmenter.labels, segmenter.router)
    with pytest.raises(UnsupportedInput, match=r"no expert .*scans: .*colour.*; negatives: "):
        none.route(image)


def test_each_case_gets_its_expert_and_run_json_has_it(third: Path, tmp_path: Path):
    cases = [renamed(phantom_case(7), "a"), renamed(negative_case(7), "b"), renamed(picture_case(5), "c")]
    result = predict_cohort(third, cases, tmp_path)
    assert result.failures == ()
    found = json.loads((tmp_path / "run.json").read_text())["experts"]
    assert {name: one["name"] for name, one in found.items()} == {"a": "scans", "b": "negatives", "c": "pictures"}
    assert all(one["by"] == "router" and one["margin"] > 0 for one in found.values())
    lines = (tmp_path / "volumes.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:3] for line in lines] == [
        *(["a", "1", "ball"], ["a", "3", "egg"]),
        *(["b", "1", "ball"], ["b", "2", "cube"], ["b", "3", "egg"]),
        ["c", "4", "blob"],
    ]
    assert set(predict_cohort(third, cases, tmp_path).skipped) == {"a", "b", "c"}
    named = predict_cohort(third, cases[:2], tmp_path, PredictConfig(expert="negatives"))
    assert (named.done, named.skipped) == (("a",), ("b",))
    assert named.experts["a"].by == "name"
    again = predict_cohort(third, cases[:2], tmp_path)
    assert (again.done, again.skipped) == (("a",), ("b",))


def test_probabilities_are_written_for_the_labels_of_the_expert(third: Path, tmp_path: Path):
    config = PredictConfig(probabilities=True)
    cases = [renamed(phantom_case(7), "a")]
    predict_cohort(third, cases, tmp_path, config)
    assert files_below(tmp_path / "probabilities") == ["a_label1.nii.gz", "a_label3.nii.gz"]
    assert predict_cohort(third, cases, tmp_path, config).skipped == ("a",)


def test_a_named_expert_refuses_scans_of_another_kind(third: Path, tmp_path: Path):
    result = predict_cohort(third, [phantom_case(7)], tmp_path, PredictConfig(expert="pictures"))
    assert "fitted on colour scans" in result.failures[0].reason
    with pytest.raises(SettingsError, match=r"no expert 'picture'.*did you mean"):
        predict_cohort(third, [phantom_case(7)], tmp_path, PredictConfig(expert="picture"))


def test_a_single_file_is_segmented_by_its_expert(third: Path, single: Path, tmp_path: Path):
    found = predict_file(third, negative_case(7).read_image(), tmp_path / "out.nii.gz")
    assert found.expert is not None
    assert found.expert.name == "negatives"
    assert set(found.sizes.voxels) == {1, 2, 3}
    with pytest.raises(SettingsError, match="has no experts"):
        predict_file(single, phantom(7)[0], tmp_path / "other.nii.gz", PredictConfig(expert="scans"))


def test_the_only_expert_is_picked_without_a_margin(first: Path, tmp_path: Path):
    result = predict_cohort(first, [phantom_case(7)], tmp_path)
    assert result.experts["phantom-7"].margin is None


# What is refused, and what is kept.


def test_names_folders_and_backbones_that_do_not_fit_are_refused(first: Path, backbone: Backbone, tmp_path: Path):
    task, before = negatives(range(1)), digests(first)
    with pytest.raises(SettingsError, match="stays as it is; name another folder"):
        nearest(task, backbone, first, "negatives", first)
    with pytest.raises(SettingsError, match="has an expert 'scans' already"):
        nearest(task, backbone, tmp_path / "m", "scans", first)
    with pytest.raises(SettingsError, match="cannot be the name of an expert"):
        nearest(task, backbone, tmp_path / "m", "../up", first)
    with pytest.raises(CheckpointError, match=f"add --backbone {backbone.name}"):
        nearest(task, tiny_models.tiny_sam(seed=1, side=64), tmp_path / "m", "negatives", first)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is no model"):
        nearest(task, backbone, tmp_path / "notes", "negatives", first)
    assert digests(first) == before
    assert files_below(tmp_path) == ["notes/mine.txt"]


def test_the_same_fit_again_is_already_done_and_another_needs_overwrite(
    first: Path, backbone: Backbone, tmp_path: Path
):
    once = nearest(negatives(range(1)), backbone, tmp_path / "m", "negatives", first)
    before = digests(tmp_path / "m")
    again = nearest(negatives(range(1)), backbone, tmp_path / "m", "negatives", first)
    assert (once.anew, again.anew) == (True, False)
    assert again.decisions == once.decisions
    with pytest.raises(CheckpointError, match="add --overwrite"):
        nearest(negatives(range(2)), backbone, tmp_path / "m", "negatives", first)
    assert digests(tmp_path / "m") == before


def test_a_fit_that_was_stopped_before_its_model_was_written_goes_on(
    first: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(Exception):
        pass

    def killed(*arguments: object) -> None:
        raise KilledError

    task, out = negatives(range(1)), tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr("handful.cohort.experts.save_experts", killed)
        with pytest.raises(KilledError):
            nearest(task, backbone, out, "negatives", first)
    assert not out.exists()
    half_done = tmp_path / "m.partial" / "expert" / "segmenter.json"
    assert half_done.exists()
    other = build_method("nearest-slice", {"roi_margin": "none", "similarity": "embedding"})
    fit_expert("nearest-slice", other, task, backbone, out, expert="negatives", add_to=first)  # not the half-done one
    assert open_model(out).expert("negatives").record.settings["similarity"] == "embedding"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("when", ["before the sums", "after the sums", "between two files"])
def test_a_model_that_changes_during_the_fit_is_not_copied_and_the_fit_is_kept(
    when: str, first: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, out = tmp_path / "base", tmp_path / "m"
    shutil.copytree(first, base)

    def report(step: int, total: int, note: str) -> None:
        if when == "before the sums" and "sums of the router" in note:
            nearest(scans(range(2, 4)), backbone, tmp_path / "new", "scans")
            shutil.rmtree(base)
            (tmp_path / "new").rename(base)

    def changed_first(*arguments: object) -> None:
        file = base / "experts" / "scans" / ("segmenter.json" if when == "after the sums" else "weights.safetensors")
        file.write_bytes(file.read_bytes()[:-2] + b" }")
        save_experts(*arguments)  # type: ignore[arg-type]

    def fit(**options: Any) -> FitResult:
        task = negatives(range(1))
        return fit_expert("nearest-slice", NEAREST, task, backbone, out, expert="negatives", add_to=base, **options)

    with monkeypatch.context() as patched:
        if when != "before the sums":
            patched.setattr("handful.cohort.experts.save_experts", changed_first)
        with pytest.raises(CheckpointError, match="was changed during the fit"):
            fit(report=report)
    assert not out.exists()
    assert (tmp_path / "m.partial" / "expert" / "segmenter.json").exists()
    shutil.rmtree(base)
    shutil.copytree(first, base)
    monkeypatch.setattr(type(NEAREST), "fit", None)  # the finished fit is used
    assert fit(config=FitConfig(leave_out=False)).anew
    assert set(load(out, backbone).experts) == {"scans", "negatives"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "m"]


def test_the_dice_on_left_out_cases_is_added_to_an_expert_that_is_there(
    first: Path, backbone: Backbone, tmp_path: Path
):
    def fit(out: Path, leave_out: bool) -> FitResult:
        config = FitConfig(leave_out=leave_out)
        return fit_expert(
            *("nearest-slice", NEAREST, negatives(range(2)), backbone, out),
            expert="negatives",
            add_to=first,
            config=config,
        )

    whole = fit(tmp_path / "n", True)
    assert not fit(tmp_path / "m", False).dice_left_out
    added = fit(tmp_path / "m", True)
    assert (added.anew, added.dice_left_out) == (False, whole.dice_left_out)
    assert digests(tmp_path / "m") == digests(tmp_path / "n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


def test_other_things_in_a_model_with_experts_are_left_alone(first: Path, backbone: Backbone, tmp_path: Path):
    shutil.copytree(first, tmp_path / "m")
    (tmp_path / "m" / "experts" / "scans" / "mask.nii.gz").write_text("corrected by hand")
    before = digests(tmp_path)
    with pytest.raises(CheckpointError, match=r"experts/scans/mask\.nii\.gz is not part of the model"):
        fit_expert(
            *("nearest-slice", NEAREST, negatives(range(1)), backbone, tmp_path / "m"),
            expert="negatives",
            config=FitConfig(overwrite=True),
        )
    assert digests(tmp_path) == before


def test_scans_of_two_tasks_are_reported(first: Path, backbone: Backbone, tmp_path: Path):
    result = nearest(scans(range(1, 3)), backbone, tmp_path / "m", "again", first)
    assert any(line.startswith("1 scan in common with the expert scans") for line in result.decisions)


@pytest.mark.parametrize("damage", ["missing", "record", "weights", "router", "name", "values", "method"])
def test_a_damaged_folder_is_refused(damage: str, second: Path, backbone: Backbone, tmp_path: Path):
    model = tmp_path / "m"
    shutil.copytree(second, model)
    expert, record = model / "experts" / "scans", model / "segmenter.json"
    content = json.loads(record.read_text())
    if damage == "missing":
        shutil.rmtree(expert)
    elif damage == "record":
        (expert / "segmenter.json").write_text((expert / "segmenter.json").read_text() + " ")
    elif damage in ("weights", "router"):
        file = (expert if damage == "weights" else model) / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:-8] + b"damaged.")
    elif damage == "name":
        content["experts"]["../two"] = content["experts"].pop("scans")
    elif damage == "values":
        content["experts"]["scans"]["values"]["1"] = 77
    else:
        content["method"] = "unet"
    if damage in ("name", "values", "method"):
        record.write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        open_model(model).load(backbone)


def test_what_needs_one_task_names_the_folders_of_the_experts(second: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="experts/scans"):
        review_folder(tmp_path, second, Cohort((), None, "none"), tmp_path / "out")
    with pytest.raises(SettingsError, match="needs the model of one task"):
        open_model(second).method()


# What it holds.


def test_a_model_of_experts_states_what_it_holds(second: Path):
    content = open_model(second).content()
    assert any("sums of embeddings" in line and "no picture" in line for line in content.holds)
    assert any("scans/phantom-0" in line and "negatives/phantom-0" in line for line in content.holds)
    assert {name: expert.labels for name, expert in content.experts.items()} == {
        "scans": {1: "ball", 3: "egg"},
        "negatives": {3: "egg", 2: "cube", 1: "ball"},
    }
    card = (second / "README.md").read_text()
    for text in ("`experts/negatives`", "sums of embeddings", "cube"):
        assert text in card


def test_the_router_keeps_numbers_of_one_size_however_many_scans(
    first: Path, second: Path, backbone: Backbone, tmp_path: Path
):
    nearest(scans(range(6)), backbone, tmp_path / "m", "scans")
    small, large = (open_model(folder).router().pack() for folder in (first, tmp_path / "m"))
    assert {name: tensor.shape for name, tensor in small.items()} == {name: one.shape for name, one in large.items()}
    features = 2 * backbone.channels + 1
    assert open_model(second).router().moments.shape == (features, features)


def test_an_anonymous_expert_joins_anonymous_experts_only(first: Path, backbone: Backbone, tmp_path: Path):
    net = {"encoder": "none", "channels": 4, "side": 32, "train.iterations": 2, "batch": 2, "roi_margin": "none"}
    method, config = build_method("unet", net), FitConfig(anonymous=True)
    fit_expert("unet", method, scans(range(1)), backbone, tmp_path / "a", expert="one", config=config)
    fit_expert(
        *("unet", method, negatives(range(1)), backbone, tmp_path / "b"),
        expert="two",
        add_to=tmp_path / "a",
        config=config,
    )
    model = open_model(tmp_path / "b")
    assert model.record.anonymous
    assert not any(b"phantom" in (tmp_path / "b" / name).read_bytes() for name in files_below(tmp_path / "b"))
    with pytest.raises(SettingsError, match="has the names of its cases"):
        fit_expert(
            *("unet", method, negatives(range(1)), backbone, tmp_path / "c"),
            expert="two",
            add_to=first,
            config=config,
        )


def test_names_of_experts_are_made_from_names_of_folders():
    assert expert_name(Path("/data/Heart (MR) 2024")) == "Heart-MR-2024"
    assert expert_name(Path("/data/***")) == "expert"


def renamed(case: Case, name: str) -> Case:
    return Case(name, case.image, case.reference, case.labels)
