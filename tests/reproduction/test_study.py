"""A study measures what its file lacks; configurations are read from text; studies use the intervals of the package."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from handful.backbones.base import Backbone
from handful.data.boxes import read_boxes
from handful.data.cases import Case, Cohort
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.evaluation.statistics import over_splits
from phantoms import phantom
from reproduction.configurations import build, parse
from reproduction.markdown import signed
from reproduction.studies import (
    boxes,
    controls,
    fate_settings,
    foundation,
    interactive,
    quality,
    retrieval,
    semi_supervised,
    suggest,
    windows,
)
from reproduction.study import Line, Split, Study, Trial, read_lines
from tiny_models import tiny_sam2_video


@dataclass(frozen=True, kw_only=True)
class Pair(Trial):
    """A cell of two lines, which notes that it was measured."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "notes")

    configuration: str
    settings: tuple[str, ...] = ()
    notes: Path

    def line_keys(self) -> list[Line]:
        return [self.key() | {"configuration": f"{self.configuration} {n}"} for n in (1, 2)]

    def results(self, backbone: Backbone) -> list[Line]:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(self.configuration + "\n")
        return [key | {"dice": [0.5]} for key in self.line_keys()]


@pytest.fixture
def measured(tmp_path: Path):
    """Measures configurations into one file, and says which had to be measured."""
    notes, out = tmp_path / "notes", tmp_path / "lines.jsonl"
    arguments = argparse.Namespace(out=out, backbone="handful-tiny", cache=None)
    study = Study("about", "lines", lambda arguments, digest: (), lambda lines: "")

    def run(*configurations: str, digest: str = "d") -> list[str]:
        notes.write_text("", "utf-8")
        made = [
            Pair(
                data=tmp_path, set="hearts", digest=digest, configuration=configuration, settings=("a=1",), notes=notes
            )
            for configuration in configurations
        ]
        study.measure(made, arguments, workers=1)
        return notes.read_text("utf-8").split()

    return run, out


def test_what_the_file_holds_is_not_measured_again(measured):
    run, out = measured
    assert run("fate") == ["fate"]
    assert run("fate", "unet") == ["unet"]
    assert run("fate", digest="other weights") == ["fate"]
    configurations = [(line["configuration"], line["digest"]) for line in read_lines(out)]
    assert configurations == [
        (f"{configuration} {n}", d)
        for configuration, d in (("fate", "d"), ("unet", "d"), ("fate", "other weights"))
        for n in (1, 2)
    ]


def test_of_a_cell_with_some_lines_only_the_missing_ones_are_added(measured):
    run, out = measured
    run("fate")
    first, second = out.read_text("utf-8").splitlines()
    out.write_text(second + "\n", "utf-8")
    assert run("fate") == ["fate"]
    assert [json.loads(text) for text in (second, first)] == read_lines(out)


