"""The glossary is short, sorted, and has one line per word. Retired words are in tests/test_words.py."""

import re

from docs.scripts.commands import ROOT


def test_the_glossary_has_one_line_per_word_in_alphabetical_order():
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    words = [row for row in rows if row not in ("word", "---")]
    assert 25 <= len(words) <= 35
    assert words == sorted(words, key=str.lower)
