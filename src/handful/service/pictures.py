"""Pictures and files that a page shows of a case."""

from __future__ import annotations

import gzip
import io

import nibabel as nib
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from handful.data.cases import Case
from handful.data.files import read_label_map
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap, Volume
from handful.errors import InputError
from handful.jobs.atomic import write_atomically
from handful.service.workspace import Workspace, id_of

SIDE = 200
"""Pixels along the longer edge of a small picture."""
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Of the first labels, as on the page; after Okabe and Ito, also for people who cannot tell red from green."""


def thumbnail(workspace: Workspace, case: Case) -> bytes:
    """The middle slice of a case as PNG; made once."""
    file = workspace.own / "thumbnails" / f"{id_of(case)}.png"
    if not file.is_file():
        write_atomically(file, _picture(case.read_image()), sync=False)
    return file.read_bytes()


def overlay(workspace: Workspace, case: Case) -> bytes:
    """The slice that shows most of the result of a case, with its labels in colours, as PNG.

    Raises InputError if there is no result.
    """
    file, labels = workspace.result(case), workspace.labels()
    if file is None or labels is None:
        raise InputError("this case has no segmentation yet; segment it first")
    view = Slicer().for_display().view(case.read_image())
    classes = view.of(read_label_map(file, labels).array)
    number = int((classes > 0).sum(axis=(1, 2)).argmax())
    grey = view.take([number])[0].numpy()
    picture = np.broadcast_to(grey.transpose(1, 2, 0), (*grey.shape[1:], 3)).copy()
    for place, value in enumerate(labels.values):
        inside = classes[number] == value
        picture[inside] = 0.55 * picture[inside] + 0.45 * np.array(COLOURS[place % len(COLOURS)]) / 255
    return _png((picture * 255).round().astype(np.uint8), view.spacing)


def volume_bytes(volume: Volume | LabelMap) -> bytes:
    """A scan or a label map as NIfTI for a viewer, in world coordinates of the patient (RAS, mm)."""
    array = volume.array if isinstance(volume, LabelMap) else volume.array.transpose(1, 2, 3, 0)
    kind = np.uint8 if isinstance(volume, LabelMap) and array.max() < 256 else array.dtype
    data = array.astype(kind) if array.dtype != np.bool_ else array.astype(np.uint8)
    if data.ndim == 4:
        data = data[..., 0] if data.shape[-1] == 1 else data.mean(axis=-1).astype(np.float32)
    if data.dtype in (np.int64, np.uint64):
        data = data.astype(np.float32)
    image = nib.Nifti1Image(data, volume.geometry.affine)
    return gzip.compress(image.to_bytes(), 1)


def _picture(volume: Volume) -> bytes:
    view = Slicer().for_display().view(volume)
    pixels = (view.take([len(view) // 2])[0].numpy() * 255).round().astype(np.uint8)
    return _png(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0), view.spacing)


def _png(pixels: UInt8[np.ndarray, "h w *c"], spacing: tuple[float, float, float]) -> bytes:
    """A small picture with the proportions of the patient."""
    picture, (_, row, column) = Image.fromarray(pixels), spacing
    width, height = picture.width * column, picture.height * row
    scale = SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    content = io.BytesIO()
    picture.resize(size, Image.Resampling.BILINEAR).save(content, "PNG")
    return content.getvalue()
