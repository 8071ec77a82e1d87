"""Headers of NIfTI-1 and NIfTI-2 files. Every field that places or scales voxels is checked.

Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.headers.text import require_volumes
from handful.data.verified import Stream, read_head
from handful.data.volume import Geometry, NiftiTransforms
from handful.errors import DamagedFile, UnsupportedInput

_NIFTI1 = {
    "dim": (40, "8i2"),
    "intent_code": (68, "i2"),
    "datatype": (70, "i2"),
    "bitpix": (72, "i2"),
    "pixdim": (76, "8f4"),
    "vox_offset": (108, "f4"),
    "scl_slope": (112, "f4"),
    "scl_inter": (116, "f4"),
    "xyzt_units": (123, "u1"),
    "qform_code": (252, "i2"),
    "sform_code": (254, "i2"),
    "quatern": (256, "3f4"),
    "qoffset": (268, "3f4"),
    "srow": (280, "12f4"),
}
_NIFTI2 = {
    "dim": (16, "8i8"),
    "intent_code": (504, "i4"),
    "datatype": (12, "i2"),
    "bitpix": (14, "i2"),
    "pixdim": (104, "8f8"),
    "vox_offset": (168, "i8"),
    "scl_slope": (176, "f8"),
    "scl_inter": (184, "f8"),
    "xyzt_units": (500, "i4"),
    "qform_code": (344, "i4"),
    "sform_code": (348, "i4"),
    "quatern": (352, "3f8"),
    "qoffset": (376, "3f8"),
    "srow": (400, "12f8"),
}
_SIZE1, _SIZE2 = 348, 540
"""Sizes in bytes, as stated in the first field of each header."""
_EXTENDER = 4
_MAX_OFFSET = 2**30
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "single bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256",
    2304: "RGBA",
}  # fmt: skip
_NOT_IMAGES = {1008: "a set of points", 1009: "triangles", 2001: "time series of a surface", 2002: "nodes of a surface"}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres per unit, by the code of the unit: unknown, metre, millimetre, micrometre."""
UNITS = {1: "metres", 3: "micrometres"}
_CODES = range(6)


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says about the voxels and their place."""

    shape: tuple[int, int, int]
    sequences: int
    """Number of volumes along a further axis; 1 without one."""
    dtype: np.dtype[Any]
    offset: int
    """First byte of the voxels."""
    slope: float
    """0 if the voxels are not scaled."""
    inter: float
    transforms: NiftiTransforms

    @property
    def mm(self) -> float:
        """Millimetres per unit of the header."""
        return _MM[self.transforms.units & 7]

    def geometry(self, path: Path) -> Geometry:
        """The grid by the sform if its code is positive, else by the qform."""
        which = "sform" if self.transforms.sform_code > 0 else "qform"
        if which == "qform" and self.transforms.qform_code <= 0:
            raise UnsupportedInput(
                f"{path}: neither qform nor sform, so left and right are unknown; set one of them in the header"
            )
        affine = self.sform() if which == "sform" else self.qform(path)
        affine[:3] *= self.mm
        try:
            return Geometry(self.shape, affine, transforms=self.transforms)
        except UnsupportedInput as error:
            other = which == "sform" and self.transforms.qform_code > 0
            hint = "; or set sform_code to 0, so that the qform is used" if other else ""
            raise UnsupportedInput(f"{path}: {which}: {error}{hint}") from error

    def sform(self) -> NDArray[np.float64]:
        """The affine (4, 4) of the sform, in the unit of the header."""
        return np.vstack([np.reshape(self.transforms.srows, (3, 4)), [0.0, 0, 0, 1]])

    def qform(self, path: Path) -> NDArray[np.float64]:
        """The affine (4, 4) of the qform, in the unit of the header."""
        sign, *sizes = self.transforms.pixdim
        if sign not in (-1.0, 0.0, 1.0):
            raise DamagedFile(f"{path}: qform: pixdim[0] is {sign:g}, must be 1 or -1; repair the header")
        for axis, size in enumerate(sizes, start=1):
            if not (0 < size < np.inf):
                raise DamagedFile(
                    f"{path}: qform: pixdim[{axis}] is {size:g}, so the voxel size is unknown; "
                    "set it to the voxel size in the header"
                )
        b, c, d = self.transforms.quaternion
        rest = 1.0 - (b * b + c * c + d * d)
        if not rest >= -1e-5:
            raise DamagedFile(f"{path}: qform: the quaternion ({b:g}, {c:g}, {d:g}) is no rotation; repair the header")
        a = np.sqrt(max(rest, 0.0))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine = np.eye(4)
        affine[:3, :3] = rotation * [sizes[0], sizes[1], sizes[2] * (-1 if sign < 0 else 1)]
        affine[:3, 3] = self.transforms.qoffset
        return affine


def read_nifti_header(stream: Stream, path: Path, sequences: int = 1) -> tuple[NiftiHeader, bytes]:
    """The header at the start of a stream, and the bytes read. Raises DamagedFile or UnsupportedInput.

    `sequences` is the length that the fourth axis must have.
    """
    start = stream.read(4)
    orders = {int.from_bytes(start, "little"): "<", int.from_bytes(start, "big"): ">"}
    second = _SIZE2 in orders
    head = read_head(stream, path, _SIZE2 if second else _SIZE1, start)
    _require_magic(path, head, second)
    order = orders.get(_SIZE2 if second else _SIZE1)
    if order is None:
        raise DamagedFile(f"{path}: the header states a size of {min(orders)} bytes, not 348; repair the header")
    layout = (_NIFTI2 if second else _NIFTI1).items()
    fields = {name: np.frombuffer(head, _dtype_of_field(kind, order), 1, at)[0] for name, (at, kind) in layout}
    with np.errstate(all="ignore"):
        header = NiftiHeader(
            _shape(path, fields["dim"], sequences),
            sequences,
            _dtype(path, int(fields["datatype"]), int(fields["bitpix"]), order),
            _offset(path, float(fields["vox_offset"]), len(head) + _EXTENDER),
            *_scale(path, float(fields["scl_slope"]), float(fields["scl_inter"])),
            _transforms(path, fields),
        )
    if (kind := _NOT_IMAGES.get(int(fields["intent_code"]))) is not None:
        raise UnsupportedInput(f"{path}: holds {kind} (intent_code {fields['intent_code']}), not an image; give a scan")
    return header, head


def _dtype_of_field(kind: str, order: str) -> np.dtype[Any]:
    """The type of one number ("f4") or of several ("8f4")."""
    scalar = np.dtype(order + kind[-2:])
    return np.dtype((scalar, (int(kind[:-2]),))) if kind[:-2] else scalar


def _require_magic(path: Path, head: bytes, second: bool) -> None:
    magic = head[4:12] if second else head[344:348]
    if magic[:3] in (b"ni1", b"ni2"):
        raise UnsupportedInput(f"{path}: header of a .hdr/.img pair; convert it to one .nii.gz file")
    if second and magic[:3] == b"n+2" and magic != b"n+2\0\r\n\x1a\n":
        raise DamagedFile(f"{path}: changed by a transfer as text; copy the file again, in binary mode")
    if magic != (b"n+2\0\r\n\x1a\n" if second else b"n+1\0"):
        raise DamagedFile(f"{path}: not a NIfTI file, it starts with {head[:16]!r}; check where it came from")


def _shape(path: Path, dim: NDArray[Any], sequences: int) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7:
        raise DamagedFile(f"{path}: header declares {dim[0]} dimensions; repair dim[0] in the header")
    shape = tuple(int(n) for n in dim[1 : 1 + int(dim[0])])
    if min(shape) < 1:
        raise DamagedFile(f"{path}: header declares the shape {shape}; repair the header")
    require_volumes(path, shape, shape[3:], sequences)
    i, j, k = (*shape, 1, 1)[:3]
    return i, j, k


def _dtype(path: Path, code: int, bits: int, order: str) -> np.dtype[Any]:
    if code in _OTHER_TYPES:
        raise UnsupportedInput(f"{path}: voxels are {_OTHER_TYPES[code]}, not grey; save one real-valued channel")
    if code not in _TYPES:
        raise DamagedFile(f"{path}: unknown voxel type {code} in the header; repair datatype in the header")
    dtype = np.dtype(order + _TYPES[code])
    if bits != 8 * dtype.itemsize:
        raise DamagedFile(
            f"{path}: header declares {dtype.name} voxels of {bits} bits; repair datatype or bitpix in the header"
        )
    return dtype


def _offset(path: Path, offset: float, least: int) -> int:
    if not (offset >= least and offset <= _MAX_OFFSET and offset == int(offset)):
        raise DamagedFile(
            f"{path}: vox_offset is {offset:g}, but the voxels start at byte {least} or later; "
            "repair vox_offset in the header"
        )
    return int(offset)


def _scale(path: Path, slope: float, inter: float) -> tuple[float, float]:
    """Slope and intercept; (0, 0) if the voxels are not scaled: slope 0 by the standard, NaN as many programs write."""
    if slope == 0 or np.isnan(slope):
        return 0.0, 0.0
    for name, value in (("scl_slope", slope), ("scl_inter", inter)):
        if not np.isfinite(value):
            good = "1 and scl_inter to 0" if name == "scl_slope" else "0"
            raise DamagedFile(
                f"{path}: {name} is {value:g}, so the grey values are unknown; "
                f"set {name} to {good} in the header if the stored values are the grey values"
            )
    return slope, inter


def _transforms(path: Path, fields: dict[str, Any]) -> NiftiTransforms:
    units = int(fields["xyzt_units"])
    if units & 7 not in _MM or not 0 <= units < 256:
        raise DamagedFile(f"{path}: xyzt_units is {units}, which is no unit; set it to 2 (mm) in the header")
    codes = {name: int(fields[name]) for name in ("qform_code", "sform_code")}
    for name, code in codes.items():
        if code not in _CODES:
            raise DamagedFile(f"{path}: {name} is {code}, must be 0 to 5; repair the header")
    sign, i, j, k = (float(size) for size in fields["pixdim"][:4])
    b, c, d = (float(part) for part in fields["quatern"])
    x, y, z = (float(part) for part in fields["qoffset"])
    srows = tuple(float(part) for part in fields["srow"])
    return NiftiTransforms((sign, i, j, k), (b, c, d), (x, y, z), srows, **codes, units=units)
