"""Pictures and files that a page shows of a case."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor
from scipy import ndimage

from handful.data.cases import Case
from handful.data.label_colours import label_colours
from handful.data.slicing import Slicer
from handful.data.volume import Volume
from handful.errors import InputError
from handful.jobs.atomic import write_atomically
from handful.jobs.digests import digest_of
from handful.service.workspace import Workspace, id_of, state_of_scan

SIDE, LARGE_SIDE = 200, 480
"""Pixels along the longer edge of a small picture, and of one with labels."""
FILL = 0.25
"""Opacity of a label within its outline."""


def thumbnail(workspace: Workspace, case: Case) -> bytes:
    """The middle slice of a case as PNG; made once for each state of its files."""
    folder, state = workspace.own / "thumbnails", digest_of(str(sorted(state_of_scan(case))))
    file = folder / f"{id_of(case)}-{state[:16]}.png"
    if not file.is_file():
        earlier = [*folder.glob(f"{id_of(case)}*.png")]
        write_atomically(file, _picture(workspace.read_image(case)), sync=False)
        for one in earlier:
            one.unlink(missing_ok=True)
    return file.read_bytes()


def overlay(workspace: Workspace, case: Case) -> bytes:
    """The slice that shows most of the result of a case, with its labels in colours, as PNG.

    Raises InputError if there is no result.
    """
    label_map = workspace.read_result(case)
    if label_map is None:
        raise InputError("this case has no segmentation yet; segment it first")
    view = Slicer().for_display().view(workspace.read_image(case))
    classes = view.of(label_map.array)
    number = int((classes > 0).sum(axis=(1, 2)).argmax())
    grey = view.take([number])[0].numpy()
    picture = np.broadcast_to(grey.transpose(1, 2, 0), (*grey.shape[1:], 3)).copy()
    for value, _, colour in label_colours(label_map.labels):
        inside = classes[number] == value
        edge = inside & ~ndimage.binary_erosion(inside)
        for part, opacity in ((inside, FILL), (edge, 1.0)):
            picture[part] = (1 - opacity) * picture[part] + opacity * np.array(ImageColor.getrgb(colour)) / 255
    return _png((picture * 255).round().astype(np.uint8), view.spacing, LARGE_SIDE)


def _picture(volume: Volume) -> bytes:
    view = Slicer().for_display().view(volume)
    pixels = (view.take([len(view) // 2])[0].numpy() * 255).round().astype(np.uint8)
    return _png(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0), view.spacing)


def _png(pixels: UInt8[np.ndarray, "h w *c"], spacing: tuple[float, float, float], side: int = SIDE) -> bytes:
    """A picture with the proportions of the patient."""
    picture, (_, row, column) = Image.fromarray(pixels), spacing
    width, height = picture.width * column, picture.height * row
    scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    content = io.BytesIO()
    picture.resize(size, Image.Resampling.BILINEAR).save(content, "PNG")
    return content.getvalue()
