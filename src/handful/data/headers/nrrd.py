"""Headers of NRRD files (.nrrd, .nhdr). Source: https://teem.sourceforge.net/nrrd/format.html."""

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
    require_volumes,
    sibling,
)
from handful.data.volume import LPS_TO_RAS
from handful.errors import DamagedFile, UnsupportedInput

_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names.split("|")}
_FIELDS = {
    "content", "number", "type", "block size", "dimension", "space", "space dimension", "sizes", "encoding", "endian",
    "space origin", "space directions", "space units", "spacings", "thicknesses", "axis mins", "axis maxs", "centers",
    "kinds", "labels", "units", "min", "max", "old min", "old max", "data file", "line skip", "byte skip",
    "measurement frame", "sample units",
}  # fmt: skip
_SAME = {
    "centerings": "centers", "axismins": "axis mins", "axismaxs": "axis maxs", "datafile": "data file",
    "lineskip": "line skip", "byteskip": "byte skip", "oldmin": "old min", "oldmax": "old max",
    "blocksize": "block size", "sampleunits": "sample units",
}  # fmt: skip
_SPACES = {
    "right-anterior-superior": np.eye(4), "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1, 1, 1]), "las": np.diag([-1.0, 1, 1, 1]),
    "left-posterior-superior": LPS_TO_RAS, "lps": LPS_TO_RAS,
}  # fmt: skip
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???")
_VECTOR = re.compile(r"none|\(([^()]*)\)")
_ENCODINGS = {"raw": False, "gzip": True, "gz": True}


def read_nrrd_header(file: BufferedReader, path: Path, sequences: int = 1) -> StoredVolume:
    """What the header at the start of a file says. Raises DamagedFile or UnsupportedInput.

    `sequences` is the number of values that each voxel must have.
    """
    fields, keys = _fields(file, path)
    for name in ("byte skip", "line skip"):
        if fields.text(name, "0") != "0":
            raise UnsupportedInput(f"{path}: uses a {name}; save header and voxels in one .nrrd file")
    dimension = fields.whole_numbers("dimension", 1)[0]
    if dimension > 4:
        raise fields.wrong("dimension", "2 to 4")
    sizes = fields.whole_numbers("sizes", dimension)
    vectors = _vectors(fields, dimension)
    spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    others = [axis for axis in range(dimension) if axis not in spatial]
    _require_values(fields, keys, sizes, others, sequences)
    shape = require_one_volume(path, tuple(sizes[axis] for axis in spatial))
    encoding = fields.text("encoding").lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedInput(f"{path}: encoding {encoding[:40]!r}; save it as raw or gzip")
    detached = fields.text("data file") if "data file" in fields else None
    return StoredVolume(
        shape=shape,
        affine=_affine(fields, [vector for vector in vectors if vector is not None]),
        dtype=_dtype(fields),
        file=path if detached is None else sibling(path, detached),
        offset=file.tell() if detached is None else 0,
        compressed=_ENCODINGS[encoding],
        compressed_size=None,
        modality=keys.get(MODALITY, "").strip() or None,
        sequences=sequences,
        axis=others[0] if others else 3,
    )


