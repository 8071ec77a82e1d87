"""Probabilities of labels on the grid of a scan: one NIfTI file per label, in steps of 1/255."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from handful.data.volume import Geometry
from handful.jobs.atomic import replacing

STEPS = 255


def write_probability(path: Path, probability: Float[np.ndarray[Any, Any], "i j k"], geometry: Geometry) -> None:
    """Write values in [0, 1] as .nii.gz, completely or not at all.

    The voxels are stored as whole numbers from 0 to 255, and the header's slope of 1/255 makes probabilities of them
    again in any program for NIfTI.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = _header(geometry)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as compressed,
    ):
        compressed.write(header.binaryblock + bytes(int(header["vox_offset"]) - len(header.binaryblock)))
        for plane in np.moveaxis(probability, -1, 0):
            compressed.write(_as_steps(plane).tobytes(order="F"))


def _header(geometry: Geometry) -> Any:
    kind = nib.Nifti1Image if max(geometry.shape) < 2**15 else nib.Nifti2Image
    image = kind(np.broadcast_to(np.uint8(0), geometry.shape), geometry.affine)
    image.header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    image.set_qform(geometry.affine, code=1)
    image.set_sform(geometry.affine, code=1)
    header = image.header
    header["scl_slope"], header["scl_inter"] = 1 / STEPS, 0
    header["vox_offset"] = header.single_vox_offset
    return header


def _as_steps(plane: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(np.clip(plane.astype(np.float32), 0, 1) * STEPS).astype(np.uint8)
