"""Why an answer came out as it did: slices of a case, how sure the model was, and the labelled slices it was shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.slicing import SliceView
from handful.data.volume import LabelMap, Labels, Volume
from handful.jobs.atomic import write_atomically
from handful.methods.base import Segmenter
from handful.methods.explained import SliceConfidence, SupportPicture
from handful.reports.canvas import (
    DIM,
    INK,
    LEGEND_LINE,
    NOTE,
    Canvas,
    Panel,
    colours,
    evenly,
    legend_lines,
    legend_of,
    shortened,
)
from handful.reports.overlay import write_overlay

ROWS = 7
"""Slices of a case, at most."""
SUPPORTS = 5
"""Supports beside a slice, at most: the most similar ones."""
LINES = 9
"""Labels whose confidence stands beside a slice, at most."""
QUERY, WORDS, SUPPORT, CAPTION, GAP = 2.2, 2.3, 1.75, 0.22, 0.1
"""Inches: sides of a slice and of a support, width of the words between them, height of a caption, and air."""
THERE, IOU = 1.6, 2.05
"""Where the columns of the words end."""
HEADER = 0.85
_PRIVACY = "The supports show patients the model was fitted on: share this only where you might share their scans."


def write_preview(
    path: Path,
    volume: Volume,
    prediction: LabelMap,
    segmenter: Segmenter,
    reasons: SliceConfidence | None = None,
    case: str | None = None,
) -> None:
    """A PNG of up to seven evenly spaced slices through what was found, each with its reasons beside it.

    A row shows the slice with the prediction drawn round; for each label the probability that it is in the slice and
    the IoU that the model predicts for it; then up to five retrieved supports with their labels, the most similar
    first; they show patients of the support set. Without `reasons` it is the contact sheet of `write_overlay`.
    `case` is the title, the file's stem when left out. Raises GeometryMismatch where the prediction does not lie on the
    volume's grid.
    """
    if reasons is None:
        write_overlay(path, volume, prediction, slicer=segmenter.slicer, case=case)
        return
    volume.geometry.require_same(prediction.geometry, f"preview of {case or path.stem!r}: image and prediction")
    view = segmenter.slicer.for_display().view(volume)
    rows = list(_rows(view, prediction, segmenter, reasons))
    write_atomically(path, _draw(view, prediction.labels, rows, case or path.stem))


@dataclass(frozen=True, eq=False)
class _Row:
    """A slice of the case and the reasons for its answer."""

    index: int
    image: NDArray[np.float32]
    """(h, w, c)"""
    predicted: NDArray[Any]
    """Label values (h, w)."""
    there: NDArray[np.float64]
    """Probability of each label to be in the slice; nan where no support holds it."""
    iou: NDArray[np.float64]
    supports: tuple[SupportPicture, ...]
    retrieved: int
    """How many supports the model was shown; more, it may be, than are drawn."""


def _rows(view: SliceView, prediction: LabelMap, segmenter: Segmenter, reasons: SliceConfidence) -> Iterator[_Row]:
    predicted = view.of(prediction.array)
    for index in evenly(predicted > 0, ROWS):
        yield _Row(
            index,
            view.take([index])[0].permute(1, 2, 0).numpy(),
            predicted[index],
            reasons.object_score[index].double().sigmoid().numpy(),
            reasons.iou[index].double().numpy(),
            tuple(segmenter.support_picture(case, number) for case, number in reasons.retrieved[index][:SUPPORTS]),
            len(reasons.retrieved[index]),
        )


def _draw(view: SliceView, labels: Labels, rows: list[_Row], title: str) -> bytes:
    supports = max(1, max(len(row.supports) for row in rows))
    width = max(GAP + QUERY + GAP + WORDS + supports * (SUPPORT + GAP), 8.0)
    footer = NOTE + 0.3 + LEGEND_LINE * legend_lines(len(labels), width)
    canvas = Canvas(width, HEADER + len(rows) * (QUERY + GAP) + footer, halo=True)
    canvas.title(title, view.plane if len(view) > 1 else None)
    _write_heads(canvas, most=max(row.retrieved for row in rows))
    for number, row in enumerate(rows):
        _draw_row(canvas, view, labels, row, HEADER + number * (QUERY + GAP))
    canvas.legend(legend_of(labels), bottom=NOTE)
    canvas.note(_PRIVACY)
    return canvas.png()


def _write_heads(canvas: Canvas, most: int) -> None:
    left, top = 2 * GAP + QUERY, HEADER - 0.13
    shown = "labelled slices it was shown, the most similar first"
    canvas.write(GAP, top, "what was found")
    canvas.write(left, top, "label")
    canvas.write(left + THERE, top, "it is there", align="right")
    canvas.write(left + IOU, top, "IoU", align="right")
    canvas.write(left + WORDS, top, shown if most <= SUPPORTS else f"{shown} ({SUPPORTS} of {most})")


def _draw_row(canvas: Canvas, view: SliceView, labels: Labels, row: _Row, top: float) -> None:
    """From `top` inches below the upper edge on."""
    _, pixel_height, pixel_width = view.spacing
    canvas.panel(Panel(row.image, row.predicted, pixel_height / pixel_width), labels, (GAP, top), QUERY)
    if len(view) > 1:
        canvas.write(GAP + 0.06, top + 0.13, f"{row.index + 1} / {len(view)}", colour=INK, size=8)
    _write_confidence(canvas, labels, row, (2 * GAP + QUERY, top))
    above = top + (QUERY - SUPPORT - CAPTION) / 2
    left = 2 * GAP + QUERY + WORDS
    if not row.supports:
        canvas.write(left, top + QUERY / 2, "none: there is no signal in this slice")
    for place, picture in enumerate(row.supports):
        corner = (left + place * (SUPPORT + GAP), above)
        panel = Panel(np.asarray(picture.image / 255, dtype=np.float32), picture.labels, pixel_aspect=1.0)
        canvas.panel(panel, labels, corner, SUPPORT)
        caption = shortened(picture.case, 16) + (f"  slice {picture.number + 1}" if len(view) > 1 else "")
        canvas.write(corner[0] + SUPPORT / 2, above + SUPPORT + CAPTION / 2, caption, align="center")


def _write_confidence(canvas: Canvas, labels: Labels, row: _Row, corner: tuple[float, float]) -> None:
    """A line for each label that was asked for; those that were found in their colour, and these first to be shown."""
    left, top = corner
    found = [bool((row.predicted == value).any()) for value in labels.values]
    asked = [k for k in range(len(found)) if not np.isnan(row.there[k])]
    shown = sorted(sorted(asked, key=lambda k: (not found[k], -row.there[k]))[:LINES])
    known = list(colours(labels))
    for line, k in enumerate(shown):
        _, name, colour = known[k]
        y = top + 0.13 + 0.21 * line
        canvas.write(left, y, shortened(name, 16), colour=colour if found[k] else DIM, size=8.5)
        canvas.write(left + THERE, y, _percent(row.there[k]), colour=INK if found[k] else DIM, size=8.5, align="right")
        if found[k]:
            canvas.write(left + IOU, y, f"{row.iou[k]:.2f}", colour=INK, size=8.5, align="right")
    unsaid = []
    if len(asked) > len(shown):
        unsaid.append(f"{len(asked) - len(shown)} more")
    if row.supports and len(asked) < len(found):
        unsaid.append(f"in none of its supports: {len(found) - len(asked)} of {len(found)}")
    canvas.write(left, top + 0.13 + 0.21 * len(shown), ", ".join(unsaid))


def _percent(probability: float) -> str:
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability:.0%}".replace("%", " %")
