"""FATE-SAM: a memory model is shown the most similar support slices with their masks; nothing is trained.

After He, Hu, Zhou, Jarraya and Liu, "Few-shot adaptation of training-free foundation model for 3D medical image
segmentation" (arXiv 2501.09138). It departs from the authors' code in three points. A support is remembered per label,
so that one that lacks a label says nothing of it. Retrieval also finds slices without any label, so that what is absent
may stay absent. Object pointers reach as far as `window`, where theirs reach 15 slices, and alike in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from handful.backbones.base import Backbone, MemoryBackbone
from handful.backbones.catalog import BACKBONES
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, assemble_label_map, require_same_labels, to_classes
from handful.methods.explained import Explained, SliceConfidence, SupportPicture
from handful.methods.fate.recall import Answer, MemoryUse, SupportRecall
from handful.methods.fate.support_bank import Retrieval, Similarity, SupportBank, bank_of
from handful.methods.fate.walk import ConfidenceNotes, StackWalk, WalkOrder
from handful.tuning.precision import Precision, computing_in

FARTHEST = 6
"""Slices between a memory and the slice it helps, at most: SAM 2 knows no larger distance."""


@dataclass(frozen=True, kw_only=True)
class Fate(Method):
    """Puts the most similar labelled slices and the neighbours' predictions into SAM 2's memory; no training."""

    when = "no time to train, or one labelled case"
    minutes = "seconds"

    slicer: Slicer = Slicer()
    """Plane and window, the same when fitting and when predicting."""
    similarity: Similarity = "cosine"
    """What makes a support slice alike: the cosine of the image embeddings place by place, the cosine of their means
    over the slice, or, as in the authors' code, the least absolute difference over all feature levels."""
    top_k: int | None = None
    """Labelled slices retrieved for each slice; None takes the backbone's own number, 5 for handful-tiny and 3, as in
    the authors' code, for SAM 2."""
    diverse: bool = False
    """Take the best slice of every support case before the second best of any."""
    slice_position_tolerance: float = 1.0
    """Largest difference in relative place along the stack between a slice and its supports, such as 0.2; 1 allows any.
    Where no support lies so near, any will do."""
    foreground_only: bool = False
    """Retrieve only slices that hold a label, as the authors do; then none can say that there is nothing here."""
    allow_empty: bool = False
    """Whether a retrieved support that lacks a label is remembered for it, with an empty mask, or left out. Either way
    a label that no retrieved support holds is absent."""
    window: int | None = None
    """Predicted neighbours, at most this many slices away (0 to 6), that join the memory; 0 segments each slice on its
    own. None takes the backbone's own number, 1 for handful-tiny and 6, as in the authors' code, for SAM 2."""
    absent_below: float = 0.0
    """Object score (a logit) below which a label is called absent from a slice; 0 is SAM 2's own. Lower finds more of
    organs of a few voxels, of which a model is never sure, and gives more false positives of others. A label that all
    of a support of single pictures hold is never called absent: nothing says that it could be."""
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
        if self.top_k is not None and self.top_k < 1:
            raise SettingsError(f"top_k must be at least 1, got {self.top_k}")
        if self.window is not None and not 0 <= self.window <= FARTHEST:
            raise SettingsError(f"window must be from 0 to {FARTHEST}, got {self.window}")
        if not 0 <= self.slice_position_tolerance <= 1:
            raise SettingsError(f"slice_position_tolerance must be from 0 to 1, got {self.slice_position_tolerance}")
        if self.window == 0 and (self.fuse or self.second_sweep):
            what = "fuse" if self.fuse else "second_sweep"
            raise SettingsError(f"{what} without neighbours changes nothing; set window from 1 to {FARTHEST}")

    def resolved(self, backbone: Backbone) -> Fate:
        defaults = backbone.family.defaults
        return replace(
            self,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            window=defaults.window if self.window is None else self.window,
        )

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> FateSegmenter:  # noqa: B008
        memory_backbone = _with_memory(backbone)
        slicer = support.resolve(self.slicer)
        parts = []
        for number, labelled in enumerate(support.slices(slicer), start=1):
            parts.append(bank_of(labelled, slicer.neighbours, memory_backbone, self.similarity, self.allow_empty))
            run.report(number, len(support.cases), labelled.case)
        return FateSegmenter(
            support.labels, slicer, memory_backbone, self.resolved(backbone), SupportBank.joined(parts)
        )

    @property
    def retrieval(self) -> Retrieval:
        """Which labelled slices are retrieved for a slice; of a resolved method."""
        assert self.top_k is not None
        return Retrieval(self.similarity, self.top_k, self.diverse, self.slice_position_tolerance, self.foreground_only)

    @property
    def memory_use(self) -> MemoryUse:
        """What of the memories is used."""
        return MemoryUse(self.allow_empty, self.pointers, self.absent_below)

    @property
    def order(self) -> WalkOrder:
        """The order of the slices of a stack; of a resolved method."""
        assert self.window is not None
        return WalkOrder(self.window, self.start, self.forward_uses_reverse, self.fuse)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> FateSegmenter:
        return FateSegmenter(labels, slicer, _with_memory(backbone), self.resolved(backbone), SupportBank(learned))


class FateSegmenter(Segmenter):
    """The support's memories, and the walk through a stack that asks them."""

    backbone: MemoryBackbone

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: MemoryBackbone, method: Fate, bank: SupportBank
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method = method
        self.bank = bank.to(backbone.device)
        self._recall = SupportRecall(backbone, self.bank, len(labels), method.retrieval, method.memory_use)
        self._walk = StackWalk(self._recall, method.order)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of slices that know nothing of each other, nor of their place in a stack."""
        with self._precision():
            image = self.backbone.encode(slices.to(self.backbone.device))
            answer = self._recall.answer(image, self._recall.retrieved(image), range(len(image)))
        return self.backbone.to_image_frame(answer.logits, image.size)

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
        notes = ConfidenceNotes(len(stack), len(self.labels))
        with self._precision():
            found = assemble_label_map(stack, self.labels, self._classes(self._walk.answers(stack), notes, stack.size))
            if self.method.second_sweep:
                again = self._walk.again(stack, stack.of(found.array), self.labels)
                found = assemble_label_map(stack, self.labels, self._classes(again, notes, stack.size))
        if self.method.largest_component:
            keep_largest(found)
        names = tuple(tuple(self.bank.source(s) for s in supports) for supports in notes.retrieved)
        return found, SliceConfidence(notes.object_score, notes.iou, names)

    def _precision(self) -> torch.autocast:
        """Holds for all that is computed within."""
        return computing_in(self.method.precision, self.backbone.device.type)

    def _classes(
        self, answers: Iterator[Answer], notes: ConfidenceNotes, size: tuple[int, int]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        for answer in answers:
            notes.take(answer)
            yield answer.numbers, to_classes(self.backbone.to_image_frame(answer.logits, size))


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


def _with_memory(backbone: Backbone) -> MemoryBackbone:
    if isinstance(backbone, MemoryBackbone):
        return backbone
    known = ", ".join(name for name, entry in BACKBONES.items() if entry.has_memory)
    raise SettingsError(
        f"FATE needs a backbone with a memory, and {backbone.name!r} has none; take {known}, or any Sam2VideoModel"
    )
