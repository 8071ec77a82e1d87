"""Images and label maps with their position in the patient: Geometry, Volume, Labels and LabelMap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer, Num
from numpy.typing import NDArray

from handful.errors import GeometryMismatch, LabelError, UnsupportedInput
from handful.jobs.plain_text import counted
from handful.jobs.scratch import blocks

IGNORE = -1
"""Value of an unlabelled voxel: neither background nor a label."""

_SMALLEST, _LARGEST = 1e-9, 1e6
"""Possible voxel sizes: from a picometre to a kilometre, in mm."""


@dataclass(frozen=True)
class NiftiTransforms:
    """The fields of a NIfTI header that place the voxels, as stored.

    Viewers differ in the transform that they use. A label map with the same fields lies on its scan in all of them.
    """

    pixdim: tuple[float, float, float, float]
    quaternion: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    srows: tuple[float, ...]
    """The 12 numbers of the sform, row by row."""
    qform_code: int
    sform_code: int
    units: int
    """The byte `xyzt_units`."""


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world frame of DICOM and ITK (left, posterior, superior) to that of NIfTI (right, anterior, superior)."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid: its shape (i, j, k) and the affine (4, 4) from voxel indices to RAS world coordinates in mm."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    unit: Literal["mm", "pixel"] = "mm"
    """Unit of the world coordinates; "pixel" for pictures, whose pixel size is unknown."""
    transforms: NiftiTransforms | None = None
    """Both transforms of a scan from a NIfTI file; `affine` is the one of them that handful uses."""

    def __post_init__(self) -> None:
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise UnsupportedInput(f"affine must be a finite 4x4 matrix, got {self.affine.tolist()}; repair the header")
        spacing = self.spacing
        # relative to the voxel size: a volume of 65 nm voxels is sound
        if not spacing.all() or abs(np.linalg.det(self.affine[:3, :3] / spacing)) < 1e-6:
            raise UnsupportedInput(f"affine is singular, spacing {spacing.tolist()}; repair the header")
        if spacing.min() < _SMALLEST or spacing.max() > _LARGEST:
            raise UnsupportedInput(f"impossible voxel size, spacing {spacing.tolist()} mm; repair the header")

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel sizes (3,) along i, j, k, in `unit`."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), dtype=np.float64)

    def corner_distance(self, other: Geometry) -> float:
        """Largest distance between corresponding corners of two grids of equal shape, in `unit`."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1], indexing="ij")).reshape(4, -1)
        return float(np.abs((self.affine - other.affine) @ corners).max())

    def require_same(self, other: Geometry, what: str) -> None:
        """Raise GeometryMismatch unless both grids have the same shape and differ by at most half a voxel.

        `what` names the two in the message.
        """
        if self.shape != other.shape:
            raise GeometryMismatch(
                f"{what}: grids of {self.shape} and {other.shape} voxels; resample one onto the other"
            )
        distance, half_voxel = self.corner_distance(other), float(self.spacing.min()) / 2
        if distance > half_voxel:
            raise GeometryMismatch(
                f"{what}: the grids have the same shape but differ by up to {distance:.3g} {self.unit} "
                f"(half a voxel is {half_voxel:.3g}); resample one onto the other or correct the header"
            )


@dataclass(frozen=True, eq=False)
class Volume:
    """An image: voxels (channels, i, j, k) of any real type on a grid.

    It has one channel (grey), three (colour), or one for each of its `sequences`.
    """

    array: Num[np.ndarray[Any, Any], "c i j k"]
    geometry: Geometry
    modality: str | None = None
    """By its DICOM tag or as declared by the data set, for example 'CT' or 'MR'; None if unknown."""
    sequences: tuple[str, ...] = ()
    """Names of the sequences that the channels are, such as 'T1' and 'FLAIR'; empty for grey and colour."""

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or (not self.sequences and self.array.shape[0] not in (1, 3)):
            raise UnsupportedInput(
                f"a volume is (1 or 3 channels, i, j, k), got shape {self.array.shape}; name the channels if they are "
                "sequences"
            )
        if self.sequences and len(set(self.sequences)) != self.array.shape[0]:
            raise UnsupportedInput(
                f"{counted(self.array.shape[0], 'channel')}, but the sequences are {', '.join(self.sequences)}; "
                "give each channel its own name"
            )
        if self.array.shape[1:] != self.geometry.shape:
            raise GeometryMismatch(f"voxels of shape {self.array.shape[1:]} on a {self.geometry.shape} grid")

    def require_grey(self, what: str) -> None:
        """Raise UnsupportedInput unless there is one channel; `what` names the image in the message."""
        if self.array.shape[0] != 1:
            raise UnsupportedInput(f"{what}: has {self.array.shape[0]} channels; give one grey file per sequence")


@dataclass(frozen=True)
class Labels:
    """The foreground classes of a task: voxel value and name of each, in ascending order; background is 0."""

    values: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.names) or not self.values:
            raise LabelError(f"labels need one name per value, got values {self.values} and names {self.names}")
        if any(v <= 0 for v in self.values) or list(self.values) != sorted(set(self.values)):
            raise LabelError(f"label values must be positive and ascending, got {self.values}")

    @classmethod
    def of(cls, names: Mapping[int, str]) -> Labels:
        """Labels from {value: name}; 0 (background) and negative values are left out."""
        items = sorted((int(v), str(n)) for v, n in names.items() if int(v) > 0)
        return cls(tuple(v for v, _ in items), tuple(n for _, n in items))

    def __len__(self) -> int:
        return len(self.values)

    def as_dict(self) -> dict[int, str]:
        """{value: name}."""
        return dict(zip(self.values, self.names, strict=True))


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A segmentation: voxels (i, j, k) with the value 0, a value of `labels`, or IGNORE, on a grid."""

    array: Integer[np.ndarray[Any, Any], "i j k"]
    geometry: Geometry
    labels: Labels

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise GeometryMismatch(f"labels of shape {self.array.shape} on a {self.geometry.shape} grid")


def require_finite(array: NDArray[Any], what: str) -> None:
    """Raise UnsupportedInput if voxels (..., i, j, k) are NaN or infinite; `what` names the array in the message."""
    if array.dtype.kind == "f" and not all(np.isfinite(block).all() for block in blocks(array)):
        finite = np.isfinite(array)
        count = int(finite.size - finite.sum())
        first = tuple(int(index) for index in np.unravel_index(int(finite.argmin()), finite.shape)[-3:])
        raise UnsupportedInput(
            f"{what}: {count} of {finite.size} voxels are NaN or infinite, the first at {first}; "
            "replace them with the background value"
        )
