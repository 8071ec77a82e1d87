"""Reverse classification accuracy (RCA): a segmenter is fitted on the prediction, and scored on the support set.

After Valindria et al., "Reverse classification accuracy: predicting segmentation performance in the absence of ground
truth" (IEEE TMI 2017). The reverse segmenter needs no training. If the prediction is good, it segments the support
cases well, whose references are known.
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
"""Maximum number of slices per case that the reverse segmenter is fitted on or scored on, which limits its time."""
PLAIN = {"roi_margin": "none", "largest_piece": "none"}
"""Settings of reverse segmenters, which segment whole slices one by one."""


def reverse_method(name: str, backbone: Backbone, slicer: Slicer) -> Method | None:
    """The reverse segmenter of a name in REVERSE; auto is fate if the backbone has a memory, else nearest-slice."""
    if name == "none":
        return None
    has_memory = isinstance(backbone, MemoryBackbone)
    if name == "nearest-slice" or (name == "auto" and not has_memory):
        return build_method("nearest-slice", PLAIN).with_slicer(slicer)
    return build_method("fate", {"window": 0, **PLAIN}).with_slicer(slicer)


@dataclass(frozen=True, eq=False)
class ScoredSlices:
    """The slices of a support case that a reverse segmenter is scored on."""

    slices: Tensor
    classes: Integer[np.ndarray[Any, Any], "n h w"]
    """Label values."""

    @classmethod
    def of(cls, view: SliceView, classes: NDArray[np.integer], labels: Labels) -> ScoredSlices:
        """Representative slices of `view`; `classes` are the label values (n, h, w) of all its slices, not all 0."""
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
    """{label value: the best Dice on a support case} of `method`, fitted on this prediction alone.

    `labels` are the labels in the prediction.
    """
    reference = _thinned(method.slicer.view(volume), prediction, labels)
    case = Case("prediction", volume, reference, labels)
    segmenter = method.fit(SupportSet((case,), labels), backbone).eval()
    best: dict[int, float] = {}
    for support_case in scored:
        chunks = torch.split(support_case.slices.to(backbone.device), CHUNK)
        classes = torch.cat([to_classes(segmenter(chunk)) for chunk in chunks]).cpu().numpy()
        for index, value in enumerate(labels.values, start=1):
            truth = support_case.classes == value
            if truth.any():
                dice = overlap(classes == index, truth, support_case.classes != IGNORE).dice
                best[value] = max(best.get(value, 0.0), dice)
    return best


def _thinned(view: SliceView, prediction: LabelMap, labels: Labels) -> LabelMap:
    """The prediction on representative slices; all other slices are unlabelled."""
    array = np.full(prediction.array.shape, IGNORE, dtype=np.int32)
    source, target = view.of(prediction.array), view.of(array)
    chosen = _representative(source, labels)
    target[chosen] = source[chosen]
    return LabelMap(array, view.volume.geometry, labels)


def _representative(classes: NDArray[np.integer], labels: Labels) -> list[int]:
    """At most MOST_SLICES labelled slices, evenly spaced over the labels and a margin on both sides.

    The slice on which a label is largest is always among them.
    """
    labelled = np.flatnonzero((classes != IGNORE).any(axis=(1, 2)))
    areas = np.stack([(classes[labelled] == value).sum(axis=(1, 2)) for value in labels.values])
    largest = {int(labelled[row]) for row in areas.argmax(axis=1)[areas.max(axis=1) > 0]}
    with_labels = np.flatnonzero(areas.any(axis=0))
    margin = max(1, len(with_labels) // 8)
    low, high = max(int(with_labels[0]) - margin, 0), min(int(with_labels[-1]) + margin, len(labelled) - 1)
    most = max(MOST_SLICES - len(largest), 1)
    evenly = np.linspace(low, high, min(most, high - low + 1)).round().astype(int)
    return sorted(largest | set(labelled[evenly].tolist()))
