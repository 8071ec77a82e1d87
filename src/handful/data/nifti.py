"""Reading and writing of NIfTI files. Written grids are exact within the header's 32-bit floats."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from handful.data.headers.nifti import UNITS, NiftiHeader, read_nifti_header
from handful.data.verified import is_gzip, open_stream, read_verified
from handful.data.volume import Geometry, NiftiTransforms
from handful.errors import DamagedFile, UnsupportedInput
from handful.jobs.digests import Digest
from handful.jobs.files import open_file
from handful.jobs.scratch import converted


def read_nifti(
    path: Path, max_bytes: int, digest: Digest | None = None, sequences: int = 1
) -> tuple[NDArray[Any], Geometry]:
    """Voxels (sequences, i, j, k) and grid. Integers stay as stored; scaled voxels become floats.

    The file is read once. If a `digest` is given, the bytes of the file are added to it.
    """
    with open_stream(path, digest) as stream:
        header, head = read_nifti_header(stream, path, sequences)
        geometry = header.geometry(path)
        count = math.prod(header.shape) * sequences
        content = read_verified(stream, path, head, header.offset + count * header.dtype.itemsize, max_bytes)
    stored = np.frombuffer(content, header.dtype, count, header.offset)
    array = converted(stored.reshape((*geometry.shape, sequences), order="F"), header.dtype.newbyteorder("="))
    return np.moveaxis(_scaled(array, header.slope, header.inter), -1, 0), geometry


def nifti_geometry(path: Path, sequences: int = 1) -> Geometry:
    """The grid, from the header."""
    return _read_header(path, sequences).geometry(path)


def nifti_notes(path: Path, sequences: int = 1) -> list[str]:
    """Unusual but valid properties of the file, one sentence each."""
    notes = []
    with open_file(path) as file:
        if path.name.lower().endswith(".gz") and not is_gzip(file):
            notes.append(f"{path}: named .gz but not compressed; read as an uncompressed file")
    header = _read_header(path, sequences)
    notes += _notes_on_transforms(path, header)
    if unit := UNITS.get(header.transforms.units & 7):
        sizes = " x ".join(f"{size:.4g}" for size in header.geometry(path).spacing)
        notes.append(f"{path}: the spacing is declared in {unit} and read as {sizes} mm; check that this is right")
    return notes


def write_nifti(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write one grey channel, compressed if the name ends in .gz. Equal content gives equal bytes.

    The fields that place the voxels are those of the scan, if it came from a NIfTI file. Else qform and sform are the
    affine, both with code 1.
    """
    if array.shape[0] != 1:
        raise UnsupportedInput(
            f"{path}: NIfTI files hold one channel, this volume has {array.shape[0]}; write .png instead"
        )
    header = header_of(geometry, array.dtype)
    image_type = nib.Nifti1Image if isinstance(header, nib.Nifti1Header) else nib.Nifti2Image
    image = image_type(array[0], None, header)
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as compressed:
                image.to_stream(compressed)
        else:
            image.to_stream(file)


def header_of(geometry: Geometry, dtype: np.dtype[Any]) -> Any:
    """The header of a new file of voxels on a grid; the fields that place them are those of `write_nifti`."""
    header = (nib.Nifti1Header if max(geometry.shape) < 2**15 else nib.Nifti2Header)()
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    if geometry.transforms is not None and _places(geometry.transforms, geometry):
        _set_transforms(header, geometry.transforms)
    else:
        header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
        header.set_qform(geometry.affine, code=1)
        header.set_sform(geometry.affine, code=1)
    return header


def _places(transforms: NiftiTransforms, geometry: Geometry) -> bool:
    """Whether the transforms are those of this grid; they are not after the grid was cropped."""
    header = NiftiHeader(geometry.shape, 1, np.dtype(np.uint8), 0, 0.0, 0.0, transforms)
    return np.array_equal(header.geometry(Path("transforms")).affine, geometry.affine)


def _set_transforms(header: Any, transforms: NiftiTransforms) -> None:
    header["pixdim"][:4] = transforms.pixdim
    header["xyzt_units"] = transforms.units
    header["qform_code"], header["sform_code"] = transforms.qform_code, transforms.sform_code
    for name, value in zip("bcd", transforms.quaternion, strict=True):
        header[f"quatern_{name}"] = value
    for name, value in zip("xyz", transforms.qoffset, strict=True):
        header[f"qoffset_{name}"] = value
    for name, row in zip("xyz", np.reshape(transforms.srows, (3, 4)), strict=True):
        header[f"srow_{name}"] = row


def _notes_on_transforms(path: Path, header: NiftiHeader) -> Iterator[str]:
    sform, transforms = header.geometry(path), header.transforms
    if transforms.sform_code <= 0:
        return
    smallest = float(sform.spacing.min())
    if transforms.qform_code > 0:
        try:
            qform = header.qform(path)
            qform[:3] *= header.mm
            distance = sform.corner_distance(Geometry(sform.shape, qform))
        except (DamagedFile, UnsupportedInput):
            yield f"{path}: the qform is broken; the sform is used"
        else:
            if distance > 0.1 * smallest:
                yield f"{path}: qform and sform differ by up to {distance:.3g} mm; the sform is used"
    declared = header.mm * np.array(transforms.pixdim[1:])
    if not np.allclose(declared, sform.spacing, rtol=0.01, atol=0):
        sizes = ", ".join(f"{size:.4g}" for size in declared)
        yield f"{path}: pixdim declares voxels of {sizes} mm, the sform other ones; the sform is used"


def _read_header(path: Path, sequences: int) -> NiftiHeader:
    with open_stream(path) as stream:
        return read_nifti_header(stream, path, sequences)[0]


def _scaled(array: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    if slope == 0 or (slope, inter) == (1, 0):
        return array
    # 32-bit floats represent every 16-bit integer exactly; wider voxels need 64 bits
    wide: Any = np.float32 if array.dtype.itemsize <= 2 else np.float64
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused
        return converted(array, wide, lambda block: block.astype(wide) * wide(slope) + wide(inter))
