"""The tables of the study of continual learning."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import small_cohort
import tiny_models
from handful.backbones.base import Backbone
from handful.methods.unet.method import UNetSegmenter
from reproduction.studies import continual
from reproduction.studies.continual import ROUTED, DiceTrial, NaiveTrial, RoutingTrial, tables
from reproduction.study import Split

COMMON = {"set": "continual", "digest": "0", "shots": 1, "split": 0, "most_unseen": 1}
NET = "unet:side=32,channels=4,batch=2,train.iterations=2"


def routing(split: int, wrong: str | None = None) -> dict[str, object]:
    """A line in which every scan gets its own expert, but for one scan of the first data set."""
    picked = [{name: {"a": name, "b": name} for name in ROUTED[:number]} for number in range(2, len(ROUTED) + 1)]
    if wrong:
        picked[-1][ROUTED[0]]["a"] = wrong
    return {"part": "routing", "split": split, "picked": picked, "margins": {name: [0.5, 0.7] for name in ROUTED}}


def test_right_and_wrong_experts_are_counted_over_the_splits():
    text = tables([routing(0), routing(1, wrong=ROUTED[3])])
    assert f"| {ROUTED[0]} | 3 of 4 | {ROUTED[3]} (1) | 0.60 | 0.50 |" in text
    assert f"| {ROUTED[1]} | 4 of 4 | – | 0.60 | 0.50 |" in text
    assert f"| 2 | {ROUTED[1]} | 8 of 8 |" in text
    assert f"| {len(ROUTED)} | {ROUTED[-1]} | {4 * len(ROUTED) - 1} of {4 * len(ROUTED)} |" in text


def test_what_earlier_tasks_lose_is_the_change_since_they_were_learned():
    steps = [
        {"task": "acdc", "own": {"acdc": [0.8, 0.6]}, "fit_core_s": 1.0},
        {"task": "cxr", "own": {"acdc": [0.4, 0.2], "cxr": [0.9]}, "fit_core_s": 1.0},
    ]
    line = {"part": "naive", "configuration": "unet", "order": "forward", "split": 0, "steps": steps}
    text = tables([line])
    assert "| unet, one net | forward | 0 | acdc | acdc 0.700 | – | – |" in text
    assert "| unet, one net | forward | 0 | cxr | acdc 0.300, cxr 0.900 | -0.400 | – |" in text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of phantoms."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("one", "two"):
        small_cohort.write_cohort(folder / name, cases=3)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny_models.tiny_sam(side=64)


def test_an_expert_segments_as_before_after_another_was_added(
    data: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(continual, "ORDERS", {"forward": ("one", "two")})
    trial = DiceTrial(data=data, order="forward", configuration="nearest-slice", scratch=None, **COMMON)
    (line,) = trial.results(backbone)
    first, second = line["steps"]
    assert second["own"]["one"] == first["own"]["one"]
    assert second["own"].keys() == second["routed"].keys() == {"one", "two"}
    assert "| nearest-slice, experts | forward | 0 | two |" in tables([line])


def test_one_net_is_trained_on_the_tasks_one_after_the_other(
    data: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(continual, "ORDERS", {"forward": ("one", "two")})
    (line,) = NaiveTrial(data=data, order="forward", configuration=NET, **COMMON).results(backbone)
    assert [step["own"].keys() for step in line["steps"]] == [{"one"}, {"one", "two"}]


def test_a_task_keeps_its_last_layer_when_the_next_one_has_as_many_labels(
    data: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    shown: list[dict[str, Tensor]] = []

    def scored(segmenter: UNetSegmenter, split: Split) -> list[float]:
        shown.append({name: one.clone() for name, one in segmenter.net.state_dict().items()})
        return [0.5]

    monkeypatch.setattr(continual, "ORDERS", {"forward": ("one", "two")})
    monkeypatch.setattr(continual, "_of_net", scored)
    NaiveTrial(data=data, order="forward", configuration=NET, **COMMON).results(backbone)
    at_first, later, second = shown
    kept = {name for name in later if torch.equal(later[name], at_first[name])}
    taken = {name for name in later if torch.equal(later[name], second[name])}
    assert kept | taken == later.keys()
    assert any("output_block" in name for name in kept)
    assert not any("output_block" in name for name in taken)
    assert any("input_block" in name for name in taken - kept)


def test_unseen_scans_of_every_data_set_are_routed(data: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(continual, "ROUTED", ("one", "two"))
    (line,) = RoutingTrial(data=data, **COMMON).results(backbone)
    (picked,) = line["picked"]
    assert {name: len(found) for name, found in picked.items()} == {"one": 1, "two": 1}
    assert all(expert in ("one", "two") for found in picked.values() for expert in found.values())
