"""The public names: all there, all that the documents use, and nothing heavy loaded before one is used."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import handful

PACKAGE = Path(handful.__file__).parent
PROJECT = Path(__file__).parents[1]
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
IMPORTS = [(node.module or "", alias) for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]
HEAVY = ("torch", "transformers", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "matplotlib", "pydantic")


def is_there(dotted: str) -> bool:
    """Whether 'handful.Session' or 'handful.data.files.read_cohort' can be had: modules first, then attributes."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def names_in_code(text: str) -> Iterator[str]:
    """The names of the package that the Python blocks of a document use."""
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "handful")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "handful":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"handful(\.\w+)+", ast.unparse(node)):
                yield ast.unparse(node)


def names_in_prose(text: str) -> Iterator[str]:
    """The names of the package that begin a piece of code in a sentence, such as `handful.Session`; no file names."""
    for name in re.findall(r"`(handful(?:\.[A-Za-z_]\w*)+)", text):
        if not name.endswith((".json", ".md", ".py")):
            yield name


def test_every_public_name_is_that_of_its_module():
    wrong = [
        alias.name
        for module, alias in IMPORTS
        if getattr(handful, alias.name) is not getattr(importlib.import_module(f"handful.{module}"), alias.name)
    ]
    assert wrong == []


def test_the_stub_names_each_public_name_once_for_type_checkers():
    assert [alias.name for _, alias in IMPORTS if alias.asname != alias.name] == []
    assert sorted(alias.name for _, alias in IMPORTS) == handful.__all__ == dir(handful)


def test_an_unknown_name_is_an_attribute_error_that_suggests_a_near_one():
    code = "import handful; handful.Sesion"
    message = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "AttributeError" in message
    assert "Did you mean: 'Session'" in message


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert handful.__version__ == version("handful")


def test_every_name_in_the_documents_is_there():
    documents = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in [*documents, *sorted(PACKAGE.rglob("*.py"))]}
    used = {(path.name, name) for path, text in texts.items() for name in (*names_in_code(text), *names_in_prose(text))}
    assert len(used) > 20
    assert sorted((path, name) for path, name in used if not is_there(name)) == []


def test_documents_import_from_the_face_what_it_has():
    deep = [
        (path.name, name)
        for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
        for name in names_in_code(path.read_text(encoding="utf-8"))
        if name.count(".") > 1 and name.split(".")[-1] in handful.__all__
    ]
    assert deep == []


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import handful", HEAVY),
        ("import handful.cli", HEAVY),
        (
            "from typer.testing import CliRunner; from handful.cli import app; CliRunner().invoke(app, ['--help'])",
            HEAVY,
        ),
        ("import handful.cohort.predict", ("transformers", "huggingface_hub", "monai", "sympy", "scipy.stats")),
        (
            "from typer.testing import CliRunner; from handful.cli import app\n"
            "for line in ('doctor -i no', 'fit -i no -o m', 'predict no -i no -o p', 'embed -i no', "
            "'experiment run no.toml -o e'):\n"
            "    result = CliRunner().invoke(app, line.split()); assert result.exit_code, line\n"
            "0",
            ("transformers", "huggingface_hub"),
        ),
        (
            "from typer.testing import CliRunner; from handful.cli import app\n"
            "result = CliRunner().invoke(app, ['serve', 'no']); assert 'no such folder' in result.output",
            ("torch", "fastapi", "uvicorn"),
        ),
    ],
    ids=["package", "command line", "help", "predict", "wrong paths", "wrong folder of a page"],
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str, heavy: tuple[str, ...]):
    code += f"; import sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
