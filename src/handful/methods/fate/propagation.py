"""Propagation through a stack: the order of its slices, and the neighbours whose predictions each of them uses."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from handful.backbones.base import ImageEmbeddings
from handful.data.slicing import SliceView
from handful.data.volume import Labels
from handful.jobs.files import reserved
from handful.methods.fate.recall import Neighbour, SlicePredictions, SupportRecall
from handful.methods.fate.support_bank import memorized

CERTAIN = 10.0
"""Logits of two directions are clipped to this before they are averaged."""


@dataclass(frozen=True)
class PropagationOrder:
    """The order of propagation; see the settings of the same names in `Fate`."""

    window: int
    start: Literal["middle", "best"]
    forward_uses_reverse: bool
    fuse: bool


class StackPropagation:
    """Predicts all slices of a stack from the labelled slices and from neighbours that were predicted before."""

    def __init__(self, recall: SupportRecall, order: PropagationOrder) -> None:
        self.recall, self.order = recall, order

    def predictions(self, stack: SliceView) -> Iterator[SlicePredictions]:
        """The predictions for each slice, in the order of propagation."""
        if self.order.window == 0:
            return self._without_neighbours(stack)
        return self._fused(stack) if self.order.fuse else self._from_start(stack)

    def second_sweep(
        self, stack: SliceView, classes: NDArray[np.integer], labels: Labels
    ) -> Iterator[SlicePredictions]:
        """Each slice with its neighbours on both sides, whose labels are `classes` (n, h, w, label values)."""
        reach = (self.order.window + 1) // 2
        passing: deque[_SweptSlice | None] = deque(maxlen=2 * reach + 1)
        for swept in chain(self._swept(stack, classes, labels), repeat(None, reach)):
            passing.append(swept)
            here = passing[-1 - reach] if len(passing) > reach else None
            if here is not None:
                number = here.left.number
                near = [s.left.as_neighbour_of(number) for s in passing if s is not None and s is not here]
                yield self.recall.predict(here.image, [here.retrieved], (number,), near)

    def _without_neighbours(self, stack: SliceView) -> Iterator[SlicePredictions]:
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            yield self.recall.predict(image, retrieved, numbers)

    def _from_start(self, stack: SliceView) -> Iterator[SlicePredictions]:
        """From the start to the first slice, then from the start to the last."""
        start = len(stack) // 2 if self.order.start == "middle" else self._best_start(stack)
        first = yield from self._propagated(stack, range(start, -1, -1), ())
        near = first[::-1] if self.order.forward_uses_reverse else first[:1]  # the farthest is forgotten first
        yield from self._propagated(stack, range(start + 1, len(stack)), near)

    def _fused(self, stack: SliceView) -> Iterator[SlicePredictions]:
        """Upwards through the whole stack, stored, then downwards, averaged with it."""
        shape = (len(stack), self.recall.labels, self.recall.backbone.mask_side, self.recall.backbone.mask_side)
        notes = ConfidenceNotes(len(stack), self.recall.labels)
        with tempfile.TemporaryFile() as file:
            kept = reserved(file, np.dtype(np.float16), shape)
            for prediction in self._propagated(stack, range(len(stack)), ()):
                notes.take(prediction)
                kept[list(prediction.numbers)] = prediction.logits.clamp(-CERTAIN, CERTAIN).cpu().numpy()
            for prediction in self._propagated(stack, range(len(stack) - 1, -1, -1), ()):
                numbers = list(prediction.numbers)
                up = torch.from_numpy(kept[numbers]).to(prediction.logits)
                yield replace(
                    prediction,
                    logits=(prediction.logits.clamp(-CERTAIN, CERTAIN) + up) / 2,
                    object_score=(prediction.object_score + notes.object_score[numbers]) / 2,
                    iou=(prediction.iou + notes.iou[numbers]) / 2,
                )

    def _propagated(
        self, stack: SliceView, order: Sequence[int], near: Sequence[Neighbour]
    ) -> Generator[SlicePredictions, None, tuple[Neighbour, ...]]:
        """Predict slice after slice, each with the memories of those before; returns the memories of the first few."""
        window = self.order.window
        first: list[Neighbour] = []
        for numbers, image, retrieved in self.recall.encoded(stack, order):
            for row, number in enumerate(numbers):
                neighbours = [n.as_neighbour_of(number) for n in near if abs(n.number - number) <= window]
                prediction = self.recall.predict(image[row], retrieved[row : row + 1], (number,), neighbours)
                yield prediction
                left = self.recall.memory_of(number, image[row], prediction)
                near = [*near, left][-window:]
                first = [*first, left][:window]
        return tuple(first)

    def _swept(self, stack: SliceView, classes: NDArray[np.integer], labels: Labels) -> Iterator[_SweptSlice]:
        values = np.array(labels.values)[:, None, None]
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            for row, number in enumerate(numbers):
                held = [label for label in range(len(values)) if self.recall.bank.memories_with(retrieved[row], label)]
                masks = torch.from_numpy((classes[number] == values)[held].astype(np.float32))
                memory = memorized(self.recall.backbone, image, torch.full((len(held),), row), masks)
                yield _SweptSlice(image[row], retrieved[row], Neighbour(number, tuple(held), memory))

    def _best_start(self, stack: SliceView) -> int:
        """The slice whose retrieved slices contain the most labels; among these, the one most similar to them."""
        best, start = (-1, -float("inf")), 0
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            scores = self.recall.bank.similarities(image, self.recall.retrieval.similarity)
            for row, number in enumerate(numbers):
                held = sum(
                    bool(self.recall.bank.memories_with(retrieved[row], label)) for label in range(self.recall.labels)
                )
                similar = float(scores[row, list(retrieved[row])].mean()) if held else -float("inf")
                if (held, similar) > best:
                    best, start = (held, similar), number
        return start


class ConfidenceNotes:
    """The confidence of each slice, collected during the propagation."""

    def __init__(self, slices: int, labels: int) -> None:
        self.object_score = torch.full((slices, labels), torch.nan)
        self.iou = torch.full((slices, labels), torch.nan)
        self.retrieved: list[tuple[int, ...]] = [()] * slices

    def take(self, prediction: SlicePredictions) -> None:
        for row, number in enumerate(prediction.numbers):
            self.object_score[number] = prediction.object_score[row]
            self.iou[number] = prediction.iou[row]
            self.retrieved[number] = prediction.retrieved[row]


@dataclass(frozen=True, eq=False)
class _SweptSlice:
    """A slice in the second pass: its embeddings, its retrieved slices, and the memory of its first prediction."""

    image: ImageEmbeddings
    retrieved: tuple[int, ...]
    left: Neighbour
