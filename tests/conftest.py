"""What all tests share: one torch thread, shapes checked at run time, and the way to real scans where they are."""

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("handful", "checked.typechecked")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--realdata", type=Path, default=None, help="folder of real labelled data sets")


@pytest.fixture(scope="session")
def realdata(request: pytest.FixtureRequest) -> Path:
    """Folder with one data set per subfolder: --realdata, or shared/data beside the repository."""
    folder = request.config.getoption("--realdata") or Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real scans; name one by --realdata")
    return folder
