"""Objects of a volume from clicks in 3D, with SAM-Med3D.

The scan is prepared as by the model's authors: its axes are put into the order right, front, head, without rotation;
it is resampled to 1.5 mm; and the cube of 192 mm around the first click is cut out, with zeros outside of the scan.
CT values are limited to ±1000. Values get the mean 0 and the deviation 1 of those above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from handful.backbones.sam_med3d import SamMed3d
from handful.data.cases import Case
from handful.data.hounsfield import hounsfield_shift
from handful.data.modality import ModalityEvidence
from handful.data.slice_grid import anatomical, anatomical_axes
from handful.data.volume import Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import InputError, SettingsError, UnsupportedInput

EDGE = 1.5
"""Edge in mm of a voxel of the model's input."""
CT_LIMIT = 1000.0

Voxel = tuple[float, float, float]
"""Indices i, j, k of the stored array; the middle of a voxel is a whole number."""


@dataclass(frozen=True)
class VolumeClick:
    """A click inside an object, or outside."""

    voxel: Voxel
    positive: bool = True


class ClickedObject:
    """An object that is segmented by one click after the other; the scan around the first one is encoded once."""

    def __init__(self, model: SamMed3d, volume: Volume, first: Voxel) -> None:
        """Encode the cube around a voxel, which should be inside the object.

        Raises UnsupportedInput for a scan with several channels, a picture or a scan without voxel sizes, InputError
        for a voxel outside of it.
        """
        if volume.array.shape[0] != 1:
            raise UnsupportedInput(f"SAM-Med3D takes grey volumes, and this scan has {volume.array.shape[0]} channels")
        if volume.geometry.unit != "mm" or 1 in volume.geometry.shape:
            raise UnsupportedInput("SAM-Med3D takes volumes whose voxels have a size in mm; this is a picture")
        require_finite(volume.array, "volume")
        _require_inside(first, volume.geometry)
        self.model, self._cube = model, _Cube(volume.geometry, model.shape.side, first)
        self._embeddings = model.encode(torch.from_numpy(_normalised(self._cube.cut(volume))))
        self._clicks: list[VolumeClick] = []
        self._logits: Tensor | None = None

    def holds(self, voxel: Voxel) -> bool:
        """Whether a voxel is in the cube around the first click, where further clicks may be."""
        return self._cube.holds(voxel)

    def add(self, *clicks: VolumeClick) -> Bool[np.ndarray[Any, Any], "i j k"]:
        """The mask after these clicks, which are given together, and all before; on the grid of the scan.

        Raises InputError for a click outside the scan or the cube.
        """
        for click in clicks:
            _require_inside(click.voxel, self._cube.geometry)
            if not self._cube.holds(click.voxel):
                raise InputError(
                    f"the click at {click.voxel} is not in the cube of {self.model.shape.side * EDGE:g} mm around the "
                    "first click; the model knows nothing there"
                )
        self._clicks += clicks
        places = torch.tensor([self._cube.place_of(click.voxel) for click in self._clicks], dtype=torch.float32)
        positive = torch.tensor([click.positive for click in self._clicks])
        self._logits = self.model.decode(self._embeddings, places[None], positive[None], self._logits).logits
        whole = F.interpolate(self._logits[None], [self.model.shape.side] * 3, mode="trilinear", align_corners=False)
        return self._cube.mask_of(whole[0, 0].cpu().numpy())


def segment_object(
    model: SamMed3d, volume: Volume, clicks: Sequence[VolumeClick]
) -> Bool[np.ndarray[Any, Any], "i j k"]:
    """The mask of one object from clicks that are given together; the first positive one is the middle of the cube.

    Raises SettingsError without a positive click, and as `ClickedObject`.
    """
    first = next((click.voxel for click in clicks if click.positive), None)
    if first is None:
        raise SettingsError("no click is inside the object; give at least one positive click")
    return ClickedObject(model, volume, first).add(*clicks)


def volume_oracle(model: SamMed3d, labels: Labels, clicks: int = 1) -> Callable[[Case], LabelMap]:
    """A function that segments a labelled case with simulated clicks, for `evaluate_cases`.

    Each label of the case gets a click at its deepest voxel, then corrections at the deepest voxel of what is missing
    or too much, whichever is deeper. Where masks overlap, the later label counts. Like those of `oracle`, such scores
    are upper bounds for that much work.
    """
    if clicks < 1:
        raise SettingsError(f"clicks must be at least 1, got {clicks}")

    def segment(case: Case) -> LabelMap:
        reference = case.read_reference()
        if reference is None:
            raise InputError(f"case {case.name!r} has no reference to take clicks from; leave it out")
        volume = case.read_image()
        array = np.zeros(volume.geometry.shape, dtype=np.int32)
        for value in labels.values:
            truth = reference.array == value
            if truth.any():
                array[_clicked(model, volume, truth, clicks)] = value
        return LabelMap(array, volume.geometry, labels)

    return segment


def _clicked(model: SamMed3d, volume: Volume, truth: NDArray[np.bool_], clicks: int) -> NDArray[np.bool_]:
    spacing = volume.geometry.spacing
    first, _ = _deepest(truth, spacing)
    clicked, mask = ClickedObject(model, volume, first), np.zeros_like(truth)
    for _ in range(clicks):
        missing, surplus = _deepest(truth & ~mask, spacing), _deepest(mask & ~truth, spacing)
        voxel, depth = max(missing, surplus, key=lambda one: one[1])
        if depth == 0 or not clicked.holds(voxel):
            break
        mask = clicked.add(VolumeClick(voxel, positive=voxel == missing[0] and missing[1] > 0))
    return mask


