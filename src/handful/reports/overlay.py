"""A contact sheet to look at: a case's slices with the prediction filled in colour and the reference drawn round it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from handful.data.slicing import Slicer, SliceView
from handful.data.volume import LabelMap, Labels, Volume
from handful.evaluation.metrics import overlap
from handful.jobs.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's colours, which colour-blind eyes tell apart; past the seventh label they come round again.

Blue comes first: tissue in colour pictures is red and yellow.
"""

MOST_SLICES = 8
DPI = 150
BACKGROUND = "#101214"
INK = "#E8EAED"
PER_LABEL = 2.3
"""Inches that a label and its Dice take up in the legend."""


def write_overlay(
    path: Path,
    volume: Volume,
    prediction: LabelMap,
    reference: LabelMap | None = None,
    slicer: Slicer = Slicer(),  # noqa: B008
    case: str | None = None,
) -> None:
    """A PNG of up to eight evenly spaced slices through what is labelled, as the slicer shows them to a model.

    The prediction is a translucent fill with a contour, the reference a dashed white line; the legend gives each
    label's Dice over the volume where there is a reference. `case` is the title, the file's stem when left out.
    Raises GeometryMismatch where the maps do not lie on the volume's grid.
    """
    for what, label_map in (("prediction", prediction), ("reference", reference)):
        if label_map is not None:
            volume.geometry.require_same(label_map.geometry, f"overlay of {case or path.stem!r}: image and {what}")
    sheet = _Sheet.of(volume, prediction, reference, slicer)
    write_atomically(path, _draw(sheet, case or path.stem))


def colours(labels: Labels) -> Iterator[tuple[int, str, str]]:
    """Value, name and colour of each label, the same in every picture."""
    for index, (value, name) in enumerate(labels.as_dict().items()):
        yield value, name, PALETTE[index % len(PALETTE)]


def evenly(labelled: NDArray[np.bool_], most: int) -> list[int]:
    """Up to `most` of the slices (n, h, w), from the first labelled to the last; from all where none is."""
    held = np.flatnonzero(labelled.any(axis=(1, 2)))
    first, last = (int(held[0]), int(held[-1])) if held.size else (0, len(labelled) - 1)
    return sorted({round(index) for index in np.linspace(first, last, min(most, last - first + 1))})


def draw_contour(axes: Axes, mask: NDArray[np.bool_], colour: str, alpha: float = 0.0, linewidth: float = 1.5) -> None:
    """A line round a mask, in pixels of an image drawn there; what is inside is filled with `alpha`."""
    from matplotlib.patheffects import withStroke

    if mask.any():
        x, y, height = _surface(mask)
        if alpha > 0:
            axes.contourf(x, y, height, levels=[0.5, 1.5], colors=[colour], alpha=alpha, antialiased=True)
        line = axes.contour(x, y, height, levels=[0.5], colors=[colour], linewidths=linewidth)
        line.set_path_effects([withStroke(linewidth=linewidth + 1, foreground=(0, 0, 0, 0.5))])


