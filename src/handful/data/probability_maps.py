"""Probabilities of labels on the grid of a scan: one NIfTI file per label, in steps of 1/255."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from handful.data.nifti import header_of
from handful.data.volume import Geometry
from handful.jobs.atomic import replacing

STEPS = 255


def write_probability(path: Path, probability: Float[np.ndarray[Any, Any], "i j k"], geometry: Geometry) -> None:
    """Write values in [0, 1] as .nii.gz, completely or not at all.

    The voxels are stored as whole numbers from 0 to 255, and the header's slope of 1/255 makes probabilities of them
    again in any program for NIfTI. They lie on their scan in every viewer, as label maps do (`write_nifti`).
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
    header = header_of(geometry, np.dtype(np.uint8))
    header["scl_slope"], header["scl_inter"] = 1 / STEPS, 0
    header["vox_offset"] = header.single_vox_offset
    return header


def _as_steps(plane: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(np.clip(plane.astype(np.float32), 0, 1) * STEPS).astype(np.uint8)
