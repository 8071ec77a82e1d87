"""Folders that the commands read (a cohort, a backbone, a fitted model), and the commands, in this process."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import small_cohort
from handful.cli import app
from small_cohort import Handful


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write into it."""
    return small_cohort.write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def own(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that a test may spoil."""
    return Path(shutil.copytree(cohort, tmp_path / "own"))


@pytest.fixture(scope="session")
def handful() -> Handful:
    """Runs the command line in this process."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def model(handful: Handful, cohort: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies labels from the nearest slice of case-0 and case-1."""
    out = tmp_path_factory.mktemp("models") / "nearest"
    chosen = ("--cases", "case-0,case-1", "--backbone", backbone, "--no-cache", "-q")
    result = handful("fit", "nearest-slice", "-i", cohort, "-o", out, *chosen)
    assert result.exit_code == 0, result.output
    return out
