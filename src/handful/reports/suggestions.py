"""The files of `handful suggest`: a table, and a contact sheet of the suggested slices."""

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
from handful.data.inputs import Inputs
from handful.data.slicing import SliceView
from handful.data.volume import Labels
from handful.jobs.atomic import remove_leftovers_of, write_atomically
from handful.jobs.plain_text import spreadsheet_text
from handful.reports.canvas import INK, LEGEND_LINE, NOTE, Canvas, Panel, legend_lines, legend_of, shortened

TABLE, PICTURE = "suggestions.csv", "suggestions.png"
MOST = 24
"""Maximum number of suggestions in the picture."""
SIDE, GAP, HEADER = 2.3, 0.12, 0.5
"""Inches: side of a panel, gap between panels, and height of the title."""
HEAD, LINE, LINES = 0.42, 0.16, 3
"""Inches: height of a suggestion's name and of each line of its reason; and the maximum number of these lines."""
INDENT = 0.26
"""Inches from the rank of a suggestion to its name."""
LETTERS = 17
"""Characters of a reason per inch."""
_OUTLINES = "Outlines: prediction of the model (left), labels (right). "
_PRIVACY = "The pictures show patients: protect this file like their scans."


def write_suggestions(folder: Path, cohort: Cohort, result: SuggestResult) -> tuple[Path, Path]:
    """Write suggestions.csv and suggestions.png into `folder`; earlier files are replaced. Returns their paths.

    The table has one line per suggestion. Both files name a slice by its index in the voxel array, counted from 0, as
    `.slices.json` does. The picture shows the first 24 suggestions, each with the segmenter's prediction (if any) and
    with the most similar labelled slice. `cohort` must be the one of the suggestions.
    """
    table, picture = folder / TABLE, folder / PICTURE
    remove_leftovers_of(table, picture)
    write_atomically(table, _table(result).encode())
    write_atomically(picture, _draw(_cells(cohort, result), result, cohort.name))
    return table, picture


def require_apart(folder: Path, cohort: Cohort) -> None:
    """Raise InputError if a file of `write_suggestions` in `folder` is a scan or a label map of the cohort."""
    Inputs.of(cohort.cases, cohort.files).require_not_among(folder / PICTURE)


def _table(result: SuggestResult) -> str:
    text = io.StringIO()
    fields = ("rank", "case", "plane", "axis", "index", "slices", "score", "coverage", "disagreement")
    writer = csv.DictWriter(text, (*fields, "nearest_case", "nearest_index", "reason"), lineterminator="\n")
    writer.writeheader()
    for rank, suggestion in enumerate(result.suggestions, start=1):
        nearest, disagreement = suggestion.nearest, suggestion.disagreement
        writer.writerow(
            {
                "rank": rank,
                "case": spreadsheet_text(suggestion.slice.case),
                "plane": suggestion.plane,
                "axis": suggestion.axis,
                "index": suggestion.slice.index,
                "slices": suggestion.slice.slices,
                "score": f"{suggestion.score:.4f}",
                "coverage": f"{suggestion.coverage:.4f}",
                "disagreement": None if disagreement is None else f"{disagreement:.4f}",
                "nearest_case": None if nearest is None else spreadsheet_text(nearest.case),
                "nearest_index": None if nearest is None else nearest.index,
                "reason": spreadsheet_text(suggestion.reason),
            }
        )
    return text.getvalue()


@dataclass(frozen=True, eq=False)
class _Cell:
    """A suggestion with its slice and the most similar labelled slice."""

    suggestion: Suggestion
    panel: Panel
    nearest: Panel | None


def _cells(cohort: Cohort, result: SuggestResult) -> list[_Cell]:
    """The content of the picture. Each scan is read once, and one scan is in memory at a time."""
    first = result.suggestions[:MOST]
    names = {suggestion.slice for suggestion in first}
    names |= {suggestion.nearest for suggestion in first if suggestion.nearest is not None}
    cases = {case.name: case for case in cohort.cases}
    panels: dict[SliceName, Panel] = {}
    for case in dict.fromkeys(name.case for name in names):
        view = result.slicer.view(cases[case].read_image())
        truth = _reference(cases[case], view)
        for name in (name for name in names if name.case == case):
            panels[name] = _panel(name, view, truth)
    return [
        _Cell(
            suggestion,
            replace(panels[suggestion.slice], label_values=suggestion.predicted),
            None if suggestion.nearest is None else panels[suggestion.nearest],
        )
        for suggestion in first
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
    footer = NOTE + 0.1 + LEGEND_LINE * legend_lines(entries, width)
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


def _title(result: SuggestResult, count: int) -> str:
    kind = "cases" if result.whole_cases else "slices"
    if count < len(result.suggestions):
        return f"the first {count} of {len(result.suggestions)} {kind} to label next"
    return f"{count} {kind} to label next" if count > 1 else f"the {kind[:-1]} to label next"


def _draw_cell(canvas: Canvas, cell: _Cell, rank: int, corner: tuple[float, float], labels: Labels | None) -> None:
    """Draw the name, one or two panels, and the reason of a suggestion; `corner` is (left, top)."""
    left, top = corner
    name = cell.suggestion.slice
    upper, lower = top + 0.1, top + 0.28
    place = f"slice {name.index} (0 to {name.slices - 1})" if name.slices > 1 else ""
    canvas.write(left, upper, f"{rank}", colour=INK, size=10, weight="bold")
    canvas.write(left + INDENT, upper, shortened(name.case, 24), colour=INK, size=9, weight="bold")
    canvas.write(left + INDENT, lower, place)
    canvas.panel(cell.panel, labels, (left, top + HEAD), SIDE)
    span = SIDE
    if cell.nearest is not None:
        second = left + SIDE + GAP
        canvas.write(second, upper, "most similar labelled slice")
        canvas.write(second, lower, shortened(str(cell.suggestion.nearest), 38))
        canvas.panel(cell.nearest, labels, (second, top + HEAD), SIDE)
        span = 2 * SIDE + GAP
    below = top + HEAD + SIDE + GAP
    lines = textwrap.wrap(cell.suggestion.reason, int(span * LETTERS), max_lines=LINES, placeholder=" …")
    for number, text in enumerate(lines):
        canvas.write(left, below + (number + 0.2) * LINE, text, colour=INK, size=8)
