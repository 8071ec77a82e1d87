"""Whether documents and pictures are what the results make of them, remembered until any of these change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import scipy

import handful.evaluation
from reproduction.parts import ROOT

REMEMBERED = "reproduction/.checked"
"""File with the digest of everything that the last successful check depended on."""


def differing(root: Path = ROOT) -> list[str]:
    """Names of documents and pictures that differ from the results.

    It takes seconds, unless nothing changed since none differed.
    """
    remembered, digest = root / REMEMBERED, _digest(root)
    if remembered.exists() and remembered.read_text("utf-8") == digest:
        return []
    from reproduction.document import documents  # seconds, which a check that is remembered need not pay
    from reproduction.evidence import read_evidence
    from reproduction.pictures import differing_pictures

    evidence = read_evidence(root / "reproduction" / "results")
    made = documents(evidence, root)
    stale = [path for path, text in made.items() if path.read_text("utf-8") != text]
    names = [str(path.relative_to(root)) for path in [*stale, *differing_pictures(evidence, root)]]
    if not names:
        remembered.write_text(digest, "utf-8")
    return names


def _digest(root: Path) -> str:
    found = hashlib.sha256(f"{numpy.__version__} {scipy.__version__}".encode())
    for path in _inputs(root):
        found.update(str(path).encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _inputs(root: Path) -> Iterator[Path]:
    """Results, the code that reads them, the documents and the pictures."""
    yield from sorted(path for path in (root / "reproduction" / "results").iterdir() if path.is_file())
    yield from sorted(Path(__file__).parent.rglob("*.py"))
    yield from sorted(Path(handful.evaluation.__path__[0]).glob("*.py"))
    yield root / "README.md"
    yield from sorted((root / "docs").rglob("*.md"))
    yield from sorted((root / "docs" / "evidence").glob("*.png"))
