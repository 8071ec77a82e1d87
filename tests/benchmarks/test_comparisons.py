"""The benchmarks that compare devices, versions and packages run, and find what differs."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from handful.data.volume import Geometry, LabelMap, Labels
from handful.methods.catalog import METHODS, method_settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


@pytest.fixture
def before_after(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("before_after")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers")


def test_without_a_gpu_nothing_is_measured(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "choose_device", lambda name: torch.device("cpu"))
    section = gpu.measure(1)
    assert section.notes == ("not measured: no GPU on this machine",)
    assert not section.tables
    assert not section.checks


def test_the_cpu_agrees_with_itself(gpu: ModuleType) -> None:
    section = gpu.measure(1, "cpu", ["nearest-slice", "unet"])
    assert [check.holds for check in section.checks] == [True, True]
    assert [(row[0], row[-1]) for row in section.tables[0].rows] == [("nearest-slice", "1.0000"), ("unet", "1.0000")]


def test_label_maps_that_differ_do_not_agree(gpu: ModuleType) -> None:
    one = np.zeros((4, 4, 4), dtype=np.uint8)
    one[:2], one[2:] = 1, 2
    other = one.copy()
    other[1] = 0
    maps = [LabelMap(array, Geometry(one.shape, np.eye(4)), Labels.of({1: "a", 2: "b"})) for array in (one, other)]
    assert gpu.lowest_dice(*maps) == pytest.approx(2 / 3)
    assert not gpu.Comparison(None, None, (), voxels=64, dice=2 / 3).agrees
    assert gpu.Comparison(None, None, (), voxels=64, dice=0.99).agrees
    assert not gpu.Comparison(None, None, (), voxels=0, dice=1.0).agrees


def test_every_method_of_the_benchmark_is_fitted_briefly(gpu: ModuleType) -> None:
    for name in METHODS:
        settings = method_settings(gpu.small(name))
        if "train" in settings:
            assert settings["train"]["iterations"] == gpu.SMALL["train.iterations"], name


def test_versions_are_compared_round_by_round(before_after: ModuleType) -> None:
    empty, torch_alone = before_after.EMPTY, before_after.IMPORT_TORCH
    before = [{empty: 0.1, torch_alone: 2.0, "handful --help": 1.0, "predict, fate": 8.0}] * 2
    after = [{empty: 0.1, torch_alone: 2.0, "handful --help": help_, "predict, fate": 6.0} for help_ in (0.2, 0.4)]
    rows = {row[0]: row for row in before_after.compared("commands", before, after, {}).tables[0].rows}
    assert str(rows["handful --help"][3]) == "0.3 [0.2..0.4]"
    assert rows["handful --help"][4] == pytest.approx(0.1)
    assert str(rows["predict, fate"][5]) == "3 [3..3]"
    assert rows[torch_alone][4] == "–"


def test_the_floor_of_a_piece_is_its_operations_at_the_rate_of_a_matrix_product(before_after: ModuleType) -> None:
    product = 2 * before_after.SQUARE**3
    assert before_after.floor_of("encode", {before_after.MATRIX: 0.25, "encode": 2.0}, {"encode": 3 * product}) == 0.75


def test_a_step_is_the_difference_of_two_fits(before_after: ModuleType) -> None:
    found = {"encode": 1.0, f"unet, {before_after.LONG} steps": 10.0, f"unet, {before_after.SHORT} steps": 4.0}
    assert before_after.per_step(found, {"unet": 12}) == {"encode": 1.0, "unet, a step": 0.5}


def test_peers_that_are_not_installed_are_named(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    section = peers.measure(1)
    assert len(section.notes) == len(peers.PEERS)
    assert "pip install sam2" in " ".join(section.notes)
    assert not section.tables
