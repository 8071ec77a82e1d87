"""A cohort folder, a tiny backbone, and a plan that takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

import small_cohort
from handful.experiments.plan import Configuration, DataSet, Plan


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled phantoms; read it, never write into it."""
    return small_cohort.write_cohort(tmp_path_factory.mktemp("data") / "phantoms", 5)


@pytest.fixture
def make_plan(folder: Path, backbone: Path) -> Callable[..., Plan]:
    """A plan of one method that learns in no time, on two phantoms a split; arguments change it."""

    def make(**changes: object) -> Plan:
        plain: dict[str, object] = {
            "name": "trial",
            "data": {"phantoms": DataSet(folder=folder)},
            "configurations": {"nearest": Configuration(method="nearest-slice")},
            "shots": (1, 2),
            "splits": (0,),
            "cases": 2,
            "backbone": str(backbone),
        }
        return Plan(**plain | changes)  # type: ignore[arg-type]

    return make
