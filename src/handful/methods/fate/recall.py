"""Answers from memory: which labels are in a slice, and where, in the light of its supports and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone
from handful.data.slicing import SliceView
from handful.methods.base import CHUNK, has_signal
from handful.methods.fate.support_bank import TOKENS, Retrieval, SupportBank, joined

ABSENT = -1024.0
"""Logit of a label that the model, or every retrieved support, says is not in the slice; SAM 2's own value."""


@dataclass(frozen=True)
class MemoryUse:
    """What of the memories is used and when a label counts as absent; see the settings of the same names in `Fate`."""

    allow_empty: bool
    pointers: bool
    absent_below: float


class SupportRecall:
    """The support's memories, and the backbone that recalls them."""

    def __init__(
        self, backbone: MemoryBackbone, bank: SupportBank, labels: int, retrieval: Retrieval, use: MemoryUse
    ) -> None:
        self.backbone, self.bank, self.labels = backbone, bank, labels
        self.retrieval, self.use = retrieval, use
        self.absent_below = torch.full((labels,), use.absent_below, device=backbone.device)
        self.absent_below[bank.in_every_picture()] = -torch.inf

    def encoded(
        self, stack: SliceView, order: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], ImageEmbeddings, list[tuple[int, ...]]]]:
        """A few slices at a time: their numbers, their embeddings, and the supports retrieved for each."""
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            image = self.backbone.encode(slices)
            places = (torch.tensor(list(numbers)) + 0.5) / len(stack)
            retrieved = self.retrieved(image, places.to(self.backbone.device))
            signal = has_signal(slices).tolist()
            yield numbers, image, [found if there else () for found, there in zip(retrieved, signal, strict=True)]

    def retrieved(self, image: ImageEmbeddings, places: Float[Tensor, " n"] | None = None) -> list[tuple[int, ...]]:
        """For each slice the numbers of the support slices that are most alike, the best first."""
        return self.bank.best(self.bank.likeness(image, self.retrieval.similarity), places, self.retrieval)

    def answer(
        self,
        image: ImageEmbeddings,
        retrieved: Sequence[tuple[int, ...]],
        numbers: Sequence[int],
        near: Sequence[Neighbour] = (),
    ) -> Answer:
        """All labels of a few slices, those with equally many memories in one call."""
        n, k, side = len(image), self.labels, self.backbone.mask_side
        logits = torch.full((n, k, side, side), ABSENT, device=self.backbone.device)
        object_score, iou = torch.full((2, n, k), torch.nan)
        predicted: list[tuple[list[Question], MaskPrediction]] = []
        for group in _answered_together(self._questions(retrieved, near)):
            for some in self._few_enough(group):
                prediction = self._recalled(image, some, near)
                assert prediction.object_score is not None
                rows, labels = [q.row for q in some], [q.label for q in some]
                there = (prediction.object_score[:, 0] > self.absent_below[labels])[:, None, None]
                logits[rows, labels] = torch.where(there, prediction.logits[:, 0].float(), ABSENT)
                object_score[rows, labels] = prediction.object_score[:, 0].float().cpu()
                iou[rows, labels] = prediction.iou[:, 0].float().cpu()
                predicted.append((some, prediction))
        return Answer(tuple(numbers), logits, object_score, iou, tuple(retrieved), tuple(predicted))

    def _questions(self, retrieved: Sequence[tuple[int, ...]], near: Sequence[Neighbour]) -> Iterator[Question]:
        """One for each slice and label that a retrieved support holds; for any other the answer is known."""
        for row, supports in enumerate(retrieved):
            for label in range(self.labels):
                remembered = self.bank.holders(supports, label)
                if remembered:
                    remembered += self.bank.without(supports, label) if self.use.allow_empty else ()
                    beside = tuple(i for i, neighbour in enumerate(near) if label in neighbour.labels)
                    yield Question(row, label, remembered, beside)

    def _few_enough(self, group: Sequence[Question]) -> Iterator[list[Question]]:
        """The questions in lots whose memories hold at most TOKENS tokens."""
        memories = len(group[0].supports) + len(group[0].near)
        lot = max(1, TOKENS // (memories * self.bank.tokens))
        yield from (list(group[start : start + lot]) for start in range(0, len(group), lot))

    def _recalled(
        self, image: ImageEmbeddings, questions: Sequence[Question], near: Sequence[Neighbour]
    ) -> MaskPrediction:
        """The answers to questions with equally many supports and the same neighbours, one row each."""
        beside = [near[i].of([q.label for q in questions]) for i in questions[0].near]
        memory = Memory.cat([self.bank.memory([q.supports for q in questions]), *beside])
        if not self.use.pointers:
            memory = replace(memory, pointers=memory.pointers[:, :0], pointer_distance=())
        return self.backbone.decode_recalled(self.backbone.recall(image[[q.row for q in questions]], memory))

    def left_by(self, number: int, image: ImageEmbeddings, answer: Answer) -> Neighbour:
        """What the answer to one slice leaves for its neighbours, also of labels it did not find there."""
        labels, parts = [], []
        for questions, prediction in answer.predicted:
            labels += [q.label for q in questions]
            rows, threshold = [q.row for q in questions], self.absent_below[[q.label for q in questions]]
            parts.append(self.backbone.remember(image[rows], prediction, distance=1, absent_below=threshold))
        return Neighbour(number, tuple(labels), joined(parts))


@dataclass(frozen=True)
class Question:
    """Whether and where a label is in a slice, and what memories answer it."""

    row: int
    label: int
    supports: tuple[int, ...]
    """Rows of the bank."""
    near: tuple[int, ...]
    """Which of the neighbours remember the label."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known of a few slices; logits in the model's square, numbers on the CPU."""

    numbers: tuple[int, ...]
    logits: Float[Tensor, "n k s s"]
    object_score: Float[Tensor, "n k"]
    iou: Float[Tensor, "n k"]
    retrieved: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[list[Question], MaskPrediction], ...]


@dataclass(frozen=True, eq=False)
class Neighbour:
    """What a slice that was answered leaves in memory: one row a label."""

    number: int
    labels: tuple[int, ...]
    memory: Memory | None
    """None where no label is queried."""

    def seen_from(self, number: int) -> Neighbour:
        """The same, as far away as it is from that slice."""
        if self.memory is None:
            return self
        away = abs(self.number - number)
        return replace(self, memory=replace(self.memory, distance=(away,), pointer_distance=(away,)))

    def of(self, labels: Sequence[int]) -> Memory:
        assert self.memory is not None
        return self.memory[[self.labels.index(label) for label in labels]]


def _answered_together(questions: Iterator[Question]) -> list[list[Question]]:
    """Questions with equally many supports and the same neighbours, which one call can answer."""
    groups: dict[tuple[int, tuple[int, ...]], list[Question]] = {}
    for question in questions:
        groups.setdefault((len(question.supports), question.near), []).append(question)
    return list(groups.values())
