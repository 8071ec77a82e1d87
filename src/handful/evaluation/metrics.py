"""Agreement of two masks: overlap from voxel counts, and distances between surfaces in the unit of the spacing.

The surface of a mask consists of its voxels with a face neighbour outside the mask or outside the image. Distances are
between voxel centres. They are computed once per pair of masks, and all surface metrics are derived from them. The
values equal those of `monai.metrics`, which give every surface voxel the same weight. DeepMind's surface-distance
weights voxels by area and differs slightly. A volume of one slice is measured in its plane.
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
"""Relative rounding error allowed at a tolerance: distances are float32, and spacings are square roots."""


@dataclass(frozen=True)
class Overlap:
    """Numbers of voxels: true positives, false positives, false negatives, true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_pred(self) -> int:
        """Number of voxels in the prediction."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        """Number of voxels in the reference."""
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 |P and R| / (|P| + |R|); 1 if both masks are empty."""
        return 2 * self.tp / (self.n_pred + self.n_ref) if self.n_pred + self.n_ref else 1.0

    @property
    def iou(self) -> float:
        """|P and R| / |P or R|; 1 if both masks are empty."""
        return self.tp / (self.tp + self.fp + self.fn) if self.tp + self.fp + self.fn else 1.0


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance from each surface voxel of one mask to the nearest surface voxel of the other.

    If one mask is empty, there is a single distance: the image diagonal. If both are empty, there is none.
    """

    prediction_to_reference: Float[np.ndarray[Any, Any], " p"]
    reference_to_prediction: Float[np.ndarray[Any, Any], " r"]

    @property
    def hausdorff95(self) -> float:
        """The larger of the two directed 95th percentiles, as defined by MONAI; nan if both masks are empty."""
        directed = [d for d in (self.prediction_to_reference, self.reference_to_prediction) if d.size]
        return max((float(np.percentile(d, 95)) for d in directed), default=float("nan"))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the surface voxels of both; nan if both are empty."""
        distances = np.concatenate([self.prediction_to_reference, self.reference_to_prediction], dtype=np.float64)
        return float(distances.mean()) if distances.size else float("nan")

    def surface_dice(self, tolerance: float) -> float:
        """Share of both surfaces within `tolerance` of the other surface (Nikolov et al., arXiv 1809.04430).

        1 if both masks are empty, 0 if one is.
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
    """The voxel counts of two masks, within `valid_mask` if it is given."""
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
    """Distances between the surfaces of two masks, in the unit of `spacing` (voxel sizes along i, j, k)."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance  # slow to import, not needed to predict

    if 1 in prediction.shape:
        flat = prediction.shape.index(1)
        prediction, reference, spacing = prediction.squeeze(flat), reference.squeeze(flat), np.delete(spacing, flat)
    if not (prediction.any() and reference.any()):
        diagonal = np.array([np.linalg.norm(np.multiply(prediction.shape, spacing))])
        nothing = np.zeros(0)
        return SurfaceDistances(diagonal if prediction.any() else nothing, diagonal if reference.any() else nothing)

    # MONAI crops too, but first converts the whole volume to float tensors: seconds and gigabytes for a large CT
    box = find_objects((prediction | reference).view(np.uint8))[0]
    prediction_edge, reference_edge = get_mask_edges(prediction[box], reference[box])
    return SurfaceDistances(
        get_surface_distance(prediction_edge, reference_edge, spacing=spacing),
        get_surface_distance(reference_edge, prediction_edge, spacing=spacing),
    )
