"""Properties of a predicted label that need no reference: signals of quality, shape, and flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.pieces import numbered_pieces
from handful.data.volume import Geometry
from handful.evaluation.metrics import overlap

PIECE = 0.05
"""Minimum size of a connected part to count as a piece, as a fraction of the label's voxels."""
FAR = 2.0
"""Factor by which a volume must be larger than the largest one of the support set, or smaller than the smallest, to be
flagged."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Signals of the quality of a label in a case, each in [0, 1]; nan if not available."""

    confidence: float
    """The confidence of the model, averaged over the voxels of the label; see `Segmenter.confidence`.

    For most methods, it is the difference between the label's probability and that of the next best class. For fate, it
    is the predicted Dice of the slice times the probability that the label is in the slice.
    """
    consistency: float
    """Mean Dice between the label's masks on adjacent slices, divided by that of the references, at most 1."""
    reverse: float
    """The highest Dice that the reverse segmenter reaches on a support case with the label."""


SIGNALS = tuple(field.name for field in fields(Signals))


@dataclass(frozen=True)
class ShapeStatistics:
    """The shape of a label in one case."""

    voxels: int
    size: float
    """In ml if the grid is in mm, else as a fraction of the image; nan if some slices are unlabelled."""
    consistency: float
    """Mean Dice of the masks on adjacent slices; nan if the label is on one slice only."""
    pieces: int
    """Number of large connected parts."""
    at_border: bool
    """Whether the label touches the border of the volume."""

    @classmethod
    def of(
        cls, mask: Bool[np.ndarray, "n h w"], valid_mask: Bool[np.ndarray, "n h w"], voxel_size: float
    ) -> ShapeStatistics:
        """The shape of a mask; `valid_mask` is False for unlabelled voxels, `voxel_size` is as in `voxel_size`."""
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        if not slices.size:
            return cls(0, 0.0, float("nan"), 0, False)
        voxels = int(mask.sum())
        inside = range(int(slices[0]), int(slices[-1]))
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
    """The number of connected parts with at least PIECE of the mask's voxels; parts that share a corner are one."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return int((numbered_pieces(mask[box])[1] >= PIECE * voxels).sum())


def voxel_size(geometry: Geometry) -> float:
    """The size of one voxel: in ml if the grid is in mm, else as a fraction of the image."""
    if geometry.unit == "mm":
        return abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000
    return 1 / float(np.prod(geometry.shape))


def consistency(shape: ShapeStatistics, references: Sequence[ShapeStatistics]) -> float:
    """The signal `consistency` of a predicted label; nan if no reference of the label has several slices."""
    known = [reference.consistency for reference in references if not np.isnan(reference.consistency)]
    if not known:
        return float("nan")
    if np.isnan(shape.consistency):  # on one slice only, while references are on several
        return 0.0
    return min(1.0, shape.consistency / max(float(np.mean(known)), 1e-6))


def flags(shape: ShapeStatistics, references: Sequence[ShapeStatistics]) -> Iterator[str]:
    """Unusual properties of a label, compared with its references in the support set."""
    if not shape.voxels:
        yield "empty"
        return
    complete = [reference for reference in references if not np.isnan(reference.size)]
    if not complete:
        return
    if shape.pieces > max(reference.pieces for reference in complete):
        yield "several pieces"
    if shape.at_border and not any(reference.at_border for reference in complete):
        yield "touches the border"
    if shape.size * FAR < min(reference.size for reference in complete):
        yield "too small"
    if shape.size > FAR * max(reference.size for reference in complete):
        yield "too large"
