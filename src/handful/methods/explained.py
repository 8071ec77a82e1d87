"""A prediction with the reasons for it: how sure the model was, and which labelled slices it was shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from handful.data.volume import LabelMap


@dataclass(frozen=True, eq=False)
class SliceConfidence:
    """How sure the model was of each slice and label of a volume, slices counted as the slicer cuts them."""

    object_score: Float[Tensor, "n k"]
    """Logit that the label is in the slice at all; nan where no retrieved support holds it."""
    iou: Float[Tensor, "n k"]
    """Predicted IoU of the mask, in [0, 1]; nan as above."""
    retrieved: tuple[tuple[tuple[str, int], ...], ...]
    """For each slice the supports it was shown, the most similar first: case and number of the slice in it."""


@dataclass(frozen=True, eq=False)
class SupportPicture:
    """A support slice and its labels, small, as the fitted segmenter keeps them to be displayed.

    Pixels are square in the patient; what the slice leaves of the square is 0 in both.
    """

    case: str
    number: int
    """Of the slice in its case."""
    image: UInt8[np.ndarray, "h w 3"]
    labels: Integer[np.ndarray, "h w"]
    """Label values."""


class Explained(NamedTuple):
    """A label map and what it rests on."""

    label_map: LabelMap
    reasons: SliceConfidence | None = None
    """None where the segmenter shows its model no labelled slices."""
