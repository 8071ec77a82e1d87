"""The commands and files that the documents show, as tests and pictures run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """All documents: those in the root, and docs/."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> Iterator[str]:
    """The content of the page's blocks of code in a language."""
    for found in BLOCK.finditer(page.read_text("utf-8")):
        if found["language"] == language:
            yield found["content"]


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's `bash` blocks, in order; comments are left out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
