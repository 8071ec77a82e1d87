"""Help, settings and public docstrings use plain words: retired senses do not come back.

Documents have a test of their own, tests/docs/test_words.py, with the list of what is retired.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from docs.test_words import RETIRED

SOURCE = Path(__file__).parents[1] / "src" / "handful"
ALLOWED = re.compile(r"`[^`]*`|DICOM reader")


def texts(tree: ast.Module) -> Iterator[str]:
    """Docstrings of the module, of its public classes, fields and functions, and help texts of options."""
    yield ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for field, text in pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    yield " ".join(literals(text))
        if isinstance(node, ast.keyword) and node.arg == "help":
            yield " ".join(literals(node.value))


def literals(node: ast.AST) -> list[str]:
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def offences(text: str) -> list[str]:
    plain = ALLOWED.sub(" ", text)
    return [
        f"{found[0]!r} in '...{plain[max(0, found.start() - 40) : found.end() + 30]}...': {instead}"
        for pattern, instead in RETIRED.items()
        for found in re.finditer(rf"\b(?:{pattern})\b", plain, re.IGNORECASE)
    ]


@pytest.mark.parametrize("module", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_retired_sense_is_in_a_docstring_or_help_text(module: Path):
    found = [offence for text in texts(ast.parse(module.read_text("utf-8"))) for offence in offences(text)]
    assert not found


def test_a_retired_sense_would_be_found():
    source = 'class Plan:\n    shots: int = 1\n    """Slices drawn at random."""\n\n'
    source += 'def fit(x: int = Option(help="asked with boxes")): ...\n'
    found = [offence for text in texts(ast.parse(source)) for offence in offences(text)]
    assert len(found) == 2
