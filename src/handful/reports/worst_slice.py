"""A small picture of where an arm went wrong: the slice of a case on which prediction and reference differ most."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.reports.overlay import BACKGROUND, colours, draw_contour, draw_image

SIDE = 2.6
"""Inches."""
DPI = 140


def worst_slice(volume: Volume, prediction: LabelMap, reference: LabelMap, slicer: Slicer) -> bytes:
    """A WebP picture, square: the prediction filled in colour, the reference a dashed white line, as in overlays."""
    from matplotlib.figure import Figure

    view = replace(slicer, neighbours=False).view(volume)
    predicted, truth = view.of(prediction.array), view.of(reference.array)
    wrong = (predicted != truth) & (truth != IGNORE)
    number = int(wrong.sum(axis=(1, 2)).argmax())
    held = (predicted[number] > 0) | (truth[number] > 0)
    _, pixel_height, pixel_width = view.spacing
    rows, columns = _square(held, float(pixel_height / pixel_width))
    figure = Figure(figsize=(SIDE, SIDE), dpi=DPI, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    image = view.take([number])[0, :, rows, columns].permute(1, 2, 0).numpy()
    draw_image(axes, image, float(pixel_height / pixel_width))
    for value, _, colour in colours(reference.labels):
        draw_contour(axes, predicted[number, rows, columns] == value, colour, alpha=0.32, linewidth=1.2)
    for value in reference.labels.values:
        mask = np.pad(truth[number, rows, columns] == value, 1).astype(np.float32)
        if mask.any():
            x, y = np.arange(-1, mask.shape[1] - 1), np.arange(-1, mask.shape[0] - 1)
            axes.contour(x, y, mask, levels=[0.5], colors=["white"], linewidths=1.0, linestyles=[(0, (3, 1.6))])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=DPI, facecolor=BACKGROUND, pil_kwargs={"quality": 78})
    return buffer.getvalue()


def _square(held: NDArray[np.bool_], pixel_aspect: float) -> tuple[slice, slice]:
    """Rows and columns round what is held and half as much again, square in the patient as far as the slice reaches."""
    height, width = held.shape
    if not held.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(held.any(axis=1)), np.flatnonzero(held.any(axis=0))
    extent = max((rows[-1] - rows[0] + 1) * pixel_aspect, columns[-1] - columns[0] + 1)
    reach = max(0.75 * float(extent), 20.0)
    return _about(rows, reach / pixel_aspect, height), _about(columns, reach, width)


def _about(held: NDArray[np.int64], reach: float, size: int) -> slice:
    middle = float(held[0] + held[-1] + 1) / 2
    return slice(max(int(middle - reach), 0), min(int(middle + reach) + 1, size))