def draw_image(axes: Axes, image: NDArray[Any], pixel_aspect: float) -> None:
    """A slice (h, w, c), grey or coloured, values in [0, 1], without axes about it."""
    height, width = image.shape[:2]
    axes.imshow(
        image if image.shape[2] == 3 else image[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=pixel_aspect,
        interpolation="bilinear",
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()


def draw_title(figure: Figure, title: str, plane: str | None) -> None:
    """The case in the upper left corner, and how it was cut in the right one."""
    width, height = figure.get_size_inches()
    margin, middle = 0.12 / width, 1 - 0.25 / height
    figure.text(margin, middle, title, color=INK, fontsize=13, fontweight="bold", va="center", parse_math=False)
    if plane is not None:
        figure.text(1 - margin, middle, plane, color=INK, fontsize=11, va="center", ha="right")


def draw_legend(figure: Figure, entries: Sequence[Artist], bottom: float = 0.02) -> None:
    """Names beside their colours, `bottom` inches above the lower edge, in as many lines as they need."""
    width, height = figure.get_size_inches()
    lines = legend_lines(len(entries), width)
    figure.legend(
        handles=list(entries),
        loc="lower center",
        bbox_to_anchor=(0.5, bottom / height),
        ncols=math.ceil(len(entries) / lines),
        frameon=False,
        labelcolor=INK,
        fontsize=10,
    )


def legend_lines(entries: int, width: float) -> int:
    """Lines of 0.26 inches that a legend takes up in a figure so many inches wide."""
    return math.ceil(entries / max(1, int(width / PER_LABEL)))


def plain(text: str) -> str:
    """Text that matplotlib sets as it is, where it would take what stands between two dollars as mathematics."""
    return text.replace("$", r"\$")


@dataclass(frozen=True, eq=False)
class _Sheet:
    """What is drawn: the maps as slices (n, h, w), which of them, and the part of each that is in the frame."""

    view: SliceView
    labels: Labels
    predicted: NDArray[Any]
    reference: NDArray[Any] | None
    chosen: list[int]
    rows: slice
    columns: slice
    dice: dict[int, float]
    """Of each label over the whole volume; empty without a reference."""

    @classmethod
    def of(cls, volume: Volume, prediction: LabelMap, reference: LabelMap | None, slicer: Slicer) -> _Sheet:
        view = replace(slicer, neighbours=False).view(volume)
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
        """Height of a pixel over its width, as they are in the patient."""
        row, column = self.view.spacing[1:]
        return row / column

    @property
    def panel_aspect(self) -> float:
        """Height of a panel over its width."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return float(self.pixel_aspect * height / width)


def _dice(prediction: LabelMap, reference: LabelMap, labels: Labels) -> dict[int, float]:
    known = reference.array >= 0
    counts = {value: overlap(prediction.array == value, reference.array == value, known) for value in labels.values}
    return {value: count.dice for value, count in counts.items() if count.n_pred + count.n_ref}


def _frame(labelled: NDArray[np.bool_], pixel_aspect: float) -> tuple[slice, slice]:
    """The rows and columns shown: the labels and as much again round them, so that a small organ is not a dot."""
    flat: NDArray[np.bool_] = np.any(labelled, axis=0)
    height, width = flat.shape
    if not flat.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    extent = float(max((rows[-1] - rows[0] + 1) * pixel_aspect, columns[-1] - columns[0] + 1))
    return _widen(rows, extent / pixel_aspect, height), _widen(columns, extent, width)


def _widen(held: NDArray[np.int64], extent: float, size: int) -> slice:
    middle, reach = (held[0] + held[-1] + 1) / 2, max(extent, 24)
    return slice(max(math.floor(middle - reach), 0), min(math.ceil(middle + reach), size))


def _draw(sheet: _Sheet, title: str) -> bytes:
    from matplotlib.figure import Figure

    count = len(sheet.chosen)
    columns = _columns(count, sheet.panel_aspect)
    lines = math.ceil(count / columns)
    # Inches: panels share twelve, few panels are larger.
    width = min(12.0, 1.0 + 4.0 * columns)
    gap, header = 0.06, 0.5
    footer = 0.3 + 0.26 * legend_lines(len(sheet.labels) + (sheet.reference is not None), width)
    panel_width = (width - gap * (columns + 1)) / columns
    panel_height = panel_width * sheet.panel_aspect
    height = header + footer + lines * (panel_height + gap) - gap

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    for position, index in enumerate(sheet.chosen):
        line, column = divmod(position, columns)
        left, top = gap + column * (panel_width + gap), header + line * (panel_height + gap)
        bottom = height - top - panel_height
        axes = figure.add_axes((left / width, bottom / height, panel_width / width, panel_height / height))
        _draw_slice(axes, sheet, index)
    _write_words(figure, sheet, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND)
    return buffer.getvalue()


def _columns(count: int, panel_aspect: float) -> int:
    """The number of columns that brings the sheet nearest to three by two, with few places left empty."""

    def ugliness(columns: int) -> float:
        lines = math.ceil(count / columns)
        shape = abs(math.log(columns / (lines * panel_aspect) / 1.5))
        return shape + 4 * (lines * columns - count) / count

    return min(range(1, count + 1), key=ugliness)


def _draw_slice(axes: Axes, sheet: _Sheet, index: int) -> None:
    from matplotlib.patheffects import withStroke

    rows, columns = sheet.rows, sheet.columns
    image = sheet.view.cut(index, index + 1)[0, :, rows, columns].permute(1, 2, 0).numpy()
    draw_image(axes, image, sheet.pixel_aspect)
    for value, _, colour in colours(sheet.labels):
        draw_contour(axes, sheet.predicted[index, rows, columns] == value, colour, alpha=0.35)
    if sheet.reference is not None:
        for value in sheet.labels.values:
            _outline(axes, sheet.reference[index, rows, columns] == value)
    if len(sheet.view) > 1:
        place = axes.text(
            0.025, 0.97, f"{index + 1} / {len(sheet.view)}", transform=axes.transAxes, color=INK, fontsize=8, va="top"
        )
        place.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    from matplotlib.patheffects import withStroke

    if mask.any():
        x, y, height = _surface(mask)
        line = axes.contour(x, y, height, levels=[0.5], colors=["white"], linewidths=0.9, linestyles=[(0, (3, 1.6))])
        line.set_path_effects([withStroke(linewidth=1.7, foreground=(0, 0, 0, 0.55))])


def _surface(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Column and row of each value, and the mask with a rim of zeros: without one a contour at the frame stays open."""
    height, width = mask.shape
    return np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1).astype(np.float32)


def _write_words(figure: Figure, sheet: _Sheet, title: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    draw_title(figure, title, sheet.view.plane if len(sheet.view) > 1 else None)
    entries: list[Artist] = [
        Patch(facecolor=(colour, 0.5), edgecolor=colour, label=_named(sheet, value, name))
        for value, name, colour in colours(sheet.labels)
    ]
    if sheet.reference is not None:
        entries.append(Line2D([], [], color="white", linewidth=1.2, linestyle=(0, (3, 1.6)), label="reference"))
    draw_legend(figure, entries)


def _named(sheet: _Sheet, value: int, name: str) -> str:
    name = plain(name)
    if not sheet.dice:
        return name
    return f"{name}  Dice {sheet.dice[value]:.2f}" if value in sheet.dice else f"{name}  absent"


def shortened(text: str, most: int) -> str:
    """Its beginning and its end, where names differ, with dots between."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[-half:]}"
