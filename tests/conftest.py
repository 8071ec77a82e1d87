"""What all tests share: one torch thread, shapes checked at run time, the same examples, and the way to real scans."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

install_import_hook("handful", "checked.typechecked")
torch.set_num_threads(1)
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")  # the same examples in every run, however slow the machine is


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random inputs and weights without a seed of their own do not depend on the tests that have run before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Nor on whether a fixture was made for this test or for an earlier one."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--realdata", type=Path, default=None, help="folder of real labelled data sets")


@pytest.fixture(scope="session")
def realdata(request: pytest.FixtureRequest) -> Path:
    """Folder with one data set per subfolder: --realdata, or shared/data beside the repository."""
    folder = request.config.getoption("--realdata") or Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real scans; name one by --realdata")
    return folder
