import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import handful

SOURCE = ast.parse(Path(handful.__file__).read_text(encoding="utf-8"))


def isort_order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_public_names_are_sorted_and_each_comes_once():
    assert handful.__all__ == sorted(set(handful.__all__), key=isort_order)


@pytest.mark.parametrize("name", handful.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(handful, name) is not None


def test_type_checkers_see_the_same_names_in_the_same_rooms():
    imports = [node for node in ast.walk(SOURCE) if isinstance(node, ast.ImportFrom) and "." in (node.module or "")]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert set(typed) == set(handful.__all__)
    for name, room in typed.items():
        assert getattr(importlib.import_module(room), name) is getattr(handful, name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="segmentify"):
        handful.segmentify  # noqa: B018


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert handful.__version__ == version("handful")


HEAVY = ("torch", "transformers", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "matplotlib", "pydantic")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("handful", HEAVY), ("handful.cli", HEAVY), ("handful.cohort.predict", ("monai", "scipy.stats"))],
)
def test_importing_the_doors_brings_nothing_heavy(module: str, heavy: tuple[str, ...]):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