def _deepest(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[Voxel, float]:
    """The voxel that is farthest from the outside of a mask, and its distance in mm; 0 for an empty mask."""
    if not mask.any():
        return (0.0, 0.0, 0.0), 0.0
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1), spacing)[1:-1, 1:-1, 1:-1]
    place = np.unravel_index(int(depth.argmax()), depth.shape)
    i, j, k = (float(part.start + index) for part, index in zip(box, place, strict=True))
    return (i, j, k), float(depth.max())


@dataclass(frozen=True, eq=False)
class _Cube:
    """The model's input in a scan. Axes of the cube run to the patient's right, front and head."""

    geometry: Geometry
    side: int
    """Voxels along the cube."""
    middle: Voxel
    """The voxel of the scan in its middle."""

    @cached_property
    def _axes(self) -> list[int]:
        """The stored axes that are nearest to those of the cube."""
        return anatomical_axes(self.geometry)

    @cached_property
    def _step(self) -> NDArray[np.float64]:
        """Voxels of the scan per voxel of the cube, along its axes."""
        return np.asarray(EDGE / self.geometry.spacing[self._axes])

    @cached_property
    def _backwards(self) -> NDArray[np.bool_]:
        """Which axes of the cube run opposite to the stored ones."""
        return np.array([self.geometry.affine[row, axis] < 0 for row, axis in enumerate(self._axes)])

    def _oriented(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (i, j, k) with the axes of the cube."""
        return anatomical(array, self.geometry)[::-1, ::-1, ::-1]

    def _index_of(self, voxel: Voxel) -> NDArray[np.float64]:
        """The indices of a voxel in the oriented array."""
        stored = np.array([voxel[axis] for axis in self._axes])
        last = np.array([self.geometry.shape[axis] - 1 for axis in self._axes])
        return np.where(self._backwards, last - stored, stored)

    @cached_property
    def _start(self) -> NDArray[np.float64]:
        """The place of the first voxel of the cube in the oriented array."""
        return np.asarray(self._index_of(self.middle) - self.side / 2 * self._step)

    @cached_property
    def _part(self) -> tuple[slice, slice, slice]:
        """The part of the oriented array that the cube covers."""
        shape = [self.geometry.shape[axis] for axis in self._axes]
        low = np.maximum(np.floor(self._start - self._step / 2), 0).astype(int)
        high = np.minimum(np.ceil(self._start + (self.side - 0.5) * self._step) + 1, shape).astype(int)
        i, j, k = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
        return i, j, k

    @property
    def _offset(self) -> NDArray[np.float64]:
        """The place of the first voxel of the cube in the part."""
        return np.asarray(self._start - [part.start for part in self._part])

    def place_of(self, voxel: Voxel) -> list[float]:
        """The place of a voxel of the scan in the cube, in voxels of the cube."""
        places: list[float] = ((self._index_of(voxel) - self._start) / self._step).tolist()
        return places

    def holds(self, voxel: Voxel) -> bool:
        """Whether a voxel of the scan is in the cube."""
        return all(-0.5 <= place <= self.side - 0.5 for place in self.place_of(voxel))

    def cut(self, volume: Volume) -> Float[np.ndarray[Any, Any], "s s s"]:
        """The resampled grey values, of a CT in Hounsfield units; zeros outside of the scan."""
        part, shift = self._oriented(volume.array[0])[self._part].astype(np.float32), hounsfield_shift(volume.array)
        if ModalityEvidence(volume.modality, None, shift).is_ct:
            part = (part - (shift or 0.0)).clip(-CT_LIMIT, CT_LIMIT)
        resampled: NDArray[np.float32] = ndimage.affine_transform(
            part, self._step, self._offset, output_shape=(self.side,) * 3, order=1, mode="constant"
        )
        return resampled

    def mask_of(self, logits: Float[np.ndarray[Any, Any], "s s s"]) -> Bool[np.ndarray[Any, Any], "i j k"]:
        """The mask on the grid of the scan; nothing outside of the cube."""
        found = np.zeros(self.geometry.shape, dtype=bool)
        target = self._oriented(found)[self._part]
        resampled = ndimage.affine_transform(
            logits, 1 / self._step, -self._offset / self._step, output_shape=target.shape, order=1, cval=-1.0
        )
        target[...] = resampled > 0
        return found


def _normalised(cube: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey values with the mean 0 and the deviation 1 of those above 0, or of all if hardly one is."""
    above = cube[cube > 0]
    values = above if above.size > 1 and above.std() > 0 else cube.ravel()
    deviation = float(values.std(ddof=1))
    return np.asarray((cube - values.mean()) / (deviation or 1.0), dtype=np.float32)


def _require_inside(voxel: Voxel, geometry: Geometry) -> None:
    if not all(-0.5 <= place <= length - 0.5 for place, length in zip(voxel, geometry.shape, strict=True)):
        raise InputError(f"the click at {voxel} is outside the scan of {geometry.shape} voxels")
