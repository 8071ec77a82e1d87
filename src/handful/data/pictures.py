"""PNG, JPEG, TIFF and BMP pictures as volumes of one slice: i runs to the right (x), j down (y), in pixels.

The content of a file determines its format, not its name. Pictures are turned as their EXIF orientation says, images
and label maps alike, so that they lie as every viewer shows them.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from handful.data.headers.bmp import read_bmp
from handful.data.headers.png import GREY, SIGNATURE, plain_png, read_png
from handful.data.headers.png import PALETTE as PNG_PALETTE
from handful.data.headers.tiff import (
    JPEG_COMPRESSIONS,
    PALETTE,
    WHITE_IS_ZERO,
    exif_orientation,
    read_tiff_header,
)
from handful.data.tiff import tiff_pixels
from handful.data.verified import read_whole
from handful.data.volume import Geometry
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.files import open_file

_MOST_PIXELS = 89_478_485
"""Pixels of a PNG, JPEG or BMP; more would be a decompression bomb by Pillow's default."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, struct.error, zlib.error)
"""Errors that Pillow and imagecodecs raise for broken files, found by fuzzing; they have no common base class."""


@dataclass(frozen=True)
class _Picture:
    """A decoded picture before its numbers get a meaning."""

    pixels: NDArray[Any]
    """(y, x) numbers, or (y, x, channels): grey and alpha, colours, or colours and alpha; as stored."""
    orientation: int = 1
    palette: NDArray[Any] | None = None
    """The colours (n, 3) of the numbers."""
    bits: int = 8
    white_is_zero: bool = False
    lossy: bool = False
    """Whether a JPEG compression inside a TIFF changed the values."""