def test_a_line_that_a_kill_cut_off_is_measured_again(measured):
    run, out = measured
    run("fate")
    whole = out.read_text("utf-8")
    out.write_text(whole[: len(whole) // 2 + 20], "utf-8")
    assert len(read_lines(out)) == 1
    assert run("fate", "unet") == ["fate", "unet"]
    assert out.read_text("utf-8").startswith(whole)
    assert len(read_lines(out)) == 4


def test_scores_on_cases_that_were_chosen_in_other_ways_are_not_pooled():
    line = {"set": "hearts", "configuration": "fate", "shots": 4, "most_cases": 1, "digest": "d", "cases": ["a"]}
    line |= {
        "split": 0,
        "hd95": [1.0],
        "absent": [[4, 1, 8]],
        "calibrate_s": 1.0,
        "judge_s": 1.0,
        "usual": {"wall": 0.5},
    }
    rows = [{"case": "a", "label": "wall", "flags": []} | dict.fromkeys(("dice", *quality.WAYS), 0.5)]
    lines = [
        line | {"dice": [dice], "rows": rows} | chosen for dice, chosen in ((0.2, {}), (0.6, {"unseen": "random"}))
    ]
    found = fate_settings.tables(lines).split("\n\n")
    assert [title.rpartition("cases: ")[2] for title in found[::2]] == ["first by name", "random"]
    assert all("25 %, 2 voxels | 1 | 1 |" in one for one in found[1::2])
    text = quality.tables(lines)
    assert text.count("; 1 split, 1 cases and labels") == 2
    assert "unseen cases: first by name" in text
    assert "unseen cases: random" in text


def test_a_configuration_is_a_method_with_settings():
    assert parse("fate") == ("fate", {})
    expected = {"planes": "axial,coronal", "roi_margin": "1.4"}
    assert parse("fate:planes=axial,coronal,roi_margin=1.4") == ("fate", expected)
    with pytest.raises(SettingsError, match="'axial' is no setting"):
        parse("fate:axial")


def test_a_method_that_trains_gets_the_seed_unless_its_settings_name_one():
    assert build("lora", {}, 2).train.seed == 2
    assert build("lora", {"train.seed": "5"}, 2).train.seed == 5
    assert build("fate", {}, 2) == build("fate", {}, 3)


def test_differences_of_suggested_slices_have_the_interval_over_splits():
    plain = {"set": "hearts", "method": "fate", "start": 0, "pool": 8, "most_cases": 2, "digest": "d", "budget": 4}
    random, model = ([0.5, 0.6], [0.4, 0.7]), ([0.6, 0.8], [0.5, 0.6])
    lines = [
        plain | {"configuration": configuration, "split": split, "cases": [f"a{split}", f"b{split}"], "dice": dice}
        for configuration, splits in (("random", random), ("model", model))
        for split, dice in enumerate(splits)
    ]
    gains = [{"a0": 0.1, "b0": 0.2}, {"a1": 0.1, "b1": -0.1}]
    assert f"| {signed(over_splits(gains))}, 1 of 2 |" in suggest.tables(lines)


def test_features_that_slices_are_compared_by_are_set_against_thumbnails():
    plain = {"set": "hearts", "shots": 4, "most_cases": 2, "digest": "d", "unseen": "random", "cases": ["a", "b"]}
    lines = [
        plain | {"features": features, "split": split, "dice": dice}
        for features, splits in (("pixels", ([0.5, 0.6], [0.4, 0.7])), ("imagenet-16", ([0.6, 0.8], [0.5, 0.6])))
        for split, dice in enumerate(splits)
    ]
    gains = [{"a": 0.1, "b": 0.2}, {"a": 0.1, "b": -0.1}]
    assert f"| 0.625 ({signed(over_splits(gains))}) | 4 | 2 |" in retrieval.tables(lines)
    more = retrieval.tables([*lines, plain | {"features": "pixels", "split": 0, "dice": [1.0, 1.0], "shots": 8}])
    assert f"| 0.625 ({signed(over_splits(gains))}) | 4 | 2 |" in more
    assert "| 1.000 | – | 8 | 1 |" in more


def test_a_benchmark_without_anything_to_score_is_refused_before_the_fit(tmp_path: Path):
    arguments = argparse.Namespace(scored="left_out", labelled=["3", "7"])
    with pytest.raises(SystemExit, match="--scored val"):
        next(iter(semi_supervised.trials(arguments, "d")))


def test_slices_are_encoded_by_imagenet_s_features_at_the_size_that_is_named():
    features = retrieval.features_of("imagenet-32")
    embeddings = features.encode(torch.rand(2, 1, 50, 40))
    assert embeddings.main.shape == (2, features.channels, 8, 8)
    assert (embeddings.size, features.feature_side) == ((50, 40), 8)


@pytest.fixture(scope="module")
def tiny_cohort() -> Cohort:
    volume, label_map = phantom(0)
    cases = tuple(Case(f"case-{n:02}", volume, label_map) for n in range(12))
    return Cohort(cases, label_map.labels, "twelve")


class Asked(Exception):
    """With the arguments that a split was asked for."""


KEYS = {"data": Path("data"), "set": "acdc", "digest": "d"}
OF_SETTING = {"configuration": "fate", "shots": 4, "split": 1, "most_cases": 8}
OF_FOUNDATION = {"seed": 1, "most_cases": 8, "name": "tiny"}
OF_SUGGEST = {"method": "fate", "configuration": "start", "start": 0, "pool": 3, "budget": 0, "split": 1}
OF_CLICKS = {"fitted_on": "acdc", "slices": 4, "seeds": 1, "most": 3, "annotator": "mixed", "iterations": 0}


@pytest.mark.parametrize(
    "trial",
    [
        boxes.BoxesTrial(**KEYS, marks="boxes", shots=4, split=1, most_cases=8, minutes=1),
        controls.ControlTrial(**KEYS, method="fate", seed=1, settings=(), controls=()),
        fate_settings.SettingTrial(**KEYS, **OF_SETTING),
        foundation.MemoryTrial(**KEYS, **OF_FOUNDATION),
        foundation.PromptTrial(**KEYS, **OF_FOUNDATION),
        interactive.InteractiveTrial(
            **KEYS, **OF_CLICKS, part="clicks", configuration="backbone", shots=4, split=1, cases_most=8
        ),
        quality.QualityTrial(**KEYS, **OF_SETTING),
        retrieval.RetrievalTrial(**KEYS, features="pixels", shots=4, split=1, most_cases=8),
        suggest.SuggestTrial(**KEYS, **OF_SUGGEST, most_cases=8),
        windows.WindowsTrial(**KEYS, way="features", shots=4, split=1, most_cases=8),
    ],
    ids=lambda trial: type(trial).__name__,
)
def test_no_study_scores_the_first_cases_by_name(trial: Trial, monkeypatch: pytest.MonkeyPatch, tiny_cohort: Cohort):
    """Each takes its unseen cases from the function that plans use, and says so in its lines."""

    def asked(self: Cohort, shots: int, seed: int, most: int | None = None) -> list[Case]:
        raise Asked(seed, most)

    monkeypatch.setattr("reproduction.study.read_cohort", lambda folder: tiny_cohort)
    monkeypatch.setattr(Cohort, "test_cases", asked)
    with pytest.raises(Asked) as error:
        trial.results(tiny_sam2_video())
    assert error.value.args in ((1, 8), (1, controls.MOST_CASES))
    assert trial.key()["unseen"] == "random"


def test_a_box_is_drawn_around_each_label_of_a_picture(tmp_path: Path):
    array = np.zeros((40, 30, 1), np.int16)
    array[5:9, 20:27] = 1
    array[5, 3] = 1
    geometry = Geometry(array.shape, np.eye(4), unit="pixel")
    labels = Labels((1, 2), ("polyp", "tool"))
    case = Case("picture", Volume(array[None].astype(np.uint8), geometry), LabelMap(array, geometry, labels), labels)
    boxes.write_boxes(tmp_path / "boxes.csv", [case], labels)
    [box] = read_boxes(tmp_path / "boxes.csv", [case], labels)["picture"]
    [classes] = Slicer().view(case.read_image()).of(array)
    inside = classes[int(box.y_min) : int(box.y_max) + 1, int(box.x_min) : int(box.x_max) + 1]
    assert box.label == 1
    assert (inside == 1).sum() == (array == 1).sum()
    assert all((side == 1).any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_both_ways_to_place_a_crop_are_told_of_the_same_scans(monkeypatch: pytest.MonkeyPatch, tiny_cohort: Cohort):
    monkeypatch.setattr("reproduction.study.read_cohort", lambda folder: tiny_cohort)
    lines = [
        line
        for way in ("similar slice", "features")
        for line in windows.WindowsTrial(**KEYS, way=way, shots=2, split=0, most_cases=2).results(tiny_sam2_video())
    ]
    assert lines[0]["cases"] == lines[1]["cases"]
    assert [len(line["lost"]) for line in lines] == [2, 2]
    assert all(0 <= lost <= 1 for line in lines for lost in line["lost"])
    rows = windows.tables(lines).splitlines()
    assert [row.split(" | ")[2] for row in rows[2:]] == ["similar slice", "features"]


@pytest.mark.parametrize(("wanted", "most"), [(3, 3), (25, 6)])
def test_no_more_cases_of_a_large_set_are_segmented_than_are_asked_for(
    wanted: int, most: int, monkeypatch: pytest.MonkeyPatch, tiny_cohort: Cohort
):
    def asked(self: Cohort, shots: int, seed: int, most: int | None = None) -> list[Case]:
        raise Asked(most)

    monkeypatch.setattr("reproduction.study.read_cohort", lambda folder: tiny_cohort)
    monkeypatch.setattr(Cohort, "test_cases", asked)
    trial = foundation.MemoryTrial(**KEYS | {"set": "openkbp"}, **OF_FOUNDATION | {"most_cases": wanted})
    with pytest.raises(Asked) as error:
        trial.results(tiny_sam2_video())
    assert error.value.args == (most,)


def test_a_study_and_a_plan_score_the_same_cases(tiny_cohort: Cohort, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reproduction.study.read_cohort", lambda folder: tiny_cohort)
    for split in range(5):
        of_study = Split.of(Path("hearts"), 2, split, 3)
        assert [case.name for case in of_study.unseen] == [case.name for case in tiny_cohort.test_cases(2, split, 3)]
