"""A prediction with its confidence, the labelled slices that it is based on, and the expert that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from handful.data.volume import LabelMap


@dataclass(frozen=True, eq=False)
class SliceConfidence:
    """The confidence of a method that compares slices, for each of the n slices and k labels of a volume."""

    object_score: Float[Tensor, "n k"]
    """Logit that the label is in the slice; nan if none of the retrieved labelled slices contains the label."""
    iou: Float[Tensor, "n k"]
    """Predicted IoU of the mask, in [0, 1]; nan as above."""
    retrieved: tuple[tuple[tuple[str, int], ...], ...]
    """The labelled slices that were used for each slice, most similar first, as (case, slice number)."""


@dataclass(frozen=True, eq=False)
class SupportPicture:
    """A small picture of a labelled slice and its labels, stored in the fitted segmenter for display.

    Pixels are isotropic. The picture is padded to a square with 0.
    """

    case: str
    number: int
    """Number of the slice in its case."""
    image: UInt8[np.ndarray, "h w 3"]
    labels: Integer[np.ndarray, "h w"]
    """Label values."""


class Explained(NamedTuple):
    """A label map and the labelled slices that it is based on."""

    label_map: LabelMap
    reasons: SliceConfidence | None = None
    """None if the segmenter does not compare slices."""


@dataclass(frozen=True)
class Route:
    """The expert for a scan."""

    expert: str
    """Its name."""
    margin: float | None
    """Its score minus the best score of another expert; below 0 if that one cannot segment the scan, None if there is
    no other."""
    scores: dict[str, float]
    """The score of each expert."""
    passed_over: tuple[str, ...] = ()
    """A sentence for each expert with a better score that cannot segment the scan."""
