"""Reverse classification accuracy: the prediction is taken for the truth, and what learns from it is scored.

After Valindria et al., "Reverse classification accuracy: predicting segmentation performance in the absence of ground
truth" (IEEE TMI 2017): a segmenter that needs no training learns from the prediction alone and is scored on the
support, whose truth is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones.base import Backbone, MemoryBackbone
from handful.data.cases import Case
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.evaluation.metrics import overlap
from handful.methods.base import CHUNK, Method, to_classes
from handful.methods.catalog import build_method

REVERSE = ("auto", "fate", "nearest-slice", "none")
"""Names of reverse segmenters."""
MOST_SLICES = 24
"""Slices of a case that the reverse segmenter learns from or is scored on, at most: what bounds its cost."""


def reverse_method(name: str, backbone: Backbone, slicer: Slicer) -> Method | None:
    """The reverse segmenter of one of the names in REVERSE; auto is fate where the backbone has a memory."""
    if name == "none":
        return None
    has_memory = isinstance(backbone, MemoryBackbone)
    if name == "nearest-slice" or (name == "auto" and not has_memory):
        return build_method("nearest-slice", {}).with_slicer(slicer)
    return build_method("fate", {"window": 0}).with_slicer(slicer)


@dataclass(frozen=True, eq=False)
class ScoredSlices:
    """The slices of a support case that a reverse segmenter is scored on."""

    slices: Tensor
    classes: Integer[np.ndarray[Any, Any], "n h w"]
    """Label values."""

    @classmethod
    def of(cls, view: SliceView, classes: NDArray[np.integer], labels: Labels) -> ScoredSlices:
        """A choice of the slices of `view`; `classes` has the label values of all of them."""
        chosen = _representative(classes, labels)
        return cls(view.take(chosen), np.ascontiguousarray(classes[chosen]))


@torch.inference_mode()
def reverse_dice(
    method: Method,
    backbone: Backbone,
    volume: Volume,
    prediction: LabelMap,
    labels: Labels,
    scored: Iterable[ScoredSlices],
) -> dict[int, float]:
    """The best Dice on a support case that `method` reaches after learning from this prediction alone.

    By label value. `labels` are those that the prediction holds.
    """
    learned = _thinned(method.slicer.view(volume), prediction, labels)
    case = Case("prediction", volume, learned, labels)
    segmenter = method.fit(SupportSet((case,), labels), backbone).eval()
    best: dict[int, float] = {}
    for one in scored:
        chunks = torch.split(one.slices.to(backbone.device), CHUNK)
        classes = torch.cat([to_classes(segmenter(chunk)) for chunk in chunks]).cpu().numpy()
        for index, value in enumerate(labels.values, start=1):
            truth = one.classes == value
            if truth.any():
                dice = overlap(classes == index, truth, one.classes != IGNORE).dice
                best[value] = max(best.get(value, 0.0), dice)
    return best


def _thinned(view: SliceView, prediction: LabelMap, labels: Labels) -> LabelMap:
    """The prediction on the slices that the reverse segmenter learns from, all others unlabelled."""
    array = np.full(prediction.array.shape, IGNORE, dtype=np.int32)
    given, kept = view.of(prediction.array), view.of(array)
    chosen = _representative(given, labels)
    kept[chosen] = given[chosen]
    return LabelMap(array, view.volume.geometry, labels)


def _representative(classes: NDArray[np.integer], labels: Labels) -> list[int]:
    """At most MOST_SLICES labelled slices, evenly from a little before the first that holds a label to a little after
    the last; the slice on which a label is largest is always among them."""
    known = np.flatnonzero((classes != IGNORE).any(axis=(1, 2)))
    areas = np.stack([(classes[known] == value).sum(axis=(1, 2)) for value in labels.values])
    largest = {int(known[row]) for row in areas.argmax(axis=1)[areas.max(axis=1) > 0]}
    held = np.flatnonzero(areas.any(axis=0))
    rim = max(1, len(held) // 8)
    low, high = max(int(held[0]) - rim, 0), min(int(held[-1]) + rim, len(known) - 1)
    most = max(MOST_SLICES - len(largest), 1)
    evenly = np.linspace(low, high, min(most, high - low + 1)).round().astype(int)
    return sorted(largest | set(known[evenly].tolist()))
