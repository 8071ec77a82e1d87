"""Volumes to slices and back: which way they are cut, how grey values become [0, 1], and where each slice came from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from handful.data.hounsfield import hounsfield_shift
from handful.data.modality import ModalityEvidence, is_ct_by_name
from handful.data.slice_grid import ORDER, Plane, SliceGrid, anatomical, best_plane
from handful.data.volume import Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import GeometryMismatch, SettingsError, UnsupportedInput

PlaneChoice = Literal["auto", "axial", "coronal", "sagittal"]
Window = Literal["auto", "percentile", "ct-soft", "ct-bone", "ct-lung", "ct-brain", "none", "each"]
WindowChoice = Window | tuple[float, float]

Limits = tuple[float, float]

_Choice = TypeVar("_Choice", PlaneChoice, WindowChoice)
_HOUNSFIELD: dict[Window, tuple[float, float]] = {
    "ct-soft": (-160.0, 240.0),
    "ct-bone": (-500.0, 1300.0),
    "ct-lung": (-1000.0, 400.0),
    "ct-brain": (0.0, 80.0),
}
_PERCENTILES = (0.5, 99.5)
ALL_SEQUENCES = ("all",)
COLOURS = 3
"""Sequences that an image encoder takes at once, as if they were colours."""
_SAMPLE = 2_000_000
"""Voxels that percentiles are taken from."""


@dataclass(frozen=True, kw_only=True)
class Slicer:
    """How volumes are cut into slices, the same for fitting and predicting.

    Slices have one orientation, that of radiology, however the file stores the voxels. Rows run to the patient's back
    (axial) or feet, columns to the left (axial, coronal) or back (sagittal). Axes are permuted and flipped, but nothing
    is resampled.
    """

    plane: PlaneChoice = "auto"
    """Plane of the slices; "auto" takes the plane across the largest voxel edge, which has the smallest pixels."""
    window: WindowChoice = "auto"
    """Values that become 0 and 1: two numbers, a CT preset in HU, "percentile" (of each volume) or "none" (all values).

    For a CT, "auto" takes the window of the labels of the support set, or soft tissue if there is none. For 8-bit
    colours it takes the whole range of the type, and for all other scans percentiles. For a scan with several
    sequences it is "each": soft tissue for a sequence whose name starts with CT, percentiles for each of the others.
    """
    sequences: tuple[str, ...] = ()
    """Which sequences of a scan are used, by name or by number from 0, such as T1,FLAIR, or all.

    Left out, the U-Nets use all, and other methods the first three. A backbone takes up to three at once, as if they
    were colours. Of more than three it embeds each on its own, and the embeddings are averaged.
    """
    neighbours: bool = False
    """Give grey slices the previous and the next slice as first and third channel."""

    def __post_init__(self) -> None:
        if self.plane != "auto" and self.plane not in ORDER:
            raise SettingsError(f"plane {self.plane!r}; choose auto, {', '.join(ORDER)}")
        if isinstance(self.window, str):
            if self.window not in ("auto", "percentile", "none", "each", *_HOUNSFIELD):
                presets = ", ".join(_HOUNSFIELD)
                raise SettingsError(
                    f"window {self.window!r}; choose auto, percentile, none, each, {presets} or two numbers"
                )
        elif not (len(self.window) == 2 and -math.inf < self.window[0] < self.window[1] < math.inf):
            raise SettingsError(f"window {self.window}; give two finite numbers, the lower first")

    def resolve(self, volumes: Iterable[Volume]) -> Slicer:
        """This slicer with a concrete value for each "auto": the most frequent choice among the volumes."""
        if "auto" not in (self.plane, self.window):
            return self
        return self.resolve_among((volume.geometry, suggested_window(volume)) for volume in volumes)

    def resolve_among(self, volumes: Iterable[tuple[Geometry, WindowChoice]]) -> Slicer:
        """As `resolve`, for volumes whose geometry and `suggested_window` are known."""
        planes, windows = Counter[PlaneChoice](), Counter[WindowChoice]()
        for geometry, window in volumes:
            planes[best_plane(geometry)] += 1
            windows[window] += 1
        if "auto" in (self.plane, self.window) and not planes:
            raise SettingsError("no volume to choose plane and window by; name them")
        return replace(
            self,
            plane=_most_frequent(planes) if self.plane == "auto" else self.plane,
            window=_most_frequent(windows) if self.window == "auto" else self.window,
        )

    def grid(self, geometry: Geometry) -> SliceGrid:
        """The slices of a voxel grid, without voxels; a plane of "auto" is chosen for this grid."""
        return SliceGrid(geometry, best_plane(geometry) if self.plane == "auto" else self.plane)

    def for_display(self) -> Slicer:
        """This slicer for slices as they are displayed: no neighbouring slices as channels, and one sequence."""
        return replace(self, neighbours=False, sequences=self.sequences[:1] if self.named_sequences else ("0",))

    def with_all_sequences(self) -> Slicer:
        """This slicer with all sequences of a scan where none are chosen."""
        return self if self.sequences else replace(self, sequences=ALL_SEQUENCES)

    @property
    def named_sequences(self) -> bool:
        """Whether sequences are chosen by name or number."""
        return self.sequences not in ((), ALL_SEQUENCES)

    def channels_of(self, sequences: tuple[str, ...]) -> tuple[int, ...]:
        """Numbers of the channels that are used of a scan with these sequences, in the order of the slices' channels.

        Raises UnsupportedInput for a sequence that the scan does not have.
        """
        if not self.named_sequences:
            return tuple(range(len(sequences)))[: None if self.sequences else COLOURS]
        return tuple(_number_of(name, sequences) for name in self.sequences)

    def view(self, volume: Volume) -> SliceView:
        """The volume as a stack of slices, without a copy of the voxels; any "auto" is chosen for this volume."""
        require_finite(volume.array, "volume")
        slicer = self.resolve([volume])
        if slicer.neighbours and volume.array.shape[0] != 1:
            raise UnsupportedInput(
                f"neighbouring slices need a grey volume, not {volume.array.shape[0]} channels; set neighbours=False"
            )
        if len(slicer.sequences) > 1 and not volume.sequences:
            raise UnsupportedInput(
                f"the sequences {', '.join(slicer.sequences)} are needed, and this scan has one; give all of them"
            )
        channels = slicer.channels_of(volume.sequences) if volume.sequences else None
        if channels is None:
            limits: tuple[Limits, ...] = (_limits(volume, slicer.window),)
        else:
            limits = tuple(_limits_of_sequence(volume, channel, slicer.window) for channel in channels)
        return SliceView(volume, slicer.grid(volume.geometry), limits, slicer.neighbours, channels)

    def cut(self, volume: Volume) -> Float[Tensor, "n c h w"]:
        """All slices of a volume, values in [0, 1]."""
        view = self.view(volume)
        return view.cut(0, len(view))

    def stack(self, classes: Integer[np.ndarray[Any, Any], "n h w"], geometry: Geometry, labels: Labels) -> LabelMap:
        """The label map on `geometry` whose slices hold `classes`, as values of `labels`."""
        stacked = np.zeros(geometry.shape, dtype=classes.dtype)
        grid = self.grid(geometry)
        target = grid.of(stacked)
        if target.shape != classes.shape:
            raise GeometryMismatch(
                f"{classes.shape} slices for {target.shape} {grid.plane} ones; stack with the slicer that cut them"
            )
        target[...] = classes
        return LabelMap(stacked, geometry, labels)


@dataclass(frozen=True, eq=False)
class SliceView:
    """A volume as n slices of h rows and w columns: a grid of slices, and the window for their grey values."""

    volume: Volume
    grid: SliceGrid
    limits: tuple[Limits, ...]
    """Values that become 0 and 1, of all channels together or of each sequence; where both are equal, all becomes 0."""
    neighbours: bool
    sequences: tuple[int, ...] | None = None
    """Channels of the volume that are shown, if they are sequences."""

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def plane(self) -> Plane:
        return self.grid.plane

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the channels of the volume that the slices have."""
        return tuple(range(len(self.volume.array))) if self.sequences is None else self.sequences

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.grid.size

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between slices, rows and columns, in the unit of the volume's geometry."""
        return self.grid.spacing

    def of(self, array_ijk: NDArray[Any]) -> NDArray[Any]:
        """A view of any array on the volume's grid as slices (n, h, w); writing into it writes into the array."""
        return self.grid.of(array_ijk)

    def cut(self, start: int, stop: int) -> Float[Tensor, "n c h w"]:
        """Slices from `start` up to `stop` or the last one, values in [0, 1]."""
        return self.take(range(len(self))[start:stop])

    def around(self, number: int, reach: int) -> tuple[Float[Tensor, "n c h w"], int]:
        """A slice with up to `reach` slices on either side, fewer at the ends of the volume, and its place in them."""
        start = max(0, number - reach)
        return self.cut(start, number + reach + 1), number - start

    def take(self, index: Sequence[int]) -> Float[Tensor, "n c h w"]:
        """The slices of these numbers, values in [0, 1]."""
        chosen = np.asarray(index, dtype=np.intp)
        if self.neighbours:
            grey = self.of(self.volume.array[0])
            nearby = [np.clip(chosen + step, 0, len(grey) - 1) for step in (-1, 0, 1)]
            values = np.stack([grey[numbers] for numbers in nearby], axis=1)
        else:
            values = np.stack([self.of(self.volume.array[channel])[chosen] for channel in self.shown], axis=1)
        if self.sequences is None:
            return torch.from_numpy(_windowed(values, self.limits[0]))
        parts = zip(np.moveaxis(values, 1, 0), self.limits, strict=True)
        return torch.from_numpy(np.stack([_windowed(one, limits) for one, limits in parts], axis=1))


