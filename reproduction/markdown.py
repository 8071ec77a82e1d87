"""Markdown tables, the form of a figure in them, and the places in a document that hold them.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; words after the name choose a part of it, as in
`<!-- table: label_efficiency acdc hd95 -->`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from handful.errors import SettingsError
from handful.evaluation.evaluate import Estimate
from handful.evaluation.results import BOUNDS, LARGER_IS_BETTER
from reproduction.evidence import Evidence

UNMEASURED = "(not measured yet)"
MARKED = "<!-- table:"
_PLACE = re.compile(r"(<!-- table: (?P<name>[^>]*?) -->\n)(?P<old>.*?)(?P<end><!-- end -->)", re.DOTALL)

Render = Callable[[Evidence, Sequence[str]], str]
"""From the evidence and the words after a table's name."""


def with_tables(text: str, tables: Mapping[str, Render], evidence: Evidence, where: str) -> str:
    """`text` with the tables between its markers rewritten; SettingsError names an unknown table or a missing end."""
    if text.count(MARKED) != len(_PLACE.findall(text)):
        raise SettingsError(f"{where}: a table's marker is not closed; put <!-- end --> on a line after it")

    def made(place: re.Match[str]) -> str:
        name, *words = place["name"].split()
        if name not in tables:
            raise SettingsError(f"{where}: there is no table {name!r}; there are {', '.join(sorted(tables))}")
        return f"{place[1]}{tables[name](evidence, words)}\n{place['end']}"

    return _PLACE.sub(made, text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one row per item of `rows`."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def interval(one: Estimate, measure: str = "dice") -> str:
    """Mean and 95 % interval, with as many digits as the measure deserves; a dash where nothing was measured.

    The interval ends at the smallest and the largest value that the measure has.
    """
    digits = 3 if measure in LARGER_IS_BETTER else 1
    if math.isnan(one.mean):
        return "–"
    if math.isnan(one.low):
        return f"{one.mean:.{digits}f}"
    least, most = BOUNDS[measure]
    return f"{one.mean:.{digits}f} [{max(one.low, least):.{digits}f}, {min(one.high, most):.{digits}f}]"


def count(number: int, what: str) -> str:
    """A number with its noun, as in "1 split" and "2 splits"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def signed(one: Estimate) -> str:
    """A difference of Dice with its sign, and its 95 % interval."""
    return f"{one.mean:+.3f}" + ("" if math.isnan(one.low) else f" [{one.low:+.3f}, {one.high:+.3f}]")
