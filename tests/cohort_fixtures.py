"""A cohort folder, a tiny backbone, and a model fitted on two cases in no time."""

from pathlib import Path

import pytest

import small_cohort
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.cohort.choice import choose_support
from handful.cohort.fit import fit_to_folder
from handful.data.cases import Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.methods.nearest_slice import NearestSlice


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(small_cohort.write_backbone(tmp_path_factory.mktemp("backbone")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write into it."""
    return small_cohort.write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def cohort(folder: Path) -> Cohort:
    return read_cohort(folder)


@pytest.fixture(scope="session")
def support(cohort: Cohort) -> SupportSet:
    return choose_support(cohort, ["case-0", "case-1"])


@pytest.fixture(scope="session")
def model(support: SupportSet, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "nearest"
    fit_to_folder("nearest-slice", NearestSlice(), support, backbone, out)
    return out
