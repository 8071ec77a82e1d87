"""How well two masks agree: overlap by counting voxels, distances between surfaces in the unit of the spacing.

Surfaces are MONAI's: the voxels of a mask with a face neighbour outside it; beyond the image everything is outside.
Their distances (between voxel centres, by KD-tree) are computed once for a pair of masks and every surface metric is
derived from them. Every surface voxel counts the same, as in `monai.metrics`, whose values these are; DeepMind's
surface-distance weights by area and differs a little. A volume of one slice is measured in its plane: its thickness
is no distance, and its faces are no surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.ndimage import find_objects

ROUNDING = 1e-5
"""Share of a tolerance granted to rounding: MONAI's distances are float32, spacings come out of a square root."""


@dataclass(frozen=True)
class Overlap:
    """Voxels counted: true positives, false positives, false negatives, true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_pred(self) -> int:
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 |P and R| / (|P| + |R|); 1 where both are empty."""
        return 2 * self.tp / (self.n_pred + self.n_ref) if self.n_pred + self.n_ref else 1.0

    @property
    def iou(self) -> float:
        """|P and R| / |P or R|; 1 where both are empty."""
        return self.tp / (self.tp + self.fp + self.fn) if self.tp + self.fp + self.fn else 1.0


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance of each surface voxel to the nearest one of the other mask's surface.

    Where one mask is empty the other's surface lies an image diagonal away; where both are, there is no distance.
    """

    prediction_to_reference: Float[np.ndarray[Any, Any], " p"]
    reference_to_prediction: Float[np.ndarray[Any, Any], " r"]

    @property
    def hausdorff95(self) -> float:
        """Larger of the two directed 95th percentiles, as MONAI defines it; nan where both are empty."""
        directed = [d for d in (self.prediction_to_reference, self.reference_to_prediction) if d.size]
        return max((float(np.percentile(d, 95)) for d in directed), default=float("nan"))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over all surface voxels of both; nan where both are empty."""
        distances = np.concatenate([self.prediction_to_reference, self.reference_to_prediction], dtype=np.float64)
        return float(distances.mean()) if distances.size else float("nan")

    def surface_dice(self, tolerance: float) -> float:
        """Share of both surfaces no farther than `tolerance` from the other (Nikolov et al., arXiv 1809.04430).

        1 where both masks are empty, 0 where one is.
        """
        if not (self.prediction_to_reference.size and self.reference_to_prediction.size):
            return 0.0 if self.prediction_to_reference.size or self.reference_to_prediction.size else 1.0
        distances = np.concatenate([self.prediction_to_reference, self.reference_to_prediction], dtype=np.float64)
        return float((distances <= tolerance * (1 + ROUNDING)).mean())


def overlap(
    prediction: Bool[np.ndarray[Any, Any], "i j k"],
    reference: Bool[np.ndarray[Any, Any], "i j k"],
    valid_mask: Bool[np.ndarray[Any, Any], "i j k"] | None = None,
) -> Overlap:
    """The voxel counts of two masks, over the voxels that are `known` (all, when left out)."""
    if valid_mask is not None:
        prediction, reference = prediction & valid_mask, reference & valid_mask
    total = prediction.size if valid_mask is None else int(np.count_nonzero(valid_mask))
    tp = int(np.count_nonzero(prediction & reference))
    fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(reference)) - tp
    return Overlap(tp=tp, fp=fp, fn=fn, tn=total - tp - fp - fn)


def surface_distances(
    prediction: Bool[np.ndarray[Any, Any], "i j k"],
    reference: Bool[np.ndarray[Any, Any], "i j k"],
    spacing: Sequence[float] | NDArray[np.float64],
) -> SurfaceDistances:
    """The distances between the surfaces of two masks, in the unit of `spacing` (voxel edge lengths along i, j, k)."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance  # seconds, not needed to predict

    if 1 in prediction.shape:
        flat = prediction.shape.index(1)
        prediction, reference, spacing = prediction.squeeze(flat), reference.squeeze(flat), np.delete(spacing, flat)
    if not (prediction.any() and reference.any()):
        diagonal = np.array([np.linalg.norm(np.multiply(prediction.shape, spacing))])
        nothing = np.zeros(0)
        return SurfaceDistances(diagonal if prediction.any() else nothing, diagonal if reference.any() else nothing)

    # MONAI crops too, but first turns the whole volume into float tensors: seconds and gigabytes on a large CT.
    box = find_objects((prediction | reference).view(np.uint8))[0]
    prediction_edge, reference_edge = get_mask_edges(prediction[box], reference[box])
    return SurfaceDistances(
        get_surface_distance(prediction_edge, reference_edge, spacing=spacing),
        get_surface_distance(reference_edge, prediction_edge, spacing=spacing),
    )