def _windowed(values: NDArray[Any], limits: Limits) -> NDArray[np.float32]:
    low, high = limits
    if low == high:
        return np.zeros(values.shape, dtype=np.float32)
    windowed = values.astype(np.float32)
    windowed -= low
    windowed /= high - low
    return np.ascontiguousarray(np.clip(windowed, 0, 1, out=windowed))


def suggested_window(volume: Volume) -> WindowChoice:
    """What a window of "auto" becomes for this volume, from its modality and its voxels."""
    if volume.sequences:
        return "each"
    evidence = ModalityEvidence(volume.modality, None, hounsfield_shift(volume.array))
    if evidence.is_ct and evidence.shift is not None:
        return window_of_hounsfield(*_HOUNSFIELD["ct-soft"], evidence.shift)
    if evidence.is_ct and volume.array.min() < -100:
        return "ct-soft"
    return "none" if volume.array.dtype == np.uint8 and volume.array.shape[0] == 3 else "percentile"


def window_of_hounsfield(low: float, high: float, shift: float) -> WindowChoice:
    """The window from `low` to `high` HU of a scan whose voxels are Hounsfield units plus `shift`."""
    preset = {limits: name for name, limits in _HOUNSFIELD.items()}.get((low, high))
    return preset if preset is not None and shift == 0 else (low + shift, high + shift)


