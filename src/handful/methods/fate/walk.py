"""The walk through a stack: in which order its slices are answered, and which neighbours each of them remembers."""

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
from handful.methods.fate.recall import Answer, Neighbour, SupportRecall
from handful.methods.fate.support_bank import memorized

CERTAIN = 10.0
"""Logits of two sweeps are cut off here before they are averaged."""


@dataclass(frozen=True)
class WalkOrder:
    """How a stack is walked through; see the settings of the same names in `Fate`."""

    window: int
    start: Literal["middle", "best"]
    forward_uses_reverse: bool
    fuse: bool


class StackWalk:
    """Answers all slices of a stack from the memories of the support and of the neighbours answered before."""

    def __init__(self, recall: SupportRecall, order: WalkOrder) -> None:
        self.recall, self.order = recall, order

    def answers(self, stack: SliceView) -> Iterator[Answer]:
        """An answer to each slice, in the order of the walk."""
        if self.order.window == 0:
            return self._alone(stack)
        return self._fused(stack) if self.order.fuse else self._outwards(stack)

    def again(self, stack: SliceView, classes: NDArray[np.integer], labels: Labels) -> Iterator[Answer]:
        """Each slice with the neighbours on both sides, as `classes` (n, h, w, label values) has them."""
        reach = (self.order.window + 1) // 2
        passing: deque[_SweptSlice | None] = deque(maxlen=2 * reach + 1)
        for swept in chain(self._swept(stack, classes, labels), repeat(None, reach)):
            passing.append(swept)
            here = passing[-1 - reach] if len(passing) > reach else None
            if here is not None:
                number = here.left.number
                near = [s.left.seen_from(number) for s in passing if s is not None and s is not here]
                yield self.recall.answer(here.image, [here.retrieved], (number,), near)

    def _alone(self, stack: SliceView) -> Iterator[Answer]:
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            yield self.recall.answer(image, retrieved, numbers)

    def _outwards(self, stack: SliceView) -> Iterator[Answer]:
        """From the start to the first slice, then from the start to the last."""
        start = len(stack) // 2 if self.order.start == "middle" else self._best_start(stack)
        first = yield from self._walked(stack, range(start, -1, -1), ())
        near = first if self.order.forward_uses_reverse else first[:1]
        yield from self._walked(stack, range(start + 1, len(stack)), near)

    def _fused(self, stack: SliceView) -> Iterator[Answer]:
        """The whole way up, kept aside, then the whole way down, averaged with it."""
        shape = (len(stack), self.recall.labels, self.recall.backbone.mask_side, self.recall.backbone.mask_side)
        notes = ConfidenceNotes(len(stack), self.recall.labels)
        with tempfile.TemporaryFile() as file:
            kept = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
            for answer in self._walked(stack, range(len(stack)), ()):
                notes.take(answer)
                kept[list(answer.numbers)] = answer.logits.clamp(-CERTAIN, CERTAIN).cpu().numpy()
            for answer in self._walked(stack, range(len(stack) - 1, -1, -1), ()):
                numbers = list(answer.numbers)
                up = torch.from_numpy(kept[numbers]).to(answer.logits)
                yield replace(
                    answer,
                    logits=(answer.logits.clamp(-CERTAIN, CERTAIN) + up) / 2,
                    object_score=(answer.object_score + notes.object_score[numbers]) / 2,
                    iou=(answer.iou + notes.iou[numbers]) / 2,
                )

    def _walked(
        self, stack: SliceView, order: Sequence[int], near: Sequence[Neighbour]
    ) -> Generator[Answer, None, tuple[Neighbour, ...]]:
        """Answers slice after slice, each remembering those before it; what the first few left behind comes back."""
        window = self.order.window
        first: list[Neighbour] = []
        for numbers, image, retrieved in self.recall.encoded(stack, order):
            for row, number in enumerate(numbers):
                beside = [n.seen_from(number) for n in near if abs(n.number - number) <= window]
                answer = self.recall.answer(image[row], retrieved[row : row + 1], (number,), beside)
                yield answer
                left = self.recall.left_by(number, image[row], answer)
                near = [*near, left][-window:]
                first = [*first, left][:window]
        return tuple(first)

    def _swept(self, stack: SliceView, classes: NDArray[np.integer], labels: Labels) -> Iterator[_SweptSlice]:
        values = np.array(labels.values)[:, None, None]
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            for row, number in enumerate(numbers):
                held = [label for label in range(len(values)) if self.recall.bank.holders(retrieved[row], label)]
                masks = torch.from_numpy((classes[number] == values)[held].astype(np.float32))
                memory = memorized(self.recall.backbone, image, torch.full((len(held),), row), masks)
                yield _SweptSlice(image[row], retrieved[row], Neighbour(number, tuple(held), memory))

    def _best_start(self, stack: SliceView) -> int:
        """The slice whose retrieved supports hold the most labels; among those, the one that is most alike to them."""
        best, start = (-1, -float("inf")), 0
        for numbers, image, retrieved in self.recall.encoded(stack, range(len(stack))):
            scores = self.recall.bank.likeness(image, self.recall.retrieval.similarity)
            for row, number in enumerate(numbers):
                held = sum(bool(self.recall.bank.holders(retrieved[row], label)) for label in range(self.recall.labels))
                alike = float(scores[row, list(retrieved[row])].mean()) if held else -float("inf")
                if (held, alike) > best:
                    best, start = (held, alike), number
        return start


class ConfidenceNotes:
    """Confidence of each slice, filled in as the answers come."""

    def __init__(self, slices: int, labels: int) -> None:
        self.object_score = torch.full((slices, labels), torch.nan)
        self.iou = torch.full((slices, labels), torch.nan)
        self.retrieved: list[tuple[int, ...]] = [()] * slices

    def take(self, answer: Answer) -> None:
        for row, number in enumerate(answer.numbers):
            self.object_score[number] = answer.object_score[row]
            self.iou[number] = answer.iou[row]
            self.retrieved[number] = answer.retrieved[row]


@dataclass(frozen=True, eq=False)
class _SweptSlice:
    """A slice in the second sweep: what it looks like, its supports, and what the first sweep said of it."""

    image: ImageEmbeddings
    retrieved: tuple[int, ...]
    left: Neighbour
