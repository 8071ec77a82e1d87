"""Boxes round objects in pictures, read from a CSV file: the cheapest kind of label."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handful.data.cases import Case
from handful.data.volume import Labels
from handful.errors import InputError, LabelError, did_you_mean
from handful.jobs.files import text_of

COLUMNS = ("case", "label", "x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Box:
    """A box in pixels: x from left to right and y downwards, from 0; its corner pixels belong to it."""

    label: int
    """Value of the label."""
    x_min: float
    y_min: float
    x_max: float
    y_max: float


def read_boxes(path: Path, cases: Sequence[Case], labels: Labels) -> dict[str, list[Box]]:
    """The boxes of each case, from a CSV file with the columns COLUMNS; a label is a name or a value.

    Names of cases match in any Unicode form, since some systems compose the letters of file names and others do not.
    Raises InputError for a file that is not such a table and for a case that is not among `cases`, LabelError for an
    unknown label. Each error names the line.
    """
    names = {unicodedata.normalize("NFC", case.name): case.name for case in cases}
    found: dict[str, list[Box]] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        case = unicodedata.normalize("NFC", (row["case"] or "").strip())
        if case not in names:
            hint = did_you_mean(case, names)
            raise InputError(f"{where}: there is no unlabelled case {case!r}; {hint}boxes are for unlabelled pictures")
        found.setdefault(names[case], []).append(_box(row, labels, where))
    if not found:
        raise InputError(f"{path} has no boxes; write one line per box with {', '.join(COLUMNS)}")
    return found


def _rows(path: Path) -> list[tuple[int, Mapping[str, str | None]]]:
    try:
        reader = csv.DictReader(text_of(path).splitlines())
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}; its first line must name them")
        return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file ({error}); save it as CSV in UTF-8") from error


def _box(row: Mapping[str, str | None], labels: Labels, where: str) -> Box:
    text = (row["label"] or "").strip()
    by_text = {name: value for value, name in labels.as_dict().items()} | {str(value): value for value in labels.values}
    if text not in by_text:
        hint = did_you_mean(text, labels.names)
        raise LabelError(f"{where}: there is no label {text!r}; {hint}labels are {', '.join(labels.names)}")
    numbers = []
    for name in COLUMNS[2:]:
        try:
            number = float(row[name] or "")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}: {name} = {row[name]!r}; give a number of pixels")
        numbers.append(number)
    box = Box(by_text[text], *numbers)
    if box.x_max < box.x_min or box.y_max < box.y_min:
        raise InputError(f"{where}: the box ends before it starts; give the upper left corner first, x before y")
    return box
