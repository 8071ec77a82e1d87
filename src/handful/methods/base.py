"""The one place where scans and models meet: what a method is, and what it leaves behind when it has been fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.data.cases import SupportSet
from handful.data.slicing import Slicer, SliceView
from handful.data.volume import LabelMap, Labels, Volume
from handful.jobs.progress import Run

CHUNK = 8
"""Slices that go through a model at once: bounds memory, and more does not run faster on a CPU."""


class Segmenter(nn.Module, ABC):
    """What a method learned: ready to segment volumes it has never seen."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices in [0, 1]; background is logit 0."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """All that `Method.restore` needs beside the backbone, by name."""

    @torch.inference_mode()
    def predict(self, volume: Volume) -> LabelMap:
        """The label map of a volume, on its very grid; slices stream through, so their number costs no memory."""
        self.eval()
        return self.segment(self.slicer.view(volume))

    def segment(self, stack: SliceView) -> LabelMap:
        """The label map of a stack of slices; a method whose slices look at each other walks it in its own order."""
        return drawn(stack, self.labels, self._slice_by_slice(stack))

    def _slice_by_slice(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Tensor]]:
        for start in range(0, len(stack), CHUNK):
            numbers = range(len(stack))[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            yield numbers, to_classes(self.forward(slices)) * has_signal(slices)[:, None, None]


def drawn(stack: SliceView, labels: Labels, classes: Iterable[tuple[Sequence[int], Tensor]]) -> LabelMap:
    """The label map that slice numbers with class numbers (n, h, w) make up; they may come in any order."""
    geometry = stack.volume.geometry
    out = np.zeros(geometry.shape, dtype=np.int16 if max(labels.values) < 2**15 else np.int32)
    target = stack.of(out)
    values = np.array([0, *labels.values], dtype=out.dtype)
    for numbers, winner in classes:
        target[list(numbers)] = values[winner.cpu().numpy()]
    return LabelMap(out, geometry, labels)


def has_signal(slices: Float[Tensor, "n c h w"]) -> Bool[Tensor, " n"]:
    """False for slices of one value throughout: there is nothing to be found."""
    return slices.amax(dim=(1, 2, 3)) > slices.amin(dim=(1, 2, 3))


def to_classes(logits: Float[Tensor, "n k h w"]) -> Tensor:
    """Class numbers (n, h, w): 0 where no label's logit is above 0, else 1 + the index of the largest."""
    best, index = logits.max(dim=1)
    return torch.where(best > 0, index + 1, 0)


def below(prefix: str, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `prefix/...`, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in learned.items() if name.startswith(f"{prefix}/")}


@runtime_checkable
class Method(Protocol):
    """A way to learn from a support set: a frozen dataclass of settings, nothing learned."""

    @property
    def slicer(self) -> Slicer:
        """Plane and window, the same when fitting and when predicting."""
        ...

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> Segmenter:  # noqa: B008
        """A segmenter for the support's labels; the backbone and the support stay as they were."""
        ...

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> Segmenter:
        """The segmenter that `fit` returned, from what it learned."""
        ...
