"""Headers of MetaImage files (.mha, .mhd). Source: https://itk.org/Wiki/ITK/MetaIO/Documentation."""

from __future__ import annotations

import re
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handful.data.headers.text import (
    MODALITY,
    Fields,
    StoredVolume,
    affine_of,
    header_lines,
    require_one_volume,
    sibling,
)
from handful.data.volume import LPS_TO_RAS
from handful.errors import DamagedFile, UnsupportedInput

_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_LINE = re.compile(r"([^=\x00-\x1f]{1,200}?)\s*=\s*(.*)")
_OFFSETS = ("Offset", "Position", "Origin")
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_NEUTRAL = {"HeaderSize": 0, "ElementToIntensityFunctionSlope": 1, "ElementToIntensityFunctionOffset": 0}
"""Fields that move or scale voxels, and the value at which they do not."""


def read_metaimage_header(file: BufferedReader, path: Path) -> StoredVolume:
    """What the header at the start of a file says. Raises DamagedFile or UnsupportedInput."""
    fields = _fields(file, path)
    _require_plain(fields)
    dimension = fields.whole_numbers("NDims", 1)[0]
    if dimension > 4:
        raise fields.wrong("NDims", "2 to 4")
    shape = fields.whole_numbers("DimSize", dimension)
    if (channels := fields.whole_numbers("ElementNumberOfChannels", 1)[0]) != 1:
        raise UnsupportedInput(f"{path}: {channels} values per voxel; save one real-valued channel")
    volume = require_one_volume(path, shape)
    compressed = fields.flag("CompressedData", "False")
    sized = compressed and "CompressedDataSize" in fields
    stated = fields.whole_numbers("CompressedDataSize", 1, high=2**62)[0] if sized else None
    where = fields.text("ElementDataFile")
    local = where.upper() == "LOCAL"
    return StoredVolume(
        shape=volume,
        affine=LPS_TO_RAS @ _affine(fields, dimension),
        dtype=_dtype(fields),
        file=path if local else sibling(path, where),
        offset=file.tell() if local else 0,
        compressed=compressed,
        compressed_size=stated,
        modality=fields.text(MODALITY, "").strip() or None,
    )


def _fields(file: BufferedReader, path: Path) -> Fields:
    values: dict[str, str] = {}
    for number, line in enumerate(header_lines(file, path), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None and not values:
            raise DamagedFile(f"{path}: no MetaImage header, it starts with {line[:16]!r}; check where it came from")
        if match is None:
            if not line.strip():
                continue
            raise DamagedFile(f"{path}: line {number} of the header is {line[:60]!r}, not NAME = VALUE; repair it")
        name, value = match.groups()
        if name in values:
            raise DamagedFile(f"{path}: {name} is in the header twice; keep the right one")
        values[name] = value.strip()
        if name == "ElementDataFile":
            return Fields(path, {"ElementNumberOfChannels": "1", **values})
    raise DamagedFile(f"{path}: ends inside its header; copy the file again")


def _require_plain(fields: Fields) -> None:
    """Raise UnsupportedInput for voxels as text, and for what moves or scales voxels in ways that few programs read."""
    path = fields.path
    if (kind := fields.text("ObjectType", "Image")).lower() != "image":
        raise UnsupportedInput(f"{path}: ObjectType is {kind!r}; save an image, or a label map")
    if not fields.flag("BinaryData", "True"):
        raise UnsupportedInput(f"{path}: voxels are text (BinaryData = False); save one binary .mha file")
    for name, neutral in _NEUTRAL.items():
        if name in fields and fields.numbers(name, 1)[0] != neutral:
            raise UnsupportedInput(
                f"{path}: {name} is {fields.text(name)}, which not all programs heed; save one plain .mha file"
            )
    if (unit := fields.text("DistanceUnits", "mm")).lower() not in ("mm", "?", ""):
        raise UnsupportedInput(f"{path}: DistanceUnits is {unit!r}; save the file with its spacing in mm")


def _affine(fields: Fields, dimension: int) -> NDArray[np.float64]:
    """In LPS coordinates. Each row of the matrix is the direction of one axis."""
    spacing = fields.numbers("ElementSpacing", dimension)
    if not (spacing > 0).all():
        raise fields.wrong("ElementSpacing", "positive")
    origin = fields.numbers(_one_of(fields, _OFFSETS), dimension)
    name = _one_of(fields, _MATRICES)
    rows = fields.numbers(name, dimension**2).reshape(dimension, dimension)
    if np.abs(np.linalg.norm(rows, axis=1) - 1).max() > 1e-3:
        raise fields.wrong(name, "rows of length 1, one per axis")
    return affine_of(rows.T * spacing, origin)


def _one_of(fields: Fields, names: tuple[str, ...]) -> str:
    """The one of several names for the same field that the header uses."""
    used = [name for name in names if name in fields]
    if len(used) > 1:
        raise DamagedFile(f"{fields.path}: both {used[0]} and {used[1]} are in the header; keep the right one")
    return used[0] if used else names[0]


def _dtype(fields: Fields) -> np.dtype[np.generic]:
    kind = fields.text("ElementType")
    if (name := kind.removeprefix("MET_")) not in _TYPES:
        raise UnsupportedInput(f"{fields.path}: voxels are {kind[:40]!r}; save one real-valued channel")
    dtype: np.dtype[np.generic] = np.dtype(_TYPES[name])
    if dtype.itemsize == 1:
        return dtype
    orders = {fields.flag(key) for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if key in fields}
    if len(orders) > 1:
        raise DamagedFile(f"{fields.path}: the header states both byte orders; keep the right one")
    if not orders:
        fields.flag("BinaryDataByteOrderMSB")  # says that it is missing
    return dtype.newbyteorder(">" if orders.pop() else "<")