def _fields(file: BufferedReader, path: Path) -> tuple[Fields, dict[str, str]]:
    """The fields (name: value) and the free keys (key:=value) up to the first empty line."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for number, line in enumerate(header_lines(file, path), start=1):
        if number == 1:
            if not re.fullmatch(r"NRRD000[1-5]", line):
                raise DamagedFile(f"{path}: unknown version of NRRD, {line[:16]!r}; check where it came from")
            continue
        if not line:
            return Fields(path, fields), keys
        if line.startswith("#"):
            continue
        key, assigned, text = line.partition(":=")
        if assigned and ": " not in key:
            keys[key] = text
            continue
        name, colon, value = line.partition(":")
        name = _SAME.get(name.strip().lower(), name.strip().lower())
        if not colon or name not in _FIELDS:
            raise DamagedFile(f"{path}: line {number} of the header, {line[:60]!r}, is no field of NRRD; repair it")
        if name in fields:
            raise DamagedFile(f"{path}: {name} is in the header twice; keep the right one")
        fields[name] = value.strip()
        if name == "data file":
            sibling(path, fields[name])  # a list of files may follow, which is refused
    if "data file" not in fields:
        raise DamagedFile(f"{path}: ends inside its header; copy the file again")
    return Fields(path, fields), keys


def _vectors(fields: Fields, dimension: int) -> list[NDArray[np.float64] | None]:
    """The step along each axis in space; None for an axis that is not in space, as for several values per voxel."""
    path = fields.path
    if dimension == 3 and "space directions" not in fields:
        raise UnsupportedInput(f"{path}: no space directions, so left and right are unknown; set them in the header")
    text = fields.text("space directions")
    found = [match.group(0) for match in _VECTOR.finditer(text)]
    if len(found) != dimension or _VECTOR.sub("", text).strip():
        raise fields.wrong("space directions", f"{dimension} vectors such as (1,0,0)")
    spatial = sum(vector != "none" for vector in found)
    kinds = fields.text("kinds", " ".join(["???"] * dimension)).split()
    if len(kinds) != dimension:
        raise fields.wrong("kinds", f"{dimension} words")
    for vector, kind in zip(found, kinds, strict=True):
        if vector != "none" and kind.lower() not in ("domain", "space", "???", "none"):
            raise UnsupportedInput(f"{path}: an axis of kind {kind[:40]!r} has a direction in space; save one volume")
    return [
        None if vector == "none" else fields.parsed("space directions", _parts(vector), spatial) for vector in found
    ]


def _require_values(
    fields: Fields, keys: dict[str, str], sizes: tuple[int, ...], others: list[int], sequences: int
) -> None:
    further = tuple(sizes[axis] for axis in others)
    values = int(np.prod(further))
    if sequences > 1:
        if len(others) > 1:
            raise UnsupportedInput(f"{fields.path}: {len(others)} axes that are not in space; save one of them")
        require_volumes(fields.path, sizes, further, sequences)
    elif values > 1 and any(key.startswith("Segment0_") for key in keys):
        raise UnsupportedInput(
            f"{fields.path}: segments overlap ({values} layers), but a label map has one label per voxel; "
            "in 3D Slicer, remove the overlap or export the segments as a label map"
        )
    elif values > 1:
        raise UnsupportedInput(
            f"{fields.path}: {values} values per voxel; if they are sequences such as T1 and FLAIR, name them "
            "(channel_names in dataset.json, or --channels); else save one real-valued channel"
        )


def _affine(fields: Fields, vectors: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """In RAS coordinates."""
    columns = np.array(vectors).T
    origin = fields.parsed("space origin", _parts(fields.text("space origin")), len(vectors))
    _require_millimetres(fields)
    if "spacings" in fields:
        lengths = [f"{length:.6g}" for length in np.linalg.norm(columns, axis=0)]
        raise DamagedFile(
            f"{fields.path}: has both spacings and space directions (voxels of {', '.join(lengths)}); "
            "remove the spacings from the header"
        )
    if len(vectors) == 2 and "space" not in fields:  # ITK's pictures
        return LPS_TO_RAS @ affine_of(columns, origin)
    if "space" not in fields:
        raise UnsupportedInput(
            f"{fields.path}: no space, so left and right are unknown; "
            "set it in the header, for example 'space: left-posterior-superior'"
        )
    space = fields.text("space")
    if space.lower() not in _SPACES:
        raise UnsupportedInput(
            f"{fields.path}: space {space[:60]!r} does not say where left and right of the patient are; "
            "set left-posterior-superior, right-anterior-superior or left-anterior-superior"
        )
    return _SPACES[space.lower()] @ affine_of(columns, origin)


def _require_millimetres(fields: Fields) -> None:
    units = fields.text("space units", "")
    for unit in re.findall(r'"([^"]*)"', units) or units.split():
        if unit.strip().lower() not in _MM:
            raise UnsupportedInput(f"{fields.path}: space units are {unit[:40]!r}; save the file in mm")


def _parts(vector: str) -> list[str]:
    return [part.strip() for part in vector.strip().strip("()").split(",")]


def _dtype(fields: Fields) -> np.dtype[np.generic]:
    kind = fields.text("type")
    if kind.lower() not in _DTYPES:
        raise UnsupportedInput(f"{fields.path}: voxels of type {kind[:40]!r}; save one real-valued channel")
    dtype: np.dtype[np.generic] = np.dtype(_DTYPES[kind.lower()])
    if dtype.itemsize == 1:
        return dtype
    endian = fields.text("endian").lower()
    if endian not in ("little", "big"):
        raise fields.wrong("endian", "little or big")
    return dtype.newbyteorder("<" if endian == "little" else ">")
