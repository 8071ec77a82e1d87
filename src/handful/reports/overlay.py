"""A contact sheet of a case: slices with the prediction filled in colour and the outline of the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handful.data.label_colours import label_colours
from handful.data.slicing import Slicer, SliceView
from handful.data.volume import LabelMap, Labels, Volume
from handful.evaluation.metrics import overlap
from handful.jobs.atomic import write_atomically
from handful.reports.canvas import (
    INK,
    LEGEND_LINE,
    Canvas,
    draw_contour,
    draw_image,
    draw_reference,
    evenly,
    label_entry,
    legend_lines,
    legend_name,
    reference_entry,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MOST_SLICES = 8


def write_overlay(
    path: Path,
    volume: Volume,
    prediction: LabelMap,
    reference: LabelMap | None = None,
    slicer: Slicer = Slicer(),  # noqa: B008
    case: str | None = None,
    legend: bool = True,
) -> None:
    """Write a PNG of at most eight evenly spaced slices through the labelled part, in the plane and window of `slicer`.

    The prediction is a translucent fill with a contour, the reference a dashed white line. With a reference, the legend
    shows the Dice of each label in the volume. `case` is the title (default: the stem of `path`). Without `legend`,
    labels are not named. Raises GeometryMismatch if a label map is not on the grid of the volume.
    """
    for name, label_map in (("prediction", prediction), ("reference", reference)):
        if label_map is not None:
            volume.geometry.require_same(label_map.geometry, f"overlay of {case or path.stem!r}: image and {name}")
    sheet = _Sheet.of(volume, prediction, reference, slicer)
    write_atomically(path, _draw(sheet, case or path.stem, legend))


@dataclass(frozen=True, eq=False)
class _Sheet:
    """The content of a contact sheet: maps as slices (n, h, w), the chosen slices, and the visible rows and columns."""

    view: SliceView
    labels: Labels
    predicted: NDArray[Any]
    reference: NDArray[Any] | None
    chosen: list[int]
    rows: slice
    columns: slice
    dice: dict[int, float]
    """{label value: Dice in the whole volume}; empty without a reference."""

    @classmethod
    def of(cls, volume: Volume, prediction: LabelMap, reference: LabelMap | None, slicer: Slicer) -> _Sheet:
        view = slicer.for_display().view(volume)
        labels, dice = prediction.labels, {}
        predicted, truth = view.of(prediction.array), None
        labelled = predicted > 0
        if reference is not None:
            labels = Labels.of(labels.as_dict() | reference.labels.as_dict())
            dice = _dice(prediction, reference, labels)
            truth = view.of(reference.array)
            labelled = labelled | (truth > 0)
        rows, columns = _frame(labelled, view.spacing[1] / view.spacing[2])
        return cls(view, labels, predicted, truth, evenly(labelled, MOST_SLICES), rows, columns, dice)

    @property
    def pixel_aspect(self) -> float:
        """Height of a pixel divided by its width, in mm."""
        row, column = self.view.spacing[1:]
        return row / column

    @property
    def panel_aspect(self) -> float:
        """Height of a panel divided by its width."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return float(self.pixel_aspect * height / width)


def _dice(prediction: LabelMap, reference: LabelMap, labels: Labels) -> dict[int, float]:
    valid_mask = reference.array >= 0
    counts = {
        value: overlap(prediction.array == value, reference.array == value, valid_mask) for value in labels.values
    }
    return {value: count.dice for value, count in counts.items() if count.n_pred + count.n_ref}


def _frame(labelled: NDArray[np.bool_], pixel_aspect: float) -> tuple[slice, slice]:
    """The visible rows and columns: the labels and a margin of their size, so that small organs are visible."""
    flat: NDArray[np.bool_] = np.any(labelled, axis=0)
    height, width = flat.shape
    if not flat.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    extent = float(max((rows[-1] - rows[0] + 1) * pixel_aspect, columns[-1] - columns[0] + 1))
    return _widened(rows, extent / pixel_aspect, height), _widened(columns, extent, width)


def _widened(labelled: NDArray[np.int64], extent: float, size: int) -> slice:
    middle, reach = (labelled[0] + labelled[-1] + 1) / 2, max(extent, 24)
    return slice(max(math.floor(middle - reach), 0), min(math.ceil(middle + reach), size))


def _draw(sheet: _Sheet, title: str, legend: bool) -> bytes:
    count = len(sheet.chosen)
    columns = _columns(count, sheet.panel_aspect)
    lines = math.ceil(count / columns)
    # in inches: panels share a width of 12, a few panels are larger
    width = min(12.0, 1.0 + 4.0 * columns)
    gap, header = 0.06, 0.5
    entries = _entries(sheet) if legend else []
    footer = (0.3 + LEGEND_LINE * legend_lines(entries, width)) if legend else gap
    panel_width = (width - gap * (columns + 1)) / columns
    panel_height = panel_width * sheet.panel_aspect
    canvas = Canvas(width, header + footer + lines * (panel_height + gap) - gap)
    for position, index in enumerate(sheet.chosen):
        line, column = divmod(position, columns)
        left, top = gap + column * (panel_width + gap), header + line * (panel_height + gap)
        _draw_slice(canvas.axes(left, top, panel_width, panel_height), sheet, index)
    canvas.title(title, sheet.view.plane if len(sheet.view) > 1 else None)
    if entries:
        canvas.legend(entries)
    return canvas.png()


def _entries(sheet: _Sheet) -> list[Artist]:
    entries = [label_entry(_named(sheet, value, name), colour) for value, name, colour in label_colours(sheet.labels)]
    return entries if sheet.reference is None else [*entries, reference_entry()]


def _columns(count: int, panel_aspect: float) -> int:
    """The number of columns for which the sheet is nearest to 3:2 with few empty places."""

    def penalty(columns: int) -> float:
        lines = math.ceil(count / columns)
        shape = abs(math.log(columns / (lines * panel_aspect) / 1.5))
        return shape + 4 * (lines * columns - count) / count

    return min(range(1, count + 1), key=penalty)


def _draw_slice(axes: Axes, sheet: _Sheet, index: int) -> None:
    from matplotlib.patheffects import withStroke

    rows, columns = sheet.rows, sheet.columns
    image = sheet.view.cut(index, index + 1)[0, :, rows, columns].permute(1, 2, 0).numpy()
    draw_image(axes, image, sheet.pixel_aspect)
    predicted = sheet.predicted[index, rows, columns]
    present = set(np.unique(predicted).tolist())  # of a scan with thousands of labels, a slice has few
    for value, _, colour in label_colours(sheet.labels):
        if value in present:
            draw_contour(axes, predicted == value, colour, alpha=0.35)
    if sheet.reference is not None:
        for value in sheet.labels.values:
            draw_reference(axes, sheet.reference[index, rows, columns] == value)
    if len(sheet.view) > 1:
        name = f"slice {index} (0 to {len(sheet.view) - 1})"
        place = axes.text(0.025, 0.97, name, transform=axes.transAxes, color=INK, fontsize=8, va="top")
        place.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _named(sheet: _Sheet, value: int, name: str) -> str:
    name = legend_name(name)
    if not sheet.dice:
        return name
    return f"{name}  Dice {sheet.dice[value]:.2f}" if value in sheet.dice else f"{name}  absent"
