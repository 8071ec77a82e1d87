"""A picture that explains a prediction: slices of a case, the model's confidence, and the labelled slices it used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.label_colours import label_colours
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
    evenly,
    legend_lines,
    legend_of,
    shortened,
)
from handful.reports.overlay import write_overlay

ROWS = 7
"""Maximum number of slices of a case."""
SUPPORTS = 5
"""Maximum number of labelled slices per slice, most similar first."""
LINES = 9
"""Maximum number of labels per slice whose confidence is written."""
QUERY, WORDS, SUPPORT, CAPTION, GAP = 2.2, 2.3, 1.75, 0.22, 0.1
"""Inches: side of a slice, width of the text, side of a labelled slice, height of a caption, and gap."""
PRESENT, IOU = 1.6, 2.05
"""Right ends of the text columns in inches."""
HEADER = 0.85
_PRIVACY = "The labelled slices show patients of the support set: protect this file like their scans."


def write_preview(
    path: Path,
    volume: Volume,
    prediction: LabelMap,
    segmenter: Segmenter,
    reasons: SliceConfidence | None = None,
    case: str | None = None,
) -> None:
    """Write a PNG of at most seven evenly spaced slices through the predicted labels, each with its explanation.

    A row shows the slice with the outlined prediction; the probability that each label is in the slice, and the
    predicted IoU of its mask; and at most five of the labelled slices that were used, most similar first, which show
    patients of the support set. Without `reasons`, the picture is that of `write_overlay`. `case` is the title
    (default: the stem of `path`). Raises GeometryMismatch if the prediction is not on the grid of the volume.
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
    """A slice of the case and the explanation of its prediction."""

    index: int
    image: NDArray[np.float32]
    """(h, w, c)"""
    predicted: NDArray[Any]
    """Label values (h, w)."""
    present: NDArray[np.float64]
    """Probability that each label is in the slice; nan if none of the labelled slices contains it."""
    iou: NDArray[np.float64]
    """Predicted IoU of each label."""
    supports: tuple[SupportPicture, ...]
    """The labelled slices to draw."""
    retrieved: int
    """Number of labelled slices that the model used; not all may be drawn."""


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
    entries = legend_of(labels)
    footer = NOTE + 0.3 + LEGEND_LINE * legend_lines(entries, width)
    canvas = Canvas(width, HEADER + len(rows) * (QUERY + GAP) + footer, halo=True)
    canvas.title(title, view.plane if len(view) > 1 else None)
    _write_heads(canvas, most=max(row.retrieved for row in rows))
    for number, row in enumerate(rows):
        _draw_row(canvas, view, labels, row, HEADER + number * (QUERY + GAP))
    canvas.legend(entries, bottom=NOTE)
    canvas.note(_PRIVACY)
    return canvas.png()


def _write_heads(canvas: Canvas, most: int) -> None:
    left, top = 2 * GAP + QUERY, HEADER - 0.13
    used = "labelled slices used, most similar first"
    canvas.write(GAP, top, "prediction")
    canvas.write(left, top, "label")
    canvas.write(left + PRESENT, top, "is in slice", align="right")
    canvas.write(left + IOU, top, "IoU", align="right")
    canvas.write(left + WORDS, top, used if most <= SUPPORTS else f"{used} ({SUPPORTS} of {most})")


def _draw_row(canvas: Canvas, view: SliceView, labels: Labels, row: _Row, top: float) -> None:
    """Draw a row, `top` inches below the upper edge."""
    _, pixel_height, pixel_width = view.spacing
    canvas.panel(Panel(row.image, row.predicted, pixel_height / pixel_width), labels, (GAP, top), QUERY)
    if len(view) > 1:
        canvas.write(GAP + 0.06, top + 0.13, f"slice {row.index} (0 to {len(view) - 1})", colour=INK, size=8)
    _write_confidence(canvas, labels, row, (2 * GAP + QUERY, top))
    above = top + (QUERY - SUPPORT - CAPTION) / 2
    left = 2 * GAP + QUERY + WORDS
    if not row.supports:
        canvas.write(left, top + QUERY / 2, "none: this slice has no signal")
    for place, picture in enumerate(row.supports):
        corner = (left + place * (SUPPORT + GAP), above)
        panel = Panel(np.asarray(picture.image / 255, dtype=np.float32), picture.labels, pixel_aspect=1.0)
        canvas.panel(panel, labels, corner, SUPPORT)
        caption = shortened(picture.case, 16) + (f"  slice {picture.number}" if len(view) > 1 else "")
        canvas.write(corner[0] + SUPPORT / 2, above + SUPPORT + CAPTION / 2, caption, align="center")


def _write_confidence(canvas: Canvas, labels: Labels, row: _Row, corner: tuple[float, float]) -> None:
    """Write one line per label of the labelled slices; predicted labels come first and have their colour."""
    left, top = corner
    predicted = [bool((row.predicted == value).any()) for value in labels.values]
    possible = [k for k in range(len(predicted)) if not np.isnan(row.present[k])]
    listed = sorted(sorted(possible, key=lambda k: (not predicted[k], -row.present[k]))[:LINES])
    entries = list(label_colours(labels))
    for line, k in enumerate(listed):
        _, name, colour = entries[k]
        y, ink = top + 0.13 + 0.21 * line, INK if predicted[k] else DIM
        canvas.write(left, y, shortened(name, 16), colour=colour if predicted[k] else DIM, size=8.5)
        canvas.write(left + PRESENT, y, _percent(row.present[k]), colour=ink, size=8.5, align="right")
        if predicted[k]:
            canvas.write(left + IOU, y, f"{row.iou[k]:.2f}", colour=INK, size=8.5, align="right")
    omitted = []
    if len(possible) > len(listed):
        omitted.append(f"{len(possible) - len(listed)} more")
    if row.supports and len(possible) < len(predicted):
        omitted.append(f"in no labelled slice: {len(predicted) - len(possible)} of {len(predicted)}")
    canvas.write(left, top + 0.13 + 0.21 * len(listed), ", ".join(omitted))


def _percent(probability: float) -> str:
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability:.0%}".replace("%", " %")
