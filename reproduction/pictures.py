"""The pictures that are made of results. Each PNG file has the digest of its numbers, so that an old one is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from handful.jobs.digests import digest_of
from reproduction import curves
from reproduction.evidence import Evidence
from reproduction.studies import quality

FOLDER = Path("docs") / "evidence"
KEY = "Numbers"
"""Name of the entry of a PNG file with the digest of what it shows."""

Numbers = Mapping[str, Any]
"""What a picture shows, as JSON values; empty where nothing was measured."""


def numbers_of(evidence: Evidence) -> dict[str, Numbers]:
    """What each picture shows, by the name of its file."""
    return {
        "label_efficiency.png": curves.numbers(evidence),
        "quality.png": quality.numbers(list(evidence.raw("quality"))),
    }


DRAWN: Mapping[str, Callable[[Any], Any]] = {"label_efficiency.png": curves.draw, "quality.png": quality.draw}
"""Functions that make a matplotlib figure of the numbers."""


def draw(evidence: Evidence, root: Path) -> list[Path]:
    """Draw the pictures again that show other numbers than the results; return their paths."""
    stale = differing_pictures(evidence, root)
    numbers = numbers_of(evidence)
    for path in stale:
        figure = DRAWN[path.name](numbers[path.name])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={KEY: _digest(numbers[path.name])})
    return stale


def differing_pictures(evidence: Evidence, root: Path) -> list[Path]:
    """Pictures that are missing or show other numbers than the results."""
    found = {root / FOLDER / name: numbers for name, numbers in numbers_of(evidence).items() if numbers}
    return [path for path, numbers in found.items() if _noted(path) != _digest(numbers)]


def _noted(path: Path) -> str | None:
    """The digest in a picture; None if there is none."""
    if not path.exists():
        return None
    with Image.open(path) as picture:
        return picture.info.get(KEY)


def _digest(numbers: Numbers) -> str:
    return digest_of(json.dumps(_rounded(numbers)))


def _rounded(value: Any) -> Any:
    """JSON values with numbers as a picture can show them, so that the order of a sum does not count."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value