_Kind = Literal["PNG", "JPEG", "BMP", "TIFF"]
_MAGIC: Mapping[bytes, _Kind] = {
    SIGNATURE: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_SUFFIXES: Mapping[_Kind, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}


def read_picture(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    """Pixels (1 or 3, x, y, 1) and their grid. Alpha is dropped; a palette becomes colours.

    Where zero is white, values are inverted, so that bright pixels have high values.
    """
    picture = _decoded(path, read_whole(path, max_bytes), max_bytes)
    pixels = picture.pixels
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    if picture.palette is not None:
        pixels = _in_colour(path, pixels, picture.palette)
    elif picture.white_is_zero:
        if pixels.dtype.kind != "u":
            raise UnsupportedInput(f"{path}: {pixels.dtype} pixels of which zero is white; save it with black as zero")
        pixels = pixels.dtype.type(2 ** max(picture.bits, 1) - 1) - pixels
    if picture.bits < 8 and picture.palette is None:
        pixels = pixels * np.uint8(255 // (2**picture.bits - 1))
    return _on_grid(_upright(pixels, picture.orientation))


def read_label_picture(path: Path, max_bytes: int) -> tuple[NDArray[Any], Geometry]:
    """Label numbers (1, x, y, 1) and their grid: grey values as stored, or the indices of a palette.

    Colours and JPEG are refused.
    """
    content = read_whole(path, max_bytes)
    if _kind(path, content) == "JPEG":
        named = path.suffix.lower()
        raise _changed_by_jpeg(path, "" if named in _SUFFIXES["JPEG"] else f"a JPEG although it is named {named}; ")
    picture = _decoded(path, content, max_bytes)
    if picture.lossy:
        raise _changed_by_jpeg(path, "a TIFF of JPEG strips; ")
    if picture.pixels.ndim == 3:
        channels = {2: "grey and alpha", 3: "RGB"}.get(picture.pixels.shape[2], f"{picture.pixels.shape[2]} channels")
        raise UnsupportedInput(f"{path}: labels are colours ({channels}); save one channel of label numbers")
    if picture.white_is_zero and picture.bits == 1:
        raise UnsupportedInput(f"{path}: black-and-white labels of which zero is white; save them with black as zero")
    return _on_grid(_upright(picture.pixels, picture.orientation))


def _changed_by_jpeg(path: Path, what: str) -> UnsupportedInput:
    return UnsupportedInput(
        f"{path}: {what}JPEG compression changes label values; save labels as .png from the original labels, "
        "or threshold this file"
    )


def picture_geometry(path: Path) -> Geometry:
    """The grid, from the header; the pixels are not verified."""
    width, height, orientation = _SIZES[_kind_of_file(path)](path)
    return _geometry(height, width) if orientation >= 5 else _geometry(width, height)


def picture_notes(path: Path) -> list[str]:
    """Unusual but valid properties of the file, one sentence each."""
    notes, kind = [], _kind_of_file(path)
    if path.suffix.lower() not in _SUFFIXES[kind]:
        notes.append(f"{path}: a {kind} although it is named {path.suffix}; read as {kind}")
    if (orientation := _SIZES[kind](path)[2]) != 1:
        notes.append(f"{path}: turned as its EXIF orientation ({orientation}) says, as viewers show it")
    if kind == "TIFF":
        with open_file(path) as file:
            if read_tiff_header(file, path).photometric == WHITE_IS_ZERO:
                notes.append(f"{path}: zero is white; the values of an image are inverted, those of labels are not")
    return notes


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


def _kind(path: Path, content: bytes) -> _Kind:
    """The format by the first bytes. Raises DamagedFile if it is none of a picture."""
    for magic, kind in _MAGIC.items():
        if content.startswith(magic):
            return kind
    raise DamagedFile(f"{path}: not a readable picture, it starts with {content[:8]!r}; check where it came from")


def _kind_of_file(path: Path) -> _Kind:
    with open_file(path) as file:
        return _kind(path, file.read(8))


def _decoded(path: Path, content: bytes, max_bytes: int) -> _Picture:
    try:
        return _DECODERS[_kind(path, content)](content, path, max_bytes)
    except _BROKEN as error:
        raise DamagedFile(f"{path}: truncated or damaged picture ({error}); copy the file again") from error


def _decoded_tiff(content: bytes, path: Path, max_bytes: int) -> _Picture:
    header = read_tiff_header(BytesIO(content), path)
    if header.memory > max_bytes:
        raise DamagedFile(f"{path}: {header.memory:,} bytes, but {max_bytes:,} are allowed; cut it into tiles")
    palette = None
    if header.photometric == PALETTE:
        wide = np.array(header.colormap, np.uint16).reshape(3, -1).T
        high = wide >> 8
        plain = not (wide & 255).any() or np.array_equal(wide & 255, high)  # 8-bit colours, shifted or doubled
        palette = high.astype(np.uint8) if plain else wide
    pixels = tiff_pixels(content, header, path)
    inverted, lossy = header.photometric == WHITE_IS_ZERO, header.compression in JPEG_COMPRESSIONS
    return _Picture(pixels, header.orientation, palette, header.bits, inverted, lossy)


def _decoded_png(content: bytes, path: Path, max_bytes: int) -> _Picture:
    png = read_png(content, path)
    _require_reasonable(path, png.width, png.height, max_bytes)
    plain = plain_png(png, path)
    if png.depth >= 8 and png.colour != PNG_PALETTE:  # Pillow would cut 16-bit colours to 8 bits
        return _Picture(imagecodecs.png_decode(plain), png.orientation, bits=png.depth)
    picture = _by_pillow(path, plain, "PNG")
    pixels = picture.pixels
    if png.depth < 8 and png.colour == GREY:  # Pillow spreads 2 and 4 bits over 0 to 255
        pixels = pixels if png.depth == 1 else pixels // (255 // (2**png.depth - 1))
    bits = 8 if png.colour == PNG_PALETTE else png.depth
    return _Picture(pixels, png.orientation, picture.palette, bits)


def _decoded_bmp(content: bytes, path: Path, max_bytes: int) -> _Picture:
    bmp = read_bmp(content, path)
    _require_reasonable(path, bmp.width, bmp.height, max_bytes)
    mode = _identify(path, BytesIO(content), "BMP").mode
    if bmp.bits == {"1": 1, "L": 8}.get(mode, bmp.bits) or (bmp.run_lengths and mode == "L"):
        return _by_pillow(path, content, "BMP")
    # where all colours are grey, Pillow takes numbers of 4 or 8 bits for pixels of 1 or 8 bits
    if bmp.run_lengths:
        raise UnsupportedInput(f"{path}: a compressed BMP of black and white; save it as .png")
    size, raw_mode = (bmp.width, bmp.height), "P" if bmp.bits == 8 else f"P;{bmp.bits}"
    direction = 1 if bmp.downwards else -1
    image = Image.frombytes("P", size, content[bmp.offset :], "raw", raw_mode, bmp.stride, direction)
    numbers = np.asarray(image)
    if mode == "1" and numbers.max() > 1:
        raise DamagedFile(f"{path}: pixels of colour {numbers.max()}, but the palette has 2; save it again")
    return _Picture(numbers, bits=1 if mode == "1" else 8)


def _decoded_jpeg(content: bytes, path: Path, max_bytes: int) -> _Picture:
    width, height, orientation = _size_of_jpeg(path, BytesIO(content))
    _require_reasonable(path, width, height, max_bytes)
    picture = _by_pillow(path, content, "JPEG")
    return _Picture(picture.pixels, orientation)


_DECODERS: Mapping[_Kind, Callable[[bytes, Path, int], _Picture]] = {
    "PNG": _decoded_png,
    "JPEG": _decoded_jpeg,
    "BMP": _decoded_bmp,
    "TIFF": _decoded_tiff,
}


def _by_pillow(path: Path, content: bytes, kind: _Kind) -> _Picture:
    """Grey values, indices with their palette, or colours."""
    image = _identify(path, BytesIO(content), kind)
    image.load()
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return _Picture(np.asarray(image), palette=palette)
    if image.mode == "1":
        return _Picture(np.asarray(image).astype(np.uint8), bits=1)
    if image.mode in ("LA", "La"):
        return _Picture(np.asarray(image))
    grey = image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
    return _Picture(np.asarray(image if grey else image.convert("RGB")))


def _identify(path: Path, file: BytesIO | BufferedReader, kind: _Kind) -> Image.Image:
    """Open a picture with Pillow's parser for its kind, and no other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes and EXIF data are checked before pixels are decoded
            return Image.open(file, formats=["JPEG", "MPO"] if kind == "JPEG" else [kind])
    except Image.DecompressionBombError as error:
        raise DamagedFile(f"{path}: suspiciously many pixels ({error}); cut it into tiles") from error
    except _BROKEN as error:
        raise DamagedFile(f"{path}: not a readable picture ({error}); check where it came from") from error


def _require_reasonable(path: Path, width: int, height: int, max_bytes: int) -> None:
    if width * height > _MOST_PIXELS:
        raise DamagedFile(f"{path}: suspiciously many pixels ({width:,} x {height:,}); cut it into tiles")
    if width * height * 4 > max_bytes:
        raise DamagedFile(
            f"{path}: {width} x {height} pixels exceed the allowed {max_bytes:,} bytes; cut it into tiles"
        )


def _size_of_jpeg(path: Path, file: BytesIO | BufferedReader) -> tuple[int, int, int]:
    image = _identify(path, file, "JPEG")
    exif = image.info.get("exif")
    return image.width, image.height, exif_orientation(exif, path) if exif else 1


def _jpeg_size(path: Path) -> tuple[int, int, int]:
    with open_file(path) as file:
        return _size_of_jpeg(path, file)


def _png_size(path: Path) -> tuple[int, int, int]:
    with open_file(path) as file:
        png = read_png(file.read(), path)
    return png.width, png.height, png.orientation


def _bmp_size(path: Path) -> tuple[int, int, int]:
    with open_file(path) as file:
        bmp = read_bmp(file.read(), path)
    return bmp.width, bmp.height, 1


def _tiff_size(path: Path) -> tuple[int, int, int]:
    with open_file(path) as file:
        header = read_tiff_header(file, path)
    return header.width, header.height, header.orientation


_SIZES: Mapping[_Kind, Callable[[Path], tuple[int, int, int]]] = {
    "PNG": _png_size,
    "JPEG": _jpeg_size,
    "BMP": _bmp_size,
    "TIFF": _tiff_size,
}
"""Width and height as stored, and orientation, by format."""


def _in_colour(path: Path, indices: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """The colours (y, x, 3) of the indices (y, x) of a palette."""
    if (highest := int(indices.max())) >= len(palette):
        raise DamagedFile(f"{path}: pixels of colour {highest}, but the palette has {len(palette)}; save it again")
    colours: NDArray[Any] = palette[indices]
    return colours


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels turned and mirrored as an EXIF orientation, 1 to 8, says."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation >= 5 else pixels


def _on_grid(pixels: NDArray[Any]) -> tuple[NDArray[Any], Geometry]:
    geometry = _geometry(pixels.shape[1], pixels.shape[0])
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    channels = native[None] if native.ndim == 2 else native.transpose(2, 0, 1)
    return channels.transpose(0, 2, 1)[..., None], geometry


def _geometry(width: int, height: int) -> Geometry:
    # x runs to the patient's left and y to the back, as radiology shows a slice
    return Geometry((width, height, 1), np.diag([-1.0, -1.0, 1.0, 1.0]), unit="pixel")
