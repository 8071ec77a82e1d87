"""Suggestions as files: a table for programs, and a contact sheet for the person who is to label them."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from handful.curation.coverage import SliceName
from handful.curation.suggest import Suggestion, SuggestResult
from handful.data.cases import Case, Cohort
from handful.data.slicing import SliceView
from handful.data.volume import Labels
from handful.jobs.atomic import write_atomically
from handful.reports.canvas import INK, LEGEND_LINE, NOTE, Canvas, Panel, legend_lines, legend_of, shortened

TABLE, PICTURE = "suggestions.csv", "suggestions.png"
MOST = 24
"""Suggestions in the picture, at most: the first ones."""
SIDE, GAP, HEADER = 2.3, 0.12, 0.5
"""Inches: sides of a panel, air, and the height of the title."""
HEAD, LINE, LINES = 0.42, 0.16, 3
"""Inches that a suggestion's name takes up, and each line of its reason; lines of a reason, at most."""
INDENT = 0.26
"""Inches from a suggestion's rank to its name."""
LETTERS = 17
"""Letters of a reason that fit into an inch."""
_OUTLINES = "Outlines: what the model finds (left), the labels (right). "
_PRIVACY = "These are slices of patients: share this only where you might share their scans."


def write_suggestions(folder: Path, cohort: Cohort, result: SuggestResult) -> tuple[Path, Path]:
    """Writes suggestions.csv and suggestions.png into `folder`, each whole or not at all; earlier ones are replaced.

    The table has a line a suggestion. `slice` counts from 1, as the picture does; `axis` and `index` are those of the
    voxel array and count from 0. The picture shows the first 24, each with what the segmenter made of it, beside
    the labelled slice that it looks most like, with its labels. `cohort` is the one that was asked about.
    """
    table, picture = folder / TABLE, folder / PICTURE
    write_atomically(table, _table(result).encode())
    write_atomically(picture, _draw(_cells(cohort, result), result, cohort.name))
    return table, picture


def _table(result: SuggestResult) -> str:
    text = io.StringIO()
    fields = ("rank", "case", "plane", "slice", "slices", "axis", "index", "score", "coverage", "disagreement")
    writer = csv.DictWriter(text, (*fields, "nearest_case", "nearest_slice", "reason"), lineterminator="\n")
    writer.writeheader()
    for rank, one in enumerate(result.suggestions, start=1):
        writer.writerow(
            {
                "rank": rank,
                "case": one.slice.case,
                "plane": one.plane,
                "slice": one.slice.number + 1,
                "slices": one.slice.slices,
                "axis": one.axis,
                "index": one.index,
                "score": f"{one.score:.4f}",
                "coverage": f"{one.coverage:.4f}",
                "disagreement": None if one.disagreement is None else f"{one.disagreement:.4f}",
                "nearest_case": None if one.nearest is None else one.nearest.case,
                "nearest_slice": None if one.nearest is None else one.nearest.number + 1,
                "reason": one.reason,
            }
        )
    return text.getvalue()


@dataclass(frozen=True, eq=False)
class _Cell:
    """A suggestion, its slice, and the most similar labelled one."""

    suggestion: Suggestion
    panel: Panel
    nearest: Panel | None


def _cells(cohort: Cohort, result: SuggestResult) -> list[_Cell]:
    """One scan in memory at a time, each read once."""
    shown = result.suggestions[:MOST]
    names = {one.slice for one in shown} | {one.nearest for one in shown if one.nearest is not None}
    cases = {case.name: case for case in cohort.cases}
    panels: dict[SliceName, Panel] = {}
    for case in dict.fromkeys(name.case for name in names):
        view = result.slicer.view(cases[case].read_image())
        truth = _reference(cases[case], view)
        for name in (name for name in names if name.case == case):
            panels[name] = _panel(name, view, truth)
    return [
        _Cell(
            one,
            replace(panels[one.slice], label_values=one.predicted),
            None if one.nearest is None else panels[one.nearest],
        )
        for one in shown
    ]


def _reference(case: Case, view: SliceView) -> NDArray[Any] | None:
    reference = case.read_reference()
    return None if reference is None else view.of(reference.array)


def _panel(name: SliceName, view: SliceView, truth: NDArray[Any] | None) -> Panel:
    _, row, column = view.spacing
    image = view.take([name.number])[0].permute(1, 2, 0).numpy()
    return Panel(image, None if truth is None else truth[name.number].copy(), row / column)


def _draw(cells: list[_Cell], result: SuggestResult, cohort: str) -> bytes:
    panels = 2 if any(cell.nearest is not None for cell in cells) else 1
    predicted = cells[0].suggestion.predicted is not None
    columns = min(len(cells), 2 if panels == 2 else 4)
    rows = math.ceil(len(cells) / columns)
    cell_width, cell_height = panels * SIDE + panels * GAP, HEAD + SIDE + LINES * LINE + 2 * GAP
    width = max(columns * (cell_width + GAP) + GAP, 6.5)
    entries = legend_of(result.labels) if result.labels is not None and (panels == 2 or predicted) else []
    footer = NOTE + 0.1 + LEGEND_LINE * legend_lines(len(entries), width)
    canvas = Canvas(width, HEADER + rows * cell_height + footer)
    canvas.title(f"{cohort}: {_title(result, len(cells))}", None)
    for place, cell in enumerate(cells):
        line, column = divmod(place, columns)
        corner = (GAP + column * (cell_width + GAP), HEADER + line * cell_height)
        _draw_cell(canvas, cell, place + 1, corner, result.labels)
    if entries:
        canvas.legend(entries, bottom=NOTE)
    canvas.note(f"{_OUTLINES if panels == 2 and predicted else ''}{_PRIVACY}")
    return canvas.png()


def _title(result: SuggestResult, shown: int) -> str:
    what = "cases" if result.whole_cases else "slices"
    if shown < len(result.suggestions):
        return f"the first {shown} of {len(result.suggestions)} {what} to label next"
    return f"{shown} {what} to label next" if shown > 1 else f"the {what[:-1]} to label next"


def _draw_cell(canvas: Canvas, cell: _Cell, rank: int, corner: tuple[float, float], labels: Labels | None) -> None:
    """A name, one panel or two, and the reason; `corner` is the upper left one."""
    left, top = corner
    one = cell.suggestion
    upper, lower = top + 0.1, top + 0.28
    place = f"slice {one.slice.number + 1} of {one.slice.slices}" if one.slice.slices > 1 else ""
    canvas.write(left, upper, f"{rank}", colour=INK, size=10, weight="bold")
    canvas.write(left + INDENT, upper, shortened(one.slice.case, 24), colour=INK, size=9, weight="bold")
    canvas.write(left + INDENT, lower, place)
    canvas.panel(cell.panel, labels, (left, top + HEAD), SIDE)
    span = SIDE
    if cell.nearest is not None:
        second = left + SIDE + GAP
        canvas.write(second, upper, "the labelled slice that looks most alike")
        canvas.write(second, lower, shortened(str(one.nearest), 38))
        canvas.panel(cell.nearest, labels, (second, top + HEAD), SIDE)
        span = 2 * SIDE + GAP
    below = top + HEAD + SIDE + GAP
    lines = textwrap.wrap(one.reason, int(span * LETTERS), max_lines=LINES, placeholder=" …")
    for number, text in enumerate(lines):
        canvas.write(left, below + (number + 0.2) * LINE, text, colour=INK, size=8)
