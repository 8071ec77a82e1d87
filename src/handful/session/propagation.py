"""From the slices that an annotator has seen to those she has not: a label walks outwards from where it is known.

A backbone with a memory remembers the known slices and, as FATE does (He et al., arXiv 2501.09138), its own answer next
door. Any other is asked with the answer next door, as a mask and as the box round it.
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
"""Slice numbers to masks of one label, empty where it is known not to be."""


def walked(
    who: Predictor,
    embeddings: SliceEmbeddings,
    known: Mapping[int, Masks],
    supports: int,
    report: Report,
) -> dict[int, NDArray[np.uint16]]:
    """For each slice that a label was looked for in, the class numbers found there: 0 or 1 + the label's index.

    `known` has, for each label index, the slices on which it is known; all others are walked to, the label being absent
    where no known slice that holds it comes first on the way out. At most `supports` known slices are remembered.
    """
    walkers = {label: _walker(who, embeddings, label, masks, supports) for label, masks in known.items()}
    found: dict[int, _Found] = {}
    count, done = len(embeddings.stack), 0
    for step in (1, -1):
        for number in range(count)[::step]:
            for label, walker in walkers.items():
                if number in known[label] or _side(known[label], number) != -step:
                    continue
                logits = walker.look(number, number - step)
                found.setdefault(number, _Found.nothing(embeddings.stack.size)).add(label, logits)
            done += 1
            report(done, 2 * count, "propagating")
    for number in set(range(count)) - set(found):
        if any(number not in masks for masks in known.values()):
            found[number] = _Found.nothing(embeddings.stack.size)
    return {number: found[number].classes for number in sorted(found)}


def _side(known: Masks, number: int) -> int:
    """-1 or 1: on which side the nearest known slice lies from which the label can come; 0 where from neither."""
    below, above = (
        max((n for n in known if n < number), default=-1),
        min((n for n in known if n > number), default=-1),
    )
    near = [(abs(n - number), side) for n, side in ((below, -1), (above, 1)) if n >= 0 and known[n].any()]
    return min(near)[1] if near else 0


@dataclass(eq=False)
class _Found:
    """What labels said of one slice so far: the class of the largest logit above 0."""

    classes: NDArray[np.uint16]
    best: NDArray[np.float32]

    @classmethod
    def nothing(cls, size: tuple[int, int]) -> _Found:
        return cls(np.zeros(size, np.uint16), np.zeros(size, np.float32))

    def add(self, label: int, logits: Float[Tensor, "h w"] | None) -> None:
        if logits is None:
            return
        values = logits.cpu().numpy()
        better = values > self.best
        self.classes[better] = label + 1
        self.best = np.where(better, values, self.best)


class _Walker(ABC):
    """Looks for one label on slice after slice."""

    def __init__(self, who: Predictor, embeddings: SliceEmbeddings, label: int, known: Masks) -> None:
        self.who, self.embeddings, self.label, self.known = who, embeddings, label, known

    @abstractmethod
    def look(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        """Logits on a slice that is not known, reached from the one `before` it; None where the label is absent."""


def _walker(who: Predictor, embeddings: SliceEmbeddings, label: int, known: Masks, supports: int) -> _Walker:
    if isinstance(who.backbone, MemoryBackbone):
        return _Remembering(who, embeddings, label, known, who.backbone, supports)
    return _Passing(who, embeddings, label, known)


class _Passing(_Walker):
    """Hands each answer on to the next slice as its prompt."""

    def __init__(self, who: Predictor, embeddings: SliceEmbeddings, label: int, known: Masks) -> None:
        super().__init__(who, embeddings, label, known)
        self._last: Float[Tensor, "h w"] | None = None

    def look(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        logits = mask_logits(self.known[before]) if before in self.known else self._last
        self._last = None
        if logits is not None and bool((logits > 0).any()) and bool(has_signal(self.embeddings.pixels(number))):
            box = boxes((logits > 0)[None, None].cpu(), 0.0, Generator())
            prompted = self.who.answer(
                self.embeddings, number, self.label, Prompts(boxes=box, masks=logits[None, None])
            )
            self._last = prompted.cpu()
        return self._last


class _Remembering(_Walker):
    """Sees each slice in the light of the nearest known ones and of the answer next door."""

    def __init__(
        self,
        who: Predictor,
        embeddings: SliceEmbeddings,
        label: int,
        known: Masks,
        backbone: MemoryBackbone,
        supports: int,
    ) -> None:
        super().__init__(who, embeddings, label, known)
        self._backbone, self._supports = backbone, supports
        self._holding = [number for number, mask in known.items() if mask.any()]
        self._memories: dict[int, Memory] = {}
        self._left: Memory | None = None

    @torch.no_grad()
    def look(self, number: int, before: int) -> Float[Tensor, "h w"] | None:
        if not bool(has_signal(self.embeddings.pixels(number))):
            self._left = None
            return None
        image = self.embeddings.image(number)
        memories = self._nearest(number)
        if before not in self.known and self._left is not None:
            memories.append(self._left)
        answer = self._backbone.decode_recalled(self._backbone.recall(image, Memory.cat(memories)))
        assert answer.object_score is not None
        self._left = self._backbone.remember(image, answer, distance=1)
        if float(answer.object_score) <= 0:
            return None
        return self._backbone.to_image_frame(answer.logits, image.size)[0, 0]

    def _nearest(self, number: int) -> list[Memory]:
        """Memories of the known slices nearest to this one; those of others are forgotten."""
        near = sorted(self._holding, key=lambda known: (abs(known - number), known))[: self._supports]
        self._memories = {known: self._memories.get(known) or self._memorized(known) for known in near}
        return list(self._memories.values())

    def _memorized(self, number: int) -> Memory:
        """A structure smaller than a pixel of the model's square is shown as the pixels it covers most."""
        mask = torch.from_numpy(self.known[number].astype(np.float32)).to(self._backbone.device)
        inside = self._backbone.to_model_frame(mask[None, None], self._backbone.side)[:, 0]
        shown = inside > inside.amax(dim=(1, 2), keepdim=True) / 2
        return self._backbone.memorize(self.embeddings.image(number), shown.float())


def merged(old: NDArray[np.uint16], found: NDArray[np.uint16], labels: Sequence[int]) -> NDArray[np.uint16]:
    """A proposal in which the labels of these indices are where they were found, before all others."""
    rest = np.where(np.isin(old, [label + 1 for label in labels]), 0, old)
    return np.where(found > 0, found, rest).astype(np.uint16)
