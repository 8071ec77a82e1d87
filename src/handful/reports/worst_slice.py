"""A small picture of the slice of a case on which prediction and reference differ most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handful.data.label_colours import label_colours
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.reports.canvas import Canvas, draw_contour, draw_image, draw_reference

SIDE = 2.6
"""Width and height in inches."""
DPI = 140


def worst_slice(volume: Volume, prediction: LabelMap, reference: LabelMap, slicer: Slicer) -> bytes:
    """A square WebP picture, with the prediction filled in colour and the reference as a dashed white line."""
    view = slicer.for_display().view(volume)
    predicted, truth = view.of(prediction.array), view.of(reference.array)
    wrong = (predicted != truth) & (truth != IGNORE)
    number = int(wrong.sum(axis=(1, 2)).argmax())
    labelled = (predicted[number] > 0) | (truth[number] > 0)
    _, pixel_height, pixel_width = view.spacing
    rows, columns = _square(labelled, float(pixel_height / pixel_width))
    canvas = Canvas(SIDE, SIDE, dpi=DPI)
    axes = canvas.axes(0, 0, SIDE, SIDE)
    image = view.take([number])[0, :, rows, columns].permute(1, 2, 0).numpy()
    draw_image(axes, image, float(pixel_height / pixel_width))
    for value, _, colour in label_colours(reference.labels):
        draw_contour(axes, predicted[number, rows, columns] == value, colour, alpha=0.32, linewidth=1.2)
    for value in reference.labels.values:
        draw_reference(axes, truth[number, rows, columns] == value, linewidth=1.0, rim=False)
    return canvas.webp(quality=78)


def _square(labelled: NDArray[np.bool_], pixel_aspect: float) -> tuple[slice, slice]:
    """Rows and columns of a square (in mm) around the labels, 1.5 times as large, clipped to the slice."""
    height, width = labelled.shape
    if not labelled.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(labelled.any(axis=1)), np.flatnonzero(labelled.any(axis=0))
    extent = max((rows[-1] - rows[0] + 1) * pixel_aspect, columns[-1] - columns[0] + 1)
    reach = max(0.75 * float(extent), 20.0)
    return _around(rows, reach / pixel_aspect, height), _around(columns, reach, width)


def _around(labelled: NDArray[np.int64], reach: float, size: int) -> slice:
    middle = float(labelled[0] + labelled[-1] + 1) / 2
    return slice(max(int(middle - reach), 0), min(int(middle + reach) + 1, size))
