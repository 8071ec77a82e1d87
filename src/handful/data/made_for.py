"""The kind of scans that a model was fitted on, to be compared with those that it is used on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from handful.data.modality import ModalityEvidence
from handful.data.sequences import are_numbers
from handful.data.slice_grid import Plane
from handful.data.slicing import Slicer
from handful.data.support import SupportSet, robust_range
from handful.data.volume import Geometry, Volume
from handful.errors import SettingsError, UnsupportedInput

PIXEL_FACTOR, DISTANCE_FACTOR = 2.0, 3.0
"""Factors beyond the range of the support set, from which pixels, or distances of slices, are unlike it."""
SHIFT = 0.5
"""Part of the range of values by which an end of a scan's range may differ, where the window is fixed."""
_KINDS = {
    "CT": "CT",
    "MR": "MR",
    "MRI": "MR",
    "PT": "PET",
    "PET": "PET",
    "US": "ultrasound",
    "XA": "X-ray",
    "CR": "X-ray",
    "DX": "X-ray",
    "XR": "X-ray",
    "MG": "X-ray",
}
"""Kinds of scans by the usual names of modalities; other names, such as "FLAIR", are not compared."""


@dataclass(frozen=True, kw_only=True)
class MadeFor:
    """The kind of the scans of a support set."""

    modality: str | None
    """Most frequent modality as stated, or "CT" if the voxels show it; None if it is unknown."""
    is_ct: bool
    channels: tuple[int, ...]
    """1 for grey, 3 for colour, both if there were both; or the number of sequences."""
    plane: Plane
    """Plane of the slices."""
    unit: Literal["mm", "pixel"]
    """Unit of the spacings."""
    pixel: tuple[float, float]
    """Smallest and largest distance between neighbouring rows or columns of a slice."""
    distance: tuple[float, float]
    """Smallest and largest distance between neighbouring slices."""
    values: tuple[float, float]
    """Smallest 0.5th and largest 99.5th percentile of the voxels."""
    fixed_window: bool
    """Whether the same values become black and white in each scan."""
    sequences: tuple[str, ...] = ()
    """Names of all sequences of the scans, in their order; empty for grey and colour."""

    def __post_init__(self) -> None:
        if self.sequences and (len(set(self.sequences)),) != self.channels:
            raise SettingsError(f"made_for.channels are {self.channels}, but the sequences are {self.sequences}")
        if not self.sequences and (not self.channels or not set(self.channels) <= {1, 3}):
            raise SettingsError(f"made_for.channels are {self.channels}, instead of 1 or 3")
        for name in ("pixel", "distance"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise SettingsError(f"made_for.{name} is {(low, high)}, which are no distances from low to high")

    @classmethod
    def of(cls, support: SupportSet, slicer: Slicer) -> MadeFor:
        """The kind of the scans of a support set, cut into slices by a resolved slicer."""
        grids = [slicer.grid(facts.geometry) for facts in support.facts]
        pixels = [edge for grid in grids for edge in grid.spacing[1:]]
        distances = [grid.spacing[0] for grid in grids]
        cts = sum(facts.evidence.is_ct for facts in support.facts)
        stated = Counter(facts.modality for facts in support.facts if facts.modality)
        is_ct = 2 * cts > len(support.facts)
        return cls(
            modality=stated.most_common(1)[0][0] if stated else "CT" if is_ct else None,
            is_ct=is_ct,
            channels=tuple(sorted({facts.channels for facts in support.facts})),
            plane=grids[0].plane,
            unit=support.facts[0].geometry.unit,
            pixel=(min(pixels), max(pixels)),
            distance=(min(distances), max(distances)),
            values=(min(facts.values[0] for facts in support.facts), max(facts.values[1] for facts in support.facts)),
            fixed_window=slicer.window not in ("percentile", "none", "each"),
            sequences=support.sequences,
        )

    def arranged(self, volume: Volume) -> Volume:
        """The scan with its sequences in the order that the model was fitted on.

        Sequences without stated names (see `are_numbers`) are taken in the order in which they are. Raises
        UnsupportedInput if number or names of the sequences differ.
        """
        if volume.sequences == self.sequences:
            return volume
        if sorted(volume.sequences) == sorted(self.sequences):
            order = [volume.sequences.index(name) for name in self.sequences]
            return replace(volume, array=volume.array[order], sequences=self.sequences)
        unnamed = are_numbers(volume.sequences) or are_numbers(self.sequences)
        if len(volume.sequences) == len(self.sequences) and unnamed:
            return replace(volume, sequences=self.sequences)
        there = ", ".join(self.sequences) or "scans of one sequence"
        here = ", ".join(volume.sequences) or "one sequence"
        raise UnsupportedInput(
            f"the model was fitted on {there}, and this scan has {here}; give the same sequences, named in "
            "dataset.json (channel_names) or by --channels"
        )

    def require_usable(self, volume: Volume) -> None:
        """Raise UnsupportedInput for a scan with other sequences, or in colour where the model was fitted on grey ones.

        Also for a grey scan if the model was fitted on colour.
        """
        if self.sequences or volume.sequences:
            self.arranged(volume)
            return
        channels = volume.array.shape[0]
        if channels not in self.channels:
            there, here = _colour(self.channels[0]), _colour(channels)
            raise UnsupportedInput(
                f"the model was fitted on {there} scans, and this one is {here}; convert it, or fit on {here} scans"
            )

    def differences(self, volume: Volume, evidence: ModalityEvidence) -> tuple[str, ...]:
        """A sentence with both values for each property in which a scan is unlike those of the support set."""
        return (
            *self._other_modality(volume, evidence),
            *self._other_values(volume),
            *self._other_grid(volume.geometry),
        )

    def _other_modality(self, volume: Volume, evidence: ModalityEvidence) -> Iterator[str]:
        there, here = _kind(self.modality), _kind(volume.modality)
        if here is None and evidence.is_ct:
            here = "CT"
        if there is None and self.is_ct:
            there = "CT"
        if there and here and there != here:
            yield f"the model was fitted on {there}, and this scan is {here}"

    def _other_values(self, volume: Volume) -> Iterator[str]:
        if not self.fixed_window:
            return
        low, high = robust_range(volume)
        width = self.values[1] - self.values[0]
        if not math.isfinite(width):
            return
        if max(abs(low - self.values[0]), abs(high - self.values[1])) > SHIFT * max(width, 1e-12):
            yield (
                f"the model was fitted on scans with values from {self.values[0]:g} to {self.values[1]:g}, "
                f"and this scan has values from {low:g} to {high:g}"
            )

    def _other_grid(self, geometry: Geometry) -> Iterator[str]:
        if geometry.unit != self.unit:
            yield f"the spacing of the model's scans is in {self.unit}, and that of this scan in {geometry.unit}"
            return
        grid = Slicer(plane=self.plane).grid(geometry)
        pixels = sorted(grid.spacing[1:])
        if pixels[0] < self.pixel[0] / PIXEL_FACTOR or pixels[1] > self.pixel[1] * PIXEL_FACTOR:
            yield (
                f"the model was fitted on {self.plane} slices with pixels of {_range(self.pixel, self.unit)}, "
                f"and those of this scan are {_range((pixels[0], pixels[1]), self.unit)}"
            )
        low, high = self.distance[0] / DISTANCE_FACTOR, self.distance[1] * DISTANCE_FACTOR
        if len(grid) > 1 and not low <= grid.spacing[0] <= high:
            yield (
                f"the model was fitted on {self.plane} slices {_range(self.distance, self.unit)} apart, "
                f"and those of this scan are {grid.spacing[0]:.3g} {self.unit} apart"
            )


def _kind(modality: str | None) -> str | None:
    """The kind of scan that a modality names; None if it is not one of the usual names."""
    name = (modality or "").upper().strip()
    return _KINDS.get(name) or ("CT" if name.startswith("CT") else "MR" if name.startswith("MR") else None)


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "colour"


def _range(values: tuple[float, float], unit: str) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
