"""Reading and writing of NIfTI files. Written grids are exact within the header's 32-bit floats."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from handful.data.verified import Stream, is_gzip, open_stream, read_head, read_verified
from handful.data.volume import Geometry
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.digests import Digest
from handful.jobs.files import open_file

_NIFTI1_HEADER, _NIFTI2_HEADER = 348, 540
"""Sizes in bytes, as stated in the first field of each header."""


def read_nifti(path: Path, max_bytes: int, digest: Digest | None = None) -> tuple[NDArray[Any], Geometry]:
    """Voxels (1, i, j, k) and grid. Integers stay as stored; scaled voxels become floats.

    The file is read once. If a `digest` is given, the bytes of the file are added to it.
    """
    with open_stream(path, digest) as stream:
        head = _read_head(stream, path)
        header = _parse(path, head)
        geometry, dtype, offset = _geometry(path, header), header.get_data_dtype(), int(header.get_data_offset())
        if dtype.fields is not None or dtype.kind not in "iuf":
            kind = "RGB" if dtype.fields is not None else f"{dtype}"
            raise UnsupportedInput(f"{path}: voxels are {kind}, not grey; save one real-valued channel")
        count = math.prod(geometry.shape)
        content = read_verified(stream, path, head, offset + count * dtype.itemsize, max_bytes)
    stored = np.frombuffer(content, dtype, count, offset)
    array = stored.astype(dtype.newbyteorder("="), copy=False).reshape(geometry.shape, order="F")
    return _scaled(array, *header.get_slope_inter())[None], geometry


def nifti_geometry(path: Path) -> Geometry:
    """The grid, from the header."""
    return _geometry(path, _read_header(path))


def nifti_notes(path: Path) -> list[str]:
    """Unusual but valid properties of the file, one sentence each."""
    notes = []
    with open_file(path) as file:
        if path.name.lower().endswith(".gz") and not is_gzip(file):
            notes.append(f"{path}: named .gz but not compressed; read as an uncompressed file")
    header = _read_header(path)
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        sform = _geometry(path, header)
        try:
            distance = sform.corner_distance(Geometry(sform.shape, header.get_qform()))
        except (ValueError, UnsupportedInput):
            notes.append(f"{path}: the qform is broken; the sform is used")
        else:
            if distance > 0.1 * float(sform.spacing.min()):
                notes.append(f"{path}: qform and sform differ by up to {distance:.3g} mm; the sform is used")
    if unit := {1: "metres", 3: "micrometres"}.get(int(header["xyzt_units"]) & 7):
        notes.append(f"{path}: the spacing is declared in {unit}, but read as mm; rescale the header")
    return notes


def write_nifti(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write one grey channel, compressed if the name ends in .gz. Equal content gives equal bytes."""
    if array.shape[0] != 1:
        raise UnsupportedInput(
            f"{path}: NIfTI files hold one channel, this volume has {array.shape[0]}; write .png instead"
        )
    image_type = nib.Nifti1Image if max(geometry.shape) < 2**15 else nib.Nifti2Image
    image = image_type(array[0], geometry.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    image.set_qform(geometry.affine, code=1)
    image.set_sform(geometry.affine, code=1)
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as compressed:
                image.to_stream(compressed)
        else:
            image.to_stream(file)


def _read_header(path: Path) -> Any:
    with open_stream(path) as stream:
        return _parse(path, _read_head(stream, path))


def _read_head(stream: Stream, path: Path) -> bytes:
    """The bytes of the header: 540 for NIfTI-2, else 348, so that a small file of another kind is not truncated."""
    start = stream.read(4)
    stated = (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    size = _NIFTI2_HEADER if _NIFTI2_HEADER in stated else _NIFTI1_HEADER
    return read_head(stream, path, size, start)


def _parse(path: Path, head: bytes) -> Any:
    if head[344:348] == b"ni1\0":
        raise UnsupportedInput(f"{path}: header of a .hdr/.img pair; convert it to one .nii.gz file")
    if head[344:348] != b"n+1\0" and head[4:8] != b"n+2\0":
        raise DamagedFile(f"{path}: not a NIfTI file, it starts with {head[:16]!r}; check where it came from")
    try:
        return (nib.Nifti2Header if len(head) == _NIFTI2_HEADER else nib.Nifti1Header)(head)
    except (HeaderDataError, WrapStructError) as error:
        raise DamagedFile(f"{path}: impossible header ({error}); repair the header") from error


def _spatial_shape(path: Path, header: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    if any(n != 1 for n in shape[3:]):
        raise UnsupportedInput(
            f"{path}: {len(shape)}D, shape {shape}, but one volume is expected; split it into 3D files, one per frame"
        )
    if not shape or min(shape) < 1:
        raise DamagedFile(f"{path}: header declares the shape {shape}; repair the header")
    i, j, k = (*shape, 1, 1)[:3]
    return i, j, k


def _geometry(path: Path, header: Any) -> Geometry:
    shape = _spatial_shape(path, header)
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise UnsupportedInput(
            f"{path}: neither qform nor sform, so left and right are unknown; set one of them in the header"
        )
    try:
        return Geometry(shape, np.asarray(header.get_best_affine(), np.float64))
    except (HeaderDataError, ValueError) as error:
        raise DamagedFile(f"{path}: impossible orientation ({error}); repair the header") from error
    except UnsupportedInput as error:
        raise UnsupportedInput(f"{path}: {error}") from error


def _scaled(array: NDArray[Any], slope: float | None, inter: float | None) -> NDArray[Any]:
    if slope is None or (slope == 1 and not inter):
        return array
    # 32-bit floats represent every 16-bit integer exactly; wider voxels need 64 bits
    wide: Any = np.float32 if array.dtype.itemsize <= 2 else np.float64
    scaled: NDArray[Any] = array.astype(wide) * wide(slope) + wide(inter or 0.0)
    return scaled
