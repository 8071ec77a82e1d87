"""What can be measured of a predicted label without its reference: three signals of quality, its shape, and flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.volume import Geometry
from handful.evaluation.metrics import overlap

PIECE = 0.05
"""Share of a label's voxels from which a connected part of it counts as a piece."""
FAR = 2.0
"""A volume is far off when it is so many times larger than the largest of the support, or smaller than the smallest."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What speaks for a label of a case, in [0, 1]; nan where it cannot be measured."""

    confidence: float
    """The model's own: for fate the Dice that follows from the IoU it predicts of a slice, times the probability that
    the label is in the slice at all, else by how much the label's probability exceeds the next best class's; averaged
    over the voxels that bear the label. nan for methods whose slices do not pass through `forward` one by one."""
    consistency: float
    """Mean Dice between the label's masks on adjacent slices, over the same mean of the references, 1 at most."""
    reverse: float
    """Highest Dice that the reverse segmenter reaches on a support case that holds the label."""


SIGNALS = tuple(field.name for field in fields(Signals))


@dataclass(frozen=True)
class ShapeStatistics:
    """The shape of a label in one case."""

    voxels: int
    size: float
    """ml where the grid is in mm, else a fraction of the image; nan where some slices are unlabelled."""
    consistency: float
    """Mean Dice of adjacent slices; nan where only one slice holds the label."""
    pieces: int
    at_border: bool

    @classmethod
    def of(
        cls, mask: Bool[np.ndarray, "n h w"], valid_mask: Bool[np.ndarray, "n h w"], voxel_size: float
    ) -> ShapeStatistics:
        """`known` is False where voxels are unlabelled; `voxel_size` is what one voxel adds to the size."""
        held = np.flatnonzero(mask.any(axis=(1, 2)))
        if not held.size:
            return cls(0, 0.0, float("nan"), 0, False)
        voxels = int(mask.sum())
        inside = range(int(held[0]), int(held[-1]))
        labelled: NDArray[np.bool_] = np.any(valid_mask, axis=(1, 2))
        steps = [overlap(mask[i : i + 1], mask[i + 1 : i + 2]).dice for i in inside if labelled[i] and labelled[i + 1]]
        edges = (mask[:, [0, -1]].any(), mask[:, :, [0, -1]].any(), len(mask) > 1 and mask[[0, -1]].any())
        return cls(
            voxels=voxels,
            size=voxels * voxel_size if labelled.all() else float("nan"),
            consistency=float(np.mean(steps)) if steps else float("nan"),
            pieces=_pieces(mask, voxels),
            at_border=any(bool(edge) for edge in edges),
        )


def _pieces(mask: Bool[np.ndarray, "n h w"], voxels: int) -> int:
    """Connected parts that hold a fair share of the mask; those that share a corner are one."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    pieces, _ = ndimage.label(mask[box], np.ones((3, 3, 3)))
    return int((np.bincount(pieces.ravel())[1:] >= PIECE * voxels).sum())


def voxel_size(geometry: Geometry) -> float:
    """Of one voxel: ml where the grid is in mm, else a fraction of the image."""
    if geometry.unit == "mm":
        return abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000
    return 1 / float(np.prod(geometry.shape))


def consistency(shape: ShapeStatistics, references: Sequence[ShapeStatistics]) -> float:
    """The signal of that name, for a label that was found; nan where no reference reaches over several slices."""
    usual = [one.consistency for one in references if not np.isnan(one.consistency)]
    if not usual:
        return float("nan")
    if np.isnan(shape.consistency):  # one slice, where references reach over several
        return 0.0
    return min(1.0, shape.consistency / max(float(np.mean(usual)), 1e-6))


def flags(shape: ShapeStatistics, references: Sequence[ShapeStatistics]) -> Iterator[str]:
    """What is unusual about a label compared with its references: those of the support cases that hold it."""
    if not shape.voxels:
        yield "empty"
        return
    whole = [one for one in references if not np.isnan(one.size)]
    if not whole:
        return
    if shape.pieces > max(one.pieces for one in whole):
        yield "several pieces"
    if shape.at_border and not any(one.at_border for one in whole):
        yield "touches the border"
    if shape.size * FAR < min(one.size for one in whole):
        yield "too small"
    if shape.size > FAR * max(one.size for one in whole):
        yield "too large"
