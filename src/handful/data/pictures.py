"""PNG, JPEG, TIFF and BMP pictures as volumes of one slice: i runs to the right (x), j down (y), in pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from handful.data.volume import Geometry
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.files import open_file

_GREY = {"1": "L", "L": "L", "LA": "L", "La": "L", "I;16": "I;16", "I;16B": "I;16B", "I": "I", "F": "F"}
"""Pillow's one-channel modes, and each mode without alpha; all others become RGB."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)
"""Errors that Pillow and tifffile raise for broken files, found by fuzzing; they have no common base class."""


def read_picture(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    """Pixels (1 or 3, x, y, 1) as stored, and their grid. Alpha is dropped; a palette becomes colours."""
    if _is_deep_tiff(path):
        return _on_grid(path, _read_tiff(path, max_bytes))
    image = _open(path, max_bytes)
    return _on_grid(path, np.asarray(image.convert(_GREY.get(image.mode, "RGB"))))


def read_label_picture(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    """Label numbers (1, x, y, 1) and their grid: grey values, or the indices of a palette; colours are refused."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UnsupportedInput(f"{path}: JPEG compression changes label values; save labels as .png")
    if _is_deep_tiff(path):
        pixels = _read_tiff(path, max_bytes)
        mode = "RGB" if pixels.ndim == 3 else "L"
    else:
        image = _open(path, max_bytes)
        pixels, mode = np.asarray(image), image.mode
    if mode not in ("1", "L", "P", "I", "F", "I;16", "I;16B"):
        raise UnsupportedInput(f"{path}: labels are colours ({mode}); save one channel of label numbers")
    return _on_grid(path, pixels.astype(np.uint8) if mode == "1" else pixels)


def picture_geometry(path: Path) -> Geometry:
    """The grid, from the header; the pixels are not verified."""
    if _is_deep_tiff(path):
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return _geometry(page.imagewidth, page.imagelength)
    with open_file(path) as file:
        return _geometry(*_identify(path, file).size)


def write_picture(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write one slice without loss: .png (8-bit grey or colour, 16-bit grey), .bmp (8-bit), .tif (any depth)."""
    expected = _geometry(*geometry.shape[:2])
    if geometry.shape[2] != 1 or expected.corner_distance(geometry) > 1e-3:
        raise UnsupportedInput(f"{path}: a picture cannot store the grid {geometry.shape}; write .nii.gz")
    pixels = np.ascontiguousarray(array[0, :, :, 0].T if len(array) == 1 else array[..., 0].transpose(2, 1, 0))
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels, photometric="minisblack" if len(array) == 1 else "rgb", metadata=None)
        return
    deepest = 16 if suffix == ".png" and len(array) == 1 else 8
    if suffix in (".jpg", ".jpeg") or pixels.dtype.kind != "u" or pixels.dtype.itemsize * 8 > deepest:
        raise UnsupportedInput(f"{path}: {suffix} cannot store {pixels.dtype} pixels; write .tif instead")
    Image.fromarray(pixels).save(path)


def _open(path: Path, max_bytes: int) -> Image.Image:
    """The decoded picture, with its checksums verified."""
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DamagedFile(f"{path}: larger than the allowed {max_bytes:,} bytes; cut it into tiles")
    image = _identify(path, io.BytesIO(content))
    if image.width * image.height * 4 > max_bytes:
        raise DamagedFile(f"{path}: {image.size} pixels exceed the allowed {max_bytes:,} bytes; cut it into tiles")
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview
            raise UnsupportedInput(f"{path}: a stack of {frames} pictures without spacing; save it as one .nii.gz")
        if image.format == "PNG":
            image.verify()  # checks the CRC of every chunk, which load() does not; the image cannot be used afterwards
            image = _identify(path, io.BytesIO(content))
        image.load()
    except _BROKEN as error:
        raise DamagedFile(f"{path}: truncated or damaged picture ({error}); copy the file again") from error
    return image


def _identify(path: Path, file: Any) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DamagedFile(f"{path}: suspiciously many pixels ({error}); cut it into tiles") from error
    except _BROKEN as error:
        raise DamagedFile(f"{path}: not a readable picture ({error}); check where it came from") from error


def _is_deep_tiff(path: Path) -> bool:
    """Whether it is a TIFF of more than 8 bits, which Pillow does not fully support; stacks are refused."""
    open_file(path).close()
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) > 1:
                raise UnsupportedInput(
                    f"{path}: a stack of {len(tiff.pages)} pictures without spacing; save it as one .nii.gz"
                )
            dtype = tiff.pages.first.dtype
    except _BROKEN as error:
        raise DamagedFile(f"{path}: incomplete TIFF ({error}); copy the file again") from error
    return dtype is not None and dtype.itemsize > 1


def _read_tiff(path: Path, max_bytes: int) -> NDArray[Any]:
    """Pixels (y, x) or (y, x, 3)."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if page.nbytes > max_bytes:
                raise DamagedFile(f"{path}: {page.nbytes:,} bytes, but {max_bytes:,} are allowed; cut it into tiles")
            pixels, axes = page.asarray(), page.axes
    except _BROKEN as error:
        raise DamagedFile(f"{path}: truncated or damaged TIFF ({error}); copy the file again") from error
    if pixels.ndim != len(axes):
        raise DamagedFile(f"{path}: pixels are missing; copy the file again")
    if axes == "SYX":
        pixels, axes = pixels.transpose(1, 2, 0), "YXS"
    if axes == "YXS" and pixels.shape[2] in (3, 4):
        return pixels[..., :3]
    if axes != "YX" or pixels.dtype.kind not in "iuf":
        raise UnsupportedInput(f"{path}: {pixels.dtype} pixels along {axes}; save one grey or three colour channels")
    return pixels


def _on_grid(path: Path, pixels: NDArray[Any]) -> tuple[NDArray[Any], Geometry]:
    geometry = _geometry(pixels.shape[1], pixels.shape[0])
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    channels = native[None] if native.ndim == 2 else native.transpose(2, 0, 1)
    return channels.transpose(0, 2, 1)[..., None], geometry


def _geometry(width: int, height: int) -> Geometry:
    # x runs to the patient's left and y to the back, as radiology shows a slice
    return Geometry((width, height, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), unit="pixel")