def _most_frequent(votes: Mapping[_Choice, int]) -> _Choice:
    return min(votes, key=lambda choice: (-votes[choice], str(choice)))  # the same whatever the order of the volumes


def _number_of(name: str, sequences: tuple[str, ...]) -> int:
    """The number of a sequence, by its name or as text."""
    if name in sequences:
        return sequences.index(name)
    if name.isdecimal() and int(name) < len(sequences):
        return int(name)
    raise UnsupportedInput(
        f"no sequence {name!r} in this scan, which has {', '.join(sequences)}; name others with slicer.sequences"
    )


def _limits_of_sequence(volume: Volume, channel: int, window: WindowChoice) -> Limits:
    """The values that become 0 and 1 in one sequence."""
    name = volume.sequences[channel]
    one = Volume(volume.array[channel : channel + 1], volume.geometry)
    if window != "each":
        return _limits(one, window)
    if not is_ct_by_name(name):
        return _limits(one, "percentile")
    low, high = _HOUNSFIELD["ct-soft"]
    shift = hounsfield_shift(one.array) or 0.0
    return low + shift, high + shift


def _limits(volume: Volume, window: WindowChoice) -> Limits:
    """The values that become 0 and 1."""
    if not isinstance(window, str):
        return window
    if window in _HOUNSFIELD:
        return _HOUNSFIELD[window]
    if window == "none":
        info = np.iinfo(volume.array.dtype) if volume.array.dtype.kind in "iu" else None
        return (float(info.min), float(info.max)) if info else (0.0, 1.0)
    sample = _sample(volume)
    signal = sample[sample != 0]
    low, high = np.percentile(signal, _PERCENTILES).tolist() if signal.size else (0.0, 0.0)
    if low == high:
        low, high = float(volume.array.min()), float(volume.array.max())
    return low, high


def _sample(volume: Volume) -> NDArray[Any]:
    """At most `_SAMPLE` voxels on a regular lattice, the same voxels however the volume is stored."""
    channels = [anatomical(channel, volume.geometry) for channel in volume.array]
    steps = [1, 1, 1]
    while len(channels) * math.prod(math.ceil(n / s) for n, s in zip(channels[0].shape, steps, strict=True)) > _SAMPLE:
        widest = max(range(3), key=lambda axis: channels[0].shape[axis] / steps[axis])
        steps[widest] += 1
    lattice = tuple(slice(None, None, step) for step in steps)
    return np.stack([channel[lattice] for channel in channels])
