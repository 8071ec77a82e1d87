"""NRRD and MetaImage files: read from their verified bytes, written by SimpleITK."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from handful.data.headers.metaimage import read_metaimage_header
from handful.data.headers.nrrd import read_nrrd_header
from handful.data.headers.text import StoredVolume, require_volumes
from handful.data.verified import read_payload
from handful.data.volume import LPS_TO_RAS, Geometry
from handful.errors import UnsupportedInput
from handful.jobs.files import open_file
from handful.jobs.scratch import converted, is_large

LEVEL = 4
"""Compression of large volumes, as of NIfTI files."""


def read_itk(path: Path, max_bytes: int, sequences: int = 1) -> tuple[NDArray[Any], Geometry]:
    """Voxels (sequences, i, j, k) as stored, and their grid in RAS coordinates."""
    header = _header(path, sequences)
    geometry = header.geometry(path)
    content = read_payload(
        header.file,
        header.offset,
        header.size,
        max_bytes,
        compressed=header.compressed,
        stored=header.compressed_size,
    )
    stored = np.frombuffer(content, header.dtype)
    array = converted(stored.reshape(header.stored_shape, order="F"), header.dtype.newbyteorder("="))
    return np.moveaxis(array, header.axis, 0), geometry


def itk_geometry(path: Path, sequences: int = 1) -> Geometry:
    """The grid, from the header."""
    return _header(path, sequences).geometry(path)


def itk_modality(path: Path) -> str | None:
    """The DICOM modality (0008,0060), if the program that made the file kept it."""
    return _header(path).modality


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write one grey channel, compressed, header and voxels in one file. Memory does not grow with a large volume."""
    if array.shape[0] != 1:
        raise UnsupportedInput(
            f"{path}: this format holds one channel, this volume has {array.shape[0]}; write .png instead"
        )
    if is_large(array.nbytes):
        _write_piecewise(path, array[0], geometry)
    else:
        _write_at_once(path, array[0], geometry)


def _write_piecewise(path: Path, voxels: NDArray[Any], geometry: Geometry) -> None:
    """Write the header that SimpleITK writes for one voxel, with the true size, and the voxels slice by slice."""
    _write_at_once(path, voxels[:1, :1, :1], geometry)
    nrrd = path.suffix.lower() == ".nrrd"
    header, end, _ = path.read_bytes().partition(b"\n\n" if nrrd else b"= LOCAL\n")
    size = " ".join(map(str, voxels.shape)).encode()
    header = re.sub(rb"(?m)^(sizes:|DimSize =) 1 1 1$", rb"\1 " + size, header)
    sized = re.compile(rb"(?<=\nCompressedDataSize = )\d+")
    with path.open("wb") as file:
        file.write(sized.sub(b"%016d" % 0, header) + end)
        began = file.tell()
        packer = zlib.compressobj(LEVEL, wbits=zlib.MAX_WBITS + (16 if nrrd else 0))  # 16: gzip
        for plane in np.moveaxis(voxels, -1, 0):
            file.write(packer.compress(plane.tobytes(order="F")))
        file.write(packer.flush())
        packed = file.tell() - began
        file.seek(0)
        file.write(sized.sub(b"%016d" % packed, header))


def _write_at_once(path: Path, voxels: NDArray[Any], geometry: Geometry) -> None:
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0), isVector=False)
    affine = LPS_TO_RAS @ geometry.affine
    image.SetSpacing(geometry.spacing.tolist())
    image.SetDirection((affine[:3, :3] / geometry.spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({_reason(error)})") from error


def _header(path: Path, sequences: int = 1) -> StoredVolume:
    with open_file(path) as file:
        if file.peek(4)[:4] == b"NRRD":
            return read_nrrd_header(file, path, sequences)
        header = read_metaimage_header(file, path)
    require_volumes(path, header.shape, (1,), sequences)
    return header


def _reason(error: RuntimeError) -> str:
    """The main line of ITK's message, without addresses and source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ITK ERROR")), lines[0] if lines else "no reason given")
