"""Documents use plain words: senses that only this project knew, and that the glossary replaces, do not come back."""

import re
from pathlib import Path

import pytest

from docs.scripts.commands import ROOT, pages

RETIRED = {
    r"closer|anew|beside|told|arms?|seen|said|invent(ed|s)?|mend(s|ed)?": "say it in plain English",
    r"readers?": "an annotator, unless it reads files",
    r"(first|second|third|one|two|three|random|each|per) draws?|draws of": "a random split",
    r"drawn (at random|afresh|from)": "chosen at random",
    r"asked (with|for|closer|again)|asking (with|for)": "prompted with",
    r"looks? (at a window|closer|most alike)": "crops; is most similar to",
    r"an? (line|row|figure|slice|step|box|pass) an? \w+": "one row per case",
    r"draw number|not told apart|holds for likely": "see the glossary",
}
"""Patterns of retired senses, and what to write instead."""
ALLOWED = re.compile(r"DICOM reader|screen readers?")


def prose(page: Path) -> str:
    """The page without code, comments and addresses of links."""
    text = re.sub(r"```.*?```|<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(ALLOWED.sub(" ", text).split())


def offences(text: str) -> list[str]:
    return [
        f"{found[0]!r} in '...{text[max(0, found.start() - 40) : found.end() + 30]}...': {instead}"
        for pattern, instead in RETIRED.items()
        for found in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_retired_sense_is_in_a_document(page: Path):
    assert not offences(prose(page))


def test_a_retired_sense_would_be_found():
    assert len(offences("three draws, a line a case, asked with boxes, seen closer")) == 5
    assert not offences("an unseen case; draw a box; the reference, drawn by a person")


def test_the_glossary_has_one_line_per_word_in_alphabetical_order():
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    words = [row for row in rows if row not in ("word", "---")]
    assert 25 <= len(words) <= 35
    assert words == sorted(words, key=str.lower)
