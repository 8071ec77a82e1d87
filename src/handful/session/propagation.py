"""Propagation of labels from segmented slices to the others, slice by slice outwards.

A backbone with a memory uses the segmented slices and, as in FATE (He et al., arXiv 2501.09138), its own prediction on
the neighbouring slice. Any other backbone is prompted with the mask of the neighbouring slice and the box around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Generator, Tensor

from handful.backbones.base import Memory, MemoryBackbone
from handful.jobs.progress import Report
from handful.methods.base import has_signal
from handful.prompts.heuristics import boxes
from handful.prompts.prompts import Prompts
from handful.session.embeddings import SliceEmbeddings
from handful.session.predictors import Predictor
from handful.session.slice_state import mask_logits

Masks = Mapping[int, Bool[NDArray[np.bool_], "h w"]]
"""{slice number: mask} of one label; an empty mask where the label is absent."""


def propagated(
    predictor: Predictor,
    embeddings: SliceEmbeddings,
    given: Mapping[int, Masks],
    supports: int,
    report: Report,
    stop_after: int | None = None,
) -> dict[int, NDArray[np.uint16]]:
    """The class numbers of all slices that labels were propagated to: 0 or 1 + the index of the label.

    `given` has the masks of each label (by index) on the segmented slices. A label is absent from a slice if the
    nearest segmented slices on both sides do not contain it. At most `supports` segmented slices are used per slice.
    With `stop_after`, a label that is absent from so many slices in a row is not looked for beyond them.
    """
    propagators = {label: _propagator(predictor, embeddings, label, masks, supports) for label, masks in given.items()}
    results: dict[int, _ClassMap] = {}
    count, done = len(embeddings.stack), 0
    for step in (1, -1):
        absent = dict.fromkeys(propagators, 0)  # slices in a row without the label
        for number in range(count)[::step]:
            for label, propagator in propagators.items():
                if number in given[label] or _side(given[label], number) != -step:
                    absent[label] = 0
                    continue
                if stop_after is not None and absent[label] >= stop_after:
                    continue
                logits = propagator.logits(number, number - step)
                absent[label] = 0 if logits is not None and bool((logits > 0).any()) else absent[label] + 1
                results.setdefault(number, _ClassMap.empty(embeddings.stack.size)).add(label, logits)
            done += 1
            report(done, 2 * count, "propagating")
    for number in set(range(count)) - set(results):
        if any(number not in masks for masks in given.values()):
            results[number] = _ClassMap.empty(embeddings.stack.size)
    return {number: results[number].classes for number in sorted(results)}


def _side(given: Masks, number: int) -> int:
    """The side of the nearest segmented slice that contains the label: -1 (below), 1 (above), or 0 if there is none.

    Only the nearest segmented slice on each side counts.
    """
    below, above = (
        max((n for n in given if n < number), default=-1),
        min((n for n in given if n > number), default=-1),
    )
    near = [(abs(n - number), side) for n, side in ((below, -1), (above, 1)) if n >= 0 and given[n].any()]
    return min(near)[1] if near else 0


@dataclass(eq=False)
class _ClassMap:
    """Class numbers of one slice: at each pixel, the class of the largest logit above 0 of the labels added so far."""

    classes: NDArray[np.uint16]
    best: NDArray[np.float32]

    @classmethod
    def empty(cls, size: tuple[int, int]) -> _ClassMap:
        return cls(np.zeros(size, np.uint16), np.zeros(size, np.float32))

    def add(self, label: int, logits: Float[Tensor, "h w"] | None) -> None:
        if logits is None:
            return
        values = logits.cpu().numpy()
        better = values > self.best
        self.classes[better] = label + 1
        self.best = np.where(better, values, self.best)


class _Propagator(ABC):
    """Segments one label on slice after slice."""

    def __init__(self, predictor: Predictor, embeddings: SliceEmbeddings, label: int, given: Masks) -> None:
        self.predictor, self.embeddings, self.label, self.given = predictor, embeddings, label, given

    @abstractmethod
    def logits(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        """Logits on slice `number`, coming from its neighbour `before`; None if the label is absent."""


def _propagator(
    predictor: Predictor, embeddings: SliceEmbeddings, label: int, given: Masks, supports: int
) -> _Propagator:
    if isinstance(predictor.backbone, MemoryBackbone):
        return _MemoryPropagator(predictor, embeddings, label, given, predictor.backbone, supports)
    return _PromptPropagator(predictor, embeddings, label, given)


class _PromptPropagator(_Propagator):
    """Prompts each slice with the mask of its neighbour."""

    def __init__(self, predictor: Predictor, embeddings: SliceEmbeddings, label: int, given: Masks) -> None:
        super().__init__(predictor, embeddings, label, given)
        self._last: Float[Tensor, "h w"] | None = None

    def logits(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        logits = mask_logits(self.given[before]) if before in self.given else self._last
        self._last = None
        if logits is not None and bool((logits > 0).any()) and bool(has_signal(self.embeddings.pixels(number))):
            box = boxes((logits > 0)[None, None].cpu(), 0.0, Generator())
            prompts = Prompts(boxes=box, masks=logits[None, None])
            self._last = self.predictor.logits(self.embeddings, number, self.label, prompts).cpu()
        return self._last


class _MemoryPropagator(_Propagator):
    """Segments each slice from memories of the nearest segmented slices and of the prediction on its neighbour."""

    def __init__(
        self,
        predictor: Predictor,
        embeddings: SliceEmbeddings,
        label: int,
        given: Masks,
        backbone: MemoryBackbone,
        supports: int,
    ) -> None:
        super().__init__(predictor, embeddings, label, given)
        self._backbone, self._supports = backbone, supports
        self._with_label = [number for number, mask in given.items() if mask.any()]
        self._memories: dict[int, Memory] = {}
        self._neighbour: Memory | None = None

    @torch.no_grad()
    def logits(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        if not bool(has_signal(self.embeddings.pixels(number))):
            self._neighbour = None
            return None
        image = self.embeddings.image(number)
        memories = self._nearest(number)
        if before not in self.given and self._neighbour is not None:
            memories.append(self._neighbour)
        prediction = self._backbone.decode_recalled(self._backbone.recall(image, Memory.cat(memories)))
        assert prediction.object_score is not None
        self._neighbour = self._backbone.remember(image, prediction, distance=1)
        if float(prediction.object_score) <= 0:
            return None
        return self._backbone.to_image_frame(prediction.logits, image.size)[0, 0]

    def _nearest(self, number: int) -> list[Memory]:
        """Memories of the nearest segmented slices with the label; memories of other slices are dropped."""
        near = sorted(self._with_label, key=lambda other: (abs(other - number), other))[: self._supports]
        self._memories = {other: self._memories.get(other) or self._memory_of(other) for other in near}
        return list(self._memories.values())

    def _memory_of(self, number: int) -> Memory:
        """The memory of a segmented slice. A label smaller than a pixel of the model frame fills the best pixels."""
        mask = torch.from_numpy(self.given[number].astype(np.float32)).to(self._backbone.device)
        inside = self._backbone.to_model_frame(mask[None, None], self._backbone.side)[:, 0]
        framed = inside > inside.amax(dim=(1, 2), keepdim=True) / 2
        return self._backbone.memorize(self.embeddings.image(number), framed.float())


def merged(old: NDArray[np.uint16], new: NDArray[np.uint16], labels: Sequence[int]) -> NDArray[np.uint16]:
    """A proposal in which the labels with these indices are as in `new`, in front of all others."""
    others = np.where(np.isin(old, [label + 1 for label in labels]), 0, old)
    return np.where(new > 0, new, others).astype(np.uint16)
