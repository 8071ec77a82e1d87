"""FATE-SAM: a memory model is shown the most similar support slices with their masks; nothing is trained.

After He, Hu, Zhou, Jarraya and Liu, "Few-shot adaptation of training-free foundation model for 3D medical image
segmentation" (arXiv 2501.09138). It departs from the authors' code in three points. A support is remembered per label,
so that one that lacks a label says nothing of it. Retrieval also finds slices without any label, so that what is absent
may stay absent. Object pointers reach as far as `window`, where theirs reach 15 slices, and alike in both directions.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone
from handful.backbones.catalog import BACKBONES
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import CHUNK, Method, Segmenter, drawn, has_signal, require_same_labels, to_classes
from handful.methods.explained import Explained, SliceConfidence, SupportPicture
from handful.methods.fate.support_bank import TOKENS, Retrieval, Similarity, SupportBank, bank_of, joined, memorized
from handful.tuning.precision import Precision, computing_in

FARTHEST = 6
"""Slices between a memory and the slice it helps, at most: SAM 2 knows no larger distance."""
ABSENT = -1024.0
"""Logit of a label that the model, or every retrieved support, says is not in the slice; SAM 2's own value."""
CERTAIN = 10.0
"""Logits of two sweeps are cut off here before they are averaged."""


@dataclass(frozen=True, kw_only=True)
class Fate(Method):
    """SAM 2's memory is shown the labelled slices that look most alike, and its own answers next door; no training."""

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    similarity: Similarity = "cosine"
    """What makes a support slice alike: the cosine of the image embeddings place by place, the cosine of their means
    over the slice, or, as in the authors' code, the least absolute difference over all feature levels."""
    top_k: int = 5
    """Support slices retrieved for each slice."""
    diverse: bool = False
    """Take the best slice of every support case before the second best of any."""
    place_tolerance: float = 1.0
    """Largest difference in relative place along the stack between a slice and its supports, such as 0.2; 1 allows any.
    Where no support lies so near, any will do."""
    foreground_only: bool = False
    """Retrieve only slices that hold a label, as the authors do; then none can say that there is nothing here."""
    allow_empty: bool = False
    """Whether a retrieved support that lacks a label is remembered for it, with an empty mask, or left out. Either way
    a label that no retrieved support holds is absent."""
    window: int = 1
    """Predicted neighbours, at most this many slices away (0 to 6), that join the memory; 0 asks each slice alone."""
    absent_below: float = 0.0
    """Object score (a logit) below which a label is called absent from a slice; 0 is SAM 2's own. Lower finds more of
    organs of a few voxels, of which a model is never sure, and invents more of others. A label that all of a support of
    single pictures hold is never called absent: nothing says that it could be."""
    pointers: bool = True
    """Whether object pointers join the spatial memories."""
    start: Literal["middle", "best"] = "middle"
    """Where the walk through the stack begins: half-way, or where the retrieved supports hold the most labels and look
    most alike. To find the best, each slice is encoded once more."""
    forward_uses_reverse: bool = True
    """Whether the walk up from the start, the second one, remembers slices on the other side of the start."""
    fuse: bool = False
    """Walk through the whole stack in both directions and average what each says, instead of outwards from the start.
    The first walk's logits wait in a temporary file."""
    second_sweep: bool = False
    """Answer each slice again with both sides' neighbours as the first sweep labelled them; encodes it once more."""
    largest_component: bool = False
    """Keep only the largest connected piece of each label in the volume."""
    precision: Precision = "float32"
    """What encoder, memory attention and decoder compute in while predicting. 'bfloat16' is faster where the processor
    has it (AVX-512 BF16, AMX, GPUs) and the model is large, and float32 elsewhere; a few voxels along the borders
    differ."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise SettingsError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 <= self.window <= FARTHEST:
            raise SettingsError(f"window must be from 0 to {FARTHEST}, got {self.window}")
        if not 0 <= self.place_tolerance <= 1:
            raise SettingsError(f"place_tolerance must be from 0 to 1, got {self.place_tolerance}")
        if self.window == 0 and (self.fuse or self.second_sweep):
            what = "fuse" if self.fuse else "second_sweep"
            raise SettingsError(f"{what} without neighbours changes nothing; set window from 1 to {FARTHEST}")

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> FateSegmenter:  # noqa: B008
        memory_backbone = _with_memory(backbone)
        slicer = support.resolve(self.slicer)
        parts = []
        for number, labelled in enumerate(support.slices(slicer), start=1):
            parts.append(bank_of(labelled, slicer.neighbours, memory_backbone, self.similarity, self.allow_empty))
            run.report(number, len(support.cases), labelled.case)
        return FateSegmenter(support.labels, slicer, memory_backbone, self, SupportBank.joined(parts))

    @property
    def retrieval(self) -> Retrieval:
        """Which support slices are shown for a slice."""
        return Retrieval(self.similarity, self.top_k, self.diverse, self.place_tolerance, self.foreground_only)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> FateSegmenter:
        return FateSegmenter(labels, slicer, _with_memory(backbone), self, SupportBank(learned))


class FateSegmenter(Segmenter):
    """The support's memories, and the walk through a stack that asks them."""

    backbone: MemoryBackbone

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: MemoryBackbone, method: Fate, bank: SupportBank
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method = method
        self.bank = bank.to(backbone.device)
        self._absent_below = torch.full((len(labels),), method.absent_below, device=backbone.device)
        self._absent_below[self.bank.in_every_picture()] = -torch.inf

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of slices that know nothing of each other, nor of their place in a stack."""
        with self._precision():
            image = self.backbone.encode(slices.to(self.backbone.device))
            answer = self._asked(image, self._retrieved(image), range(len(image)))
        return self.backbone.to_slice(answer.logits, image.size)

    def learned(self) -> dict[str, Tensor]:
        return dict(self.bank.named_buffers())

    def segment(self, stack: SliceView) -> LabelMap:
        return self._segmented(stack)[0]

    @torch.inference_mode()
    def predict_explained(self, volume: Volume) -> Explained:
        """What `predict` returns, how sure the model was of it slice by slice, and the supports it was shown."""
        self.eval()
        return Explained(*self._segmented(self.slicer.view(volume)))

    def support_picture(self, case: str, number: int) -> SupportPicture:
        """A support slice, by its name in `SliceConfidence.retrieved`."""
        image, classes = self.bank.picture(case, number)
        values = np.array([0, *self.labels.values])
        shown = image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        return SupportPicture(case, number, shown, values[classes.cpu().numpy()])

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Dice from the predicted IoU of each slice, times the probability that the label is in it, over its voxels."""
        sure = reasons or self.predict_explained(volume).reasons
        assert sure is not None
        dice = np.nan_to_num((2 * sure.iou / (1 + sure.iou) * sure.object_score.sigmoid()).double().numpy())
        classes = self.slicer.view(volume).of(prediction.array)
        areas = np.stack([(classes == value).sum(axis=(1, 2)) for value in self.labels.values], axis=1)
        pairs = zip(self.labels.values, (areas * dice).sum(axis=0), areas.sum(axis=0), strict=True)
        return {value: float(total / area) for value, total, area in pairs if area}

    def extend(self, support: SupportSet) -> FateSegmenter:
        """A segmenter that remembers the new labelled slices, too."""
        require_same_labels(support, self.labels)
        same = self.method.with_slicer(self.slicer)  # as resolved then, whatever this scan asks for
        bank = SupportBank.joined([self.bank, same.fit(support, self.backbone).bank])
        return FateSegmenter(self.labels, self.slicer, self.backbone, self.method, bank)

    @property
    def holds_pictures(self) -> bool:
        return True  # those of `support_picture`

    def _segmented(self, stack: SliceView) -> tuple[LabelMap, SliceConfidence]:
        if self.method.window == 0:
            answers = self._alone(stack)
        elif self.method.fuse:
            answers = self._fused(stack)
        else:
            answers = self._outwards(stack)
        notes = _Notes(len(stack), len(self.labels))
        with self._precision():
            found = drawn(stack, self.labels, self._classes(answers, notes, stack.size))
            if self.method.second_sweep:
                again = self._again(stack, stack.of(found.array))
                found = drawn(stack, self.labels, self._classes(again, notes, stack.size))
        if self.method.largest_component:
            keep_largest(found)
        names = tuple(tuple(self.bank.source(s) for s in supports) for supports in notes.retrieved)
        return found, SliceConfidence(notes.object_score, notes.iou, names)

    def _precision(self) -> torch.autocast:
        """Holds for all that is computed within."""
        return computing_in(self.method.precision, self.backbone.device.type)

    def _classes(
        self, answers: Iterator[_Answer], notes: _Notes, size: tuple[int, int]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        for answer in answers:
            notes.take(answer)
            yield answer.numbers, to_classes(self.backbone.to_slice(answer.logits, size))

    def _alone(self, stack: SliceView) -> Iterator[_Answer]:
        for numbers, image, retrieved in self._looked_at(stack, range(len(stack))):
            yield self._asked(image, retrieved, numbers)

    def _outwards(self, stack: SliceView) -> Iterator[_Answer]:
        """From the start to the first slice, then from the start to the last."""
        start = len(stack) // 2 if self.method.start == "middle" else self._best_start(stack)
        first = yield from self._walked(stack, range(start, -1, -1), ())
        near = first if self.method.forward_uses_reverse else first[:1]
        yield from self._walked(stack, range(start + 1, len(stack)), near)

    def _fused(self, stack: SliceView) -> Iterator[_Answer]:
        """The whole way up, kept aside, then the whole way down, averaged with it."""
        shape = (len(stack), len(self.labels), self.backbone.mask_side, self.backbone.mask_side)
        notes = _Notes(len(stack), len(self.labels))
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
        self, stack: SliceView, order: Sequence[int], near: Sequence[_Neighbour]
    ) -> Generator[_Answer, None, tuple[_Neighbour, ...]]:
        """Answers slice after slice, each remembering those before it; what the first few left behind comes back."""
        window = self.method.window
        first: list[_Neighbour] = []
        for numbers, image, retrieved in self._looked_at(stack, order):
            for row, number in enumerate(numbers):
                beside = [n.seen_from(number) for n in near if abs(n.number - number) <= window]
                answer = self._asked(image[row], retrieved[row : row + 1], (number,), beside)
                yield answer
                left = self._left(number, image[row], answer)
                near = [*near, left][-window:]
                first = [*first, left][:window]
        return tuple(first)

    def _again(self, stack: SliceView, classes: NDArray[np.integer]) -> Iterator[_Answer]:
        """Each slice with the neighbours on both sides, as `classes` (n, h, w, label values) has them."""
        reach = (self.method.window + 1) // 2
        passing: deque[_Seen | None] = deque(maxlen=2 * reach + 1)
        for seen in chain(self._seen_again(stack, classes), repeat(None, reach)):
            passing.append(seen)
            here = passing[-1 - reach] if len(passing) > reach else None
            if here is not None:
                number = here.left.number
                near = [s.left.seen_from(number) for s in passing if s is not None and s is not here]
                yield self._asked(here.image, [here.retrieved], (number,), near)

    def _seen_again(self, stack: SliceView, classes: NDArray[np.integer]) -> Iterator[_Seen]:
        values = np.array(self.labels.values)[:, None, None]
        for numbers, image, retrieved in self._looked_at(stack, range(len(stack))):
            for row, number in enumerate(numbers):
                labels = [label for label in range(len(values)) if self.bank.holders(retrieved[row], label)]
                masks = torch.from_numpy((classes[number] == values)[labels].astype(np.float32))
                memory = memorized(self.backbone, image, torch.full((len(labels),), row), masks)
                yield _Seen(image[row], retrieved[row], _Neighbour(number, tuple(labels), memory))

    def _looked_at(
        self, stack: SliceView, order: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], ImageEmbeddings, list[tuple[int, ...]]]]:
        """A few slices at a time: their numbers, their embeddings, and the supports retrieved for each."""
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            image = self.backbone.encode(slices)
            places = (torch.tensor(list(numbers)) + 0.5) / len(stack)
            retrieved = self._retrieved(image, places.to(self.backbone.device))
            signal = has_signal(slices).tolist()
            yield numbers, image, [found if lit else () for found, lit in zip(retrieved, signal, strict=True)]

    def _retrieved(self, image: ImageEmbeddings, places: Float[Tensor, " n"] | None = None) -> list[tuple[int, ...]]:
        """For each slice the numbers of the support slices that are most alike, the best first."""
        return self.bank.best(self.bank.likeness(image, self.method.similarity), places, self.method.retrieval)

    def _best_start(self, stack: SliceView) -> int:
        """The slice whose retrieved supports hold the most labels; among those, the one that is most alike to them."""
        best, start = (-1, -float("inf")), 0
        for numbers, image, retrieved in self._looked_at(stack, range(len(stack))):
            scores = self.bank.likeness(image, self.method.similarity)
            for row, number in enumerate(numbers):
                held = sum(bool(self.bank.holders(retrieved[row], label)) for label in range(len(self.labels)))
                alike = float(scores[row, list(retrieved[row])].mean()) if held else -float("inf")
                if (held, alike) > best:
                    best, start = (held, alike), number
        return start

    def _asked(
        self,
        image: ImageEmbeddings,
        retrieved: Sequence[tuple[int, ...]],
        numbers: Sequence[int],
        near: Sequence[_Neighbour] = (),
    ) -> _Answer:
        """All labels of a few slices, those with equally many memories in one call."""
        n, k, side = len(image), len(self.labels), self.backbone.mask_side
        logits = torch.full((n, k, side, side), ABSENT, device=self.backbone.device)
        object_score, iou = torch.full((2, n, k), torch.nan)
        seen: list[tuple[list[_Question], MaskPrediction]] = []
        for group in _answered_together(self._questions(retrieved, near)):
            for some in self._few_enough(group):
                prediction = self._recalled(image, some, near)
                assert prediction.object_score is not None
                rows, labels = [q.row for q in some], [q.label for q in some]
                there = (prediction.object_score[:, 0] > self._absent_below[labels])[:, None, None]
                logits[rows, labels] = torch.where(there, prediction.logits[:, 0].float(), ABSENT)
                object_score[rows, labels] = prediction.object_score[:, 0].float().cpu()
                iou[rows, labels] = prediction.iou[:, 0].float().cpu()
                seen.append((some, prediction))
        return _Answer(tuple(numbers), logits, object_score, iou, tuple(retrieved), tuple(seen))

    def _questions(self, retrieved: Sequence[tuple[int, ...]], near: Sequence[_Neighbour]) -> Iterator[_Question]:
        """One for each slice and label that a retrieved support holds; for any other the answer is known."""
        for row, supports in enumerate(retrieved):
            for label in range(len(self.labels)):
                remembered = self.bank.holders(supports, label)
                if remembered:
                    remembered += self.bank.without(supports, label) if self.method.allow_empty else ()
                    beside = tuple(i for i, neighbour in enumerate(near) if label in neighbour.labels)
                    yield _Question(row, label, remembered, beside)

    def _few_enough(self, group: Sequence[_Question]) -> Iterator[list[_Question]]:
        """The questions in lots whose memories hold at most TOKENS tokens."""
        memories = len(group[0].supports) + len(group[0].near)
        lot = max(1, TOKENS // (memories * self.bank.tokens))
        yield from (list(group[start : start + lot]) for start in range(0, len(group), lot))

    def _recalled(
        self, image: ImageEmbeddings, questions: Sequence[_Question], near: Sequence[_Neighbour]
    ) -> MaskPrediction:
        """The answers to questions with equally many supports and the same neighbours, one row each."""
        beside = [near[i].of([q.label for q in questions]) for i in questions[0].near]
        memory = Memory.cat([self.bank.memory([q.supports for q in questions]), *beside])
        if not self.method.pointers:
            memory = replace(memory, pointers=memory.pointers[:, :0], pointer_distance=())
        return self.backbone.decode_recalled(self.backbone.recall(image[[q.row for q in questions]], memory))

    def _left(self, number: int, image: ImageEmbeddings, answer: _Answer) -> _Neighbour:
        """What the answer to one slice leaves for its neighbours, also of labels it did not find there."""
        labels, parts = [], []
        for questions, prediction in answer.seen:
            labels += [q.label for q in questions]
            parts.append(self.backbone.remember(image[[q.row for q in questions]], prediction, distance=1))
        return _Neighbour(number, tuple(labels), joined(parts))


def keep_largest(label_map: LabelMap) -> None:
    """Clears all but the largest connected piece of each label, in place; pieces that share a corner are one."""
    for value in label_map.labels.values:
        inside = label_map.array == value
        box = ndimage.find_objects(inside.astype(np.uint8))
        if not box:
            continue
        pieces, count = ndimage.label(inside[box[0]], np.ones((3, 3, 3)))
        if count > 1:
            largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
            label_map.array[box[0]][(pieces > 0) & (pieces != largest)] = 0


@dataclass(frozen=True)
class _Question:
    """Whether and where a label is in a slice, and what memories answer it."""

    row: int
    label: int
    supports: tuple[int, ...]
    """Rows of the bank."""
    near: tuple[int, ...]
    """Which of the neighbours remember the label."""


@dataclass(frozen=True, eq=False)
class _Answer:
    """What is known of a few slices; logits in the model's square, numbers on the CPU."""

    numbers: tuple[int, ...]
    logits: Float[Tensor, "n k s s"]
    object_score: Float[Tensor, "n k"]
    iou: Float[Tensor, "n k"]
    retrieved: tuple[tuple[int, ...], ...]
    seen: tuple[tuple[list[_Question], MaskPrediction], ...]


@dataclass(frozen=True, eq=False)
class _Neighbour:
    """What a slice that was answered leaves in memory: one row a label."""

    number: int
    labels: tuple[int, ...]
    memory: Memory | None
    """None where no label was asked for."""

    def seen_from(self, number: int) -> _Neighbour:
        """The same, as far away as it is from that slice."""
        if self.memory is None:
            return self
        away = abs(self.number - number)
        return replace(self, memory=replace(self.memory, distance=(away,), pointer_distance=(away,)))

    def of(self, labels: Sequence[int]) -> Memory:
        assert self.memory is not None
        return self.memory[[self.labels.index(label) for label in labels]]


@dataclass(frozen=True, eq=False)
class _Seen:
    """A slice in the second sweep: what it looks like, its supports, and what the first sweep said of it."""

    image: ImageEmbeddings
    retrieved: tuple[int, ...]
    left: _Neighbour


class _Notes:
    """Confidence of each slice, filled in as the answers come."""

    def __init__(self, slices: int, labels: int) -> None:
        self.object_score = torch.full((slices, labels), torch.nan)
        self.iou = torch.full((slices, labels), torch.nan)
        self.retrieved: list[tuple[int, ...]] = [()] * slices

    def take(self, answer: _Answer) -> None:
        for row, number in enumerate(answer.numbers):
            self.object_score[number] = answer.object_score[row]
            self.iou[number] = answer.iou[row]
            self.retrieved[number] = answer.retrieved[row]


def _with_memory(backbone: Backbone) -> MemoryBackbone:
    if isinstance(backbone, MemoryBackbone):
        return backbone
    known = ", ".join(name for name, entry in BACKBONES.items() if entry.kind == "sam2")
    raise SettingsError(
        f"FATE needs a backbone with a memory, and {backbone.name!r} has none; take {known}, or any Sam2VideoModel"
    )


def _answered_together(questions: Iterator[_Question]) -> list[list[_Question]]:
    """Questions with equally many supports and the same neighbours, which one call can answer."""
    groups: dict[tuple[int, tuple[int, ...]], list[_Question]] = {}
    for question in questions:
        groups.setdefault((len(question.supports), question.near), []).append(question)
    return list(groups.values())
