"""Predictions from memory: which labels are in a slice, and where, by its retrieved slices and its neighbours."""

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
"""Logit of a label that is predicted as absent from a slice; the value of SAM 2."""


@dataclass(frozen=True)
class MemoryUse:
    """How memories are used, and when a label counts as absent; see the settings of the same names in `Fate`."""

    allow_empty: bool
    pointers: bool
    absent_below: float


class SupportRecall:
    """The memories of the labelled slices, and the backbone that uses them."""

    def __init__(
        self, backbone: MemoryBackbone, bank: SupportBank, labels: int, retrieval: Retrieval, use: MemoryUse
    ) -> None:
        self.backbone, self.bank, self.labels = backbone, bank, labels
        self.retrieval, self.use = retrieval, use
        self._absent_below = torch.full((labels,), use.absent_below)
        self._absent_below[bank.labels_in_all_pictures().cpu()] = -torch.inf

    def encoded(
        self, stack: SliceView, order: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], ImageEmbeddings, list[tuple[int, ...]]]]:
        """In batches: numbers of slices, their embeddings, and the labelled slices retrieved for each."""
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            image = self.backbone.encode(slices)
            places = (torch.tensor(list(numbers)) + 0.5) / len(stack)
            retrieved = self.retrieved(image, places.to(self.backbone.device))
            signal = has_signal(slices).tolist()
            yield numbers, image, [found if there else () for found, there in zip(retrieved, signal, strict=True)]

    def _thresholds(self, labels: Sequence[int]) -> Float[Tensor, " n"]:
        """The object score below which each of these labels counts as absent, on the backbone's device now."""
        return self._absent_below[list(labels)].to(self.backbone.device)

    def retrieved(self, image: ImageEmbeddings, places: Float[Tensor, " n"] | None = None) -> list[tuple[int, ...]]:
        """For each slice, the numbers of the most similar labelled slices in the bank, the most similar first."""
        return self.bank.best(self.bank.similarities(image, self.retrieval.similarity), places, self.retrieval)

    def predict(
        self,
        image: ImageEmbeddings,
        retrieved: Sequence[tuple[int, ...]],
        numbers: Sequence[int],
        near: Sequence[Neighbour] = (),
    ) -> SlicePredictions:
        """All labels of some slices; those with equally many memories share one call."""
        n, k, side = len(image), self.labels, self.backbone.mask_side
        logits = torch.full((n, k, side, side), ABSENT, device=self.backbone.device)
        object_score, iou = torch.full((2, n, k), torch.nan)
        predicted: list[tuple[list[Query], MaskPrediction]] = []
        for group in _decoded_together(self._queries(retrieved, near)):
            for some in self._batches(group):
                prediction = self._recalled(image, some, near)
                assert prediction.object_score is not None
                rows, labels = [q.row for q in some], [q.label for q in some]
                present = (prediction.object_score[:, 0] > self._thresholds(labels))[:, None, None]
                logits[rows, labels] = torch.where(present, prediction.logits[:, 0].float(), ABSENT)
                object_score[rows, labels] = prediction.object_score[:, 0].float().cpu()
                iou[rows, labels] = prediction.iou[:, 0].float().cpu()
                predicted.append((some, prediction))
        return SlicePredictions(tuple(numbers), logits, object_score, iou, tuple(retrieved), tuple(predicted))

    def _queries(self, retrieved: Sequence[tuple[int, ...]], near: Sequence[Neighbour]) -> Iterator[Query]:
        """One for each slice and label that a retrieved slice contains; any other label is absent."""
        for row, supports in enumerate(retrieved):
            for label in range(self.labels):
                remembered = self.bank.memories_with(supports, label)
                if remembered:
                    remembered += self.bank.memories_of_absence(supports, label) if self.use.allow_empty else ()
                    neighbours = tuple(i for i, neighbour in enumerate(near) if label in neighbour.labels)
                    yield Query(row, label, remembered, neighbours)

    def _batches(self, group: Sequence[Query]) -> Iterator[list[Query]]:
        """The queries in batches whose memories have at most TOKENS tokens."""
        memories = len(group[0].supports) + len(group[0].near)
        lot = max(1, TOKENS // (memories * self.bank.tokens))
        yield from (list(group[start : start + lot]) for start in range(0, len(group), lot))

    def _recalled(self, image: ImageEmbeddings, queries: Sequence[Query], near: Sequence[Neighbour]) -> MaskPrediction:
        """The predictions for queries with equally many labelled slices and the same neighbours, one row each."""
        neighbours = [near[i].of([q.label for q in queries]) for i in queries[0].near]
        memory = Memory.cat([self.bank.memory([q.supports for q in queries]), *neighbours])
        if not self.use.pointers:
            memory = replace(memory, pointers=memory.pointers[:, :0], pointer_distance=())
        return self.backbone.decode_recalled(self.backbone.recall(image[[q.row for q in queries]], memory))

    def memory_of(self, number: int, image: ImageEmbeddings, answer: SlicePredictions) -> Neighbour:
        """The memory of the predictions of one slice, for its neighbours; labels predicted as absent included."""
        labels, parts = [], []
        for queries, prediction in answer.predicted:
            labels += [q.label for q in queries]
            rows, threshold = [q.row for q in queries], self._thresholds([q.label for q in queries])
            parts.append(self.backbone.remember(image[rows], prediction, distance=1, absent_below=threshold))
        return Neighbour(number, tuple(labels), joined(parts))


@dataclass(frozen=True)
class Query:
    """A label in a slice that is to be predicted, and the memories to predict it from."""

    row: int
    label: int
    supports: tuple[int, ...]
    """Rows of the bank."""
    near: tuple[int, ...]
    """Numbers of the neighbours with a memory of the label."""


@dataclass(frozen=True, eq=False)
class SlicePredictions:
    """The predictions for some slices; logits in the model's frame, scores on the CPU."""

    numbers: tuple[int, ...]
    logits: Float[Tensor, "n k s s"]
    object_score: Float[Tensor, "n k"]
    iou: Float[Tensor, "n k"]
    retrieved: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[list[Query], MaskPrediction], ...]


@dataclass(frozen=True, eq=False)
class Neighbour:
    """The memory of a predicted slice: one row per label."""

    number: int
    labels: tuple[int, ...]
    memory: Memory | None
    """None where no label is queried."""

    def as_neighbour_of(self, number: int) -> Neighbour:
        """The same memory, with its distance from that slice."""
        if self.memory is None:
            return self
        away = abs(self.number - number)
        return replace(self, memory=replace(self.memory, distance=(away,), pointer_distance=(away,)))

    def of(self, labels: Sequence[int]) -> Memory:
        assert self.memory is not None
        return self.memory[[self.labels.index(label) for label in labels]]


def _decoded_together(queries: Iterator[Query]) -> list[list[Query]]:
    """Questions with equally many supports and the same neighbours, which one call can answer."""
    groups: dict[tuple[int, tuple[int, ...]], list[Query]] = {}
    for query in queries:
        groups.setdefault((len(query.supports), query.near), []).append(query)
    return list(groups.values())
