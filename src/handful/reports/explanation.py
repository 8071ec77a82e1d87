"""Why an answer came out as it did: slices of a case, how sure the model was, and the labelled slices it was shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handful.data.slicing import SliceView
from handful.data.volume import LabelMap, Volume
from handful.jobs.atomic import write_atomically
from handful.methods.base import Segmenter
from handful.methods.explained import SliceConfidence, SupportPicture
from handful.reports.overlay import (
    BACKGROUND,
    DPI,
    INK,
    colours,
    draw_contour,
    draw_image,
    draw_legend,
    draw_title,
    evenly,
    legend_lines,
    plain,
    shortened,
    write_overlay,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

ROWS = 7
"""Slices of a case, at most."""
SUPPORTS = 5
"""Supports beside a slice, at most: the most similar ones."""
LINES = 9
"""Labels whose confidence stands beside a slice, at most."""
DIM = "#8B9096"
QUERY, WORDS, SUPPORT, CAPTION, GAP = 2.2, 2.3, 1.75, 0.22, 0.1
"""Inches: sides of a slice and of a support, width of the words between them, height of a caption, and air."""
THERE, IOU = 1.6, 2.05
"""Where the columns of the words end."""
HEADER = 0.85
NOTE = 0.28
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
    view = replace(segmenter.slicer, neighbours=False).view(volume)
    rows = list(_rows(view, prediction, segmenter, reasons))
    write_atomically(path, _draw(view, prediction, rows, case or path.stem))


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


def _draw(view: SliceView, prediction: LabelMap, rows: list[_Row], title: str) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    supports = max(1, max(len(row.supports) for row in rows))
    width = max(GAP + QUERY + GAP + WORDS + supports * (SUPPORT + GAP), 8.0)
    footer = NOTE + 0.3 + 0.26 * legend_lines(len(prediction.labels), width)
    height = HEADER + len(rows) * (QUERY + GAP) + footer
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    draw_title(figure, title, view.plane if len(view) > 1 else None)
    _write_heads(figure, most=max(row.retrieved for row in rows))
    for number, row in enumerate(rows):
        _draw_row(figure, view, prediction, row, HEADER + number * (QUERY + GAP))
    entries: list[Artist] = [
        Patch(facecolor=(colour, 0.5), edgecolor=colour, label=plain(name))
        for _, name, colour in colours(prediction.labels)
    ]
    draw_legend(figure, entries, bottom=NOTE)
    _write(figure, width / 2, height - NOTE / 2, _PRIVACY, ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND)
    return buffer.getvalue()


def _write_heads(figure: Figure, most: int) -> None:
    left, top = 2 * GAP + QUERY, HEADER - 0.13
    shown = "labelled slices it was shown, the most similar first"
    _write(figure, GAP, top, "what was found")
    _write(figure, left, top, "label")
    _write(figure, left + THERE, top, "it is there", ha="right")
    _write(figure, left + IOU, top, "IoU", ha="right")
    _write(figure, left + WORDS, top, shown if most <= SUPPORTS else f"{shown} ({SUPPORTS} of {most})")


def _draw_row(figure: Figure, view: SliceView, prediction: LabelMap, row: _Row, top: float) -> None:
    """From `top` inches below the upper edge on."""
    _, pixel_height, pixel_width = view.spacing
    _draw_panel(figure, (GAP, top), QUERY, row.image, row.predicted, prediction, pixel_height / pixel_width)
    if len(view) > 1:
        place = f"{row.index + 1} / {len(view)}"
        _write(figure, GAP + 0.06, top + 0.13, place, colour=INK, size=8)
    _write_confidence(figure, prediction, row, (2 * GAP + QUERY, top))
    above = top + (QUERY - SUPPORT - CAPTION) / 2
    left = 2 * GAP + QUERY + WORDS
    if not row.supports:
        _write(figure, left, top + QUERY / 2, "none: there is no signal in this slice")
    for place_in_row, picture in enumerate(row.supports):
        corner = (left + place_in_row * (SUPPORT + GAP), above)
        _draw_panel(
            figure, corner, SUPPORT, np.asarray(picture.image / 255, dtype=np.float32), picture.labels, prediction, 1.0
        )
        caption = shortened(picture.case, 16) + (f"  slice {picture.number + 1}" if len(view) > 1 else "")
        _write(figure, corner[0] + SUPPORT / 2, above + SUPPORT + CAPTION / 2, caption, ha="center")


def _draw_panel(
    figure: Figure,
    corner: tuple[float, float],
    side: float,
    image: NDArray[np.float32],
    labelled: NDArray[Any],
    prediction: LabelMap,
    pixel_aspect: float,
) -> None:
    """A slice with its labels drawn round, in a square whose upper left corner is so many inches from the figure's."""
    width, height = figure.get_size_inches()
    left, top = corner
    axes = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
    draw_image(axes, image, pixel_aspect)
    for value, _, colour in colours(prediction.labels):
        draw_contour(axes, labelled == value, colour, linewidth=1.2)


def _write_confidence(figure: Figure, prediction: LabelMap, row: _Row, corner: tuple[float, float]) -> None:
    """A line for each label that was asked for; those that were found in their colour, and these first to be shown."""
    left, top = corner
    found = [bool((row.predicted == value).any()) for value in prediction.labels.values]
    asked = [k for k in range(len(found)) if not np.isnan(row.there[k])]
    shown = sorted(sorted(asked, key=lambda k: (not found[k], -row.there[k]))[:LINES])
    known = list(colours(prediction.labels))
    for line, k in enumerate(shown):
        _, name, colour = known[k]
        y = top + 0.13 + 0.21 * line
        _write(figure, left, y, shortened(name, 16), colour=colour if found[k] else DIM, size=8.5)
        _write(figure, left + THERE, y, _percent(row.there[k]), colour=INK if found[k] else DIM, size=8.5, ha="right")
        if found[k]:
            _write(figure, left + IOU, y, f"{row.iou[k]:.2f}", colour=INK, size=8.5, ha="right")
    unsaid = []
    if len(asked) > len(shown):
        unsaid.append(f"{len(asked) - len(shown)} more")
    if row.supports and len(asked) < len(found):
        unsaid.append(f"in none of its supports: {len(found) - len(asked)} of {len(found)}")
    _write(figure, left, top + 0.13 + 0.21 * len(shown), ", ".join(unsaid))


def _percent(probability: float) -> str:
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability:.0%}".replace("%", " %")


def _write(
    figure: Figure, left: float, top: float, text: str, *, colour: str = DIM, size: float = 7.5, ha: str = "left"
) -> None:
    """Words whose middle is `top` inches below the upper edge."""
    from matplotlib.patheffects import withStroke

    width, height = figure.get_size_inches()
    words = figure.text(
        left / width, 1 - top / height, text, color=colour, fontsize=size, va="center", ha=ha, parse_math=False
    )
    words.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])
