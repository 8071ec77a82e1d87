"""FATE-SAM: the most similar labelled slices are put into the memory of SAM 2 with their masks; nothing is trained.

After He, Hu, Zhou, Jarraya and Liu, "Few-shot adaptation of training-free foundation model for 3D medical image
segmentation" (arXiv 2501.09138). It differs from the authors' code in five points:

- There is one memory per slice and label, so a labelled slice without a label does not contribute to that label.
- Slices without any label are retrieved, too, so that a label can be absent from a slice.
- Object pointers reach as far as `window`, in both directions; theirs reach 15 slices.
- The age of a pointer is relative to 16 slices, also in scans with fewer slices.
- A label that `absent_below` accepts is remembered as present; theirs has no such threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone, MemoryBackbone
from handful.backbones.names import BACKBONES
from handful.data.slicing import Slicer, SliceView
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import SettingsError, refuse_without_effect
from handful.jobs.precision import Precision, computing_in
from handful.jobs.progress import Run
from handful.methods.base import (
    Held,
    Method,
    Segmenter,
    Work,
    assemble_label_map,
    classes_of,
    labelled_slices,
    require_same_labels,
)
from handful.methods.explained import Explained, SliceConfidence, SupportPicture
from handful.methods.fate.propagation import ConfidenceNotes, PropagationOrder, StackPropagation
from handful.methods.fate.recall import MemoryUse, SlicePredictions, SupportRecall
from handful.methods.fate.support_bank import Retrieval, Similarity, SupportBank, bank_of

FARTHEST = 6
"""Largest distance in slices between a memory and the slice it is used for; SAM 2 has no code for larger ones."""


@dataclass(frozen=True, kw_only=True)
class Fate(Method):
    """Puts the most similar labelled slices and the neighbours' predictions into SAM 2's memory; no training."""

    when = "no time to train, or one labelled case"
    minutes = "seconds"
    needs_whole_masks = True

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    similarity: Similarity = "cosine"
    """How slices are compared: by their image embeddings, position by position ('cosine'), or in other ways.

    'pooled' is the cosine of the embeddings' means over the slice; 'l1', as in the authors' code, the mean absolute
    difference over all feature levels.
    """
    top_k: int | None = None
    """Labelled slices retrieved for each slice; None takes the number that suits the backbone.

    That is 5 for handful-tiny and 3 for SAM 2, as in the authors' code.
    """
    diverse: bool = False
    """Retrieve the most similar slice of every case before the second most similar of any."""
    slice_position_tolerance: float = 1.0
    """Largest difference in relative position along the stack between a slice and those retrieved for it; 1 allows any.

    If there is no labelled slice within it, any may be retrieved. A useful value is 0.2.
    """
    foreground_only: bool = False
    """Retrieve only slices that contain a label, as the authors do; then a label is rarely predicted as absent."""
    allow_empty: bool = False
    """Use a retrieved slice without a label as an example of its absence, with an empty mask, instead of ignoring it.

    A label that no retrieved slice contains is predicted as absent in either case.
    """
    window: int | None = None
    """Largest distance in slices (0 to 6) of the predictions that join the memory; 0 segments each slice on its own.

    None takes the distance that suits the backbone: 1 for handful-tiny and 6 for SAM 2, as in the authors' code.
    """
    absent_below: float = 0.0
    """Object score (a logit) below which a label is predicted as absent from a slice; 0 is SAM 2's threshold.

    A lower value finds more of organs of a few voxels, whose score is always low, and gives more false positives of
    others. In a support set of single pictures, a label that all of them contain is never predicted as absent, since
    there is no example of its absence.
    """
    pointers: bool = True
    """Use SAM 2's object pointers in addition to the spatial memories."""
    start: Literal["middle", "best"] = "middle"
    """Slice at which the propagation through the stack starts: the middle one, or the one with the best retrieval.

    'best' is the slice whose retrieved slices contain the most labels and, among those, are the most similar. Every
    slice is encoded once more to find it.
    """
    forward_uses_reverse: bool = True
    """Let the second half of the propagation use predictions of the first half, on the other side of the start."""
    fuse: bool = False
    """Propagate through the whole stack in both directions and average the logits, instead of outwards from the start.

    The logits of the first direction are kept in a temporary file.
    """
    second_sweep: bool = False
    """Segment every slice a second time, with the predictions of its neighbours on both sides; encodes it once more."""
    precision: Precision = "float32"
    """Number format of memory attention and decoder in predictions; 'bfloat16' may be faster.

    It is faster for large models if the processor supports it (AVX-512 BF16, AMX, GPUs), and is replaced by float32
    elsewhere. A few voxels along the borders differ. The format of the encoder is that of the backbone: a backbone
    NAME+fast encodes in bfloat16.
    """

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
        of_start = ("start", "forward_uses_reverse")
        if self.window == 0:
            refuse_without_effect(self, of_start, "with window = 0 each slice is segmented on its own")
        if self.fuse:
            refuse_without_effect(self, of_start, "with fuse both directions go through the whole stack")

    def resolved(self, backbone: Backbone) -> Fate:
        defaults = backbone.family.defaults
        return replace(
            self,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            window=defaults.window if self.window is None else self.window,
        )

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> FateSegmenter:  # noqa: B008
        memory_backbone = _with_memory(backbone)
        support = support.with_whole_masks()
        slicer = self.resolved_slicer(support)
        parts = []
        shown = slice(1, 2) if slicer.neighbours else slice(0, 1) if slicer.sequences else slice(None)
        for number, labelled in enumerate(support.slices(slicer), start=1):
            parts.append(bank_of(labelled, shown, memory_backbone, self.similarity, self.allow_empty))
            run.report(number, len(support.cases), labelled.case)
        return FateSegmenter(
            support.labels, slicer, memory_backbone, self.resolved(backbone), SupportBank.joined(parts)
        )

    @property
    def keeps_pictures(self) -> bool:
        return True

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        method, slices = self.resolved(backbone), labelled_slices(self, support)
        assert method.top_k is not None
        assert method.window is not None
        own = Work.of(method, support, encoded=slices)
        return (replace(own, retrieved=min(method.top_k, slices), neighbours=method.window),)

    @property
    def retrieval(self) -> Retrieval:
        """The settings of retrieval; of a resolved method."""
        assert self.top_k is not None
        return Retrieval(self.similarity, self.top_k, self.diverse, self.slice_position_tolerance, self.foreground_only)

    @property
    def memory_use(self) -> MemoryUse:
        """The settings of how memories are used."""
        return MemoryUse(self.allow_empty, self.pointers, self.absent_below)

    @property
    def order(self) -> PropagationOrder:
        """The settings of the propagation; of a resolved method."""
        assert self.window is not None
        return PropagationOrder(self.window, self.start, self.forward_uses_reverse, self.fuse)

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> FateSegmenter:
        bank = SupportBank.unpack(learned, len(labels), backbone, self.similarity)
        return FateSegmenter(labels, slicer, _with_memory(backbone), self.resolved(backbone), bank)


class FateSegmenter(Segmenter):
    """The memories of the labelled slices, and the propagation through a stack that uses them."""

    backbone: MemoryBackbone

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: MemoryBackbone, method: Fate, bank: SupportBank
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.method = method
        self.bank = bank.to(backbone.device)
        self._recall = SupportRecall(backbone, self.bank, len(labels), method.retrieval, method.memory_use)
        self._propagation = StackPropagation(self._recall, method.order)

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Logits of slices on their own, without neighbours and without a position in a stack."""
        with self._precision():
            image = self.backbone.encode(slices.to(self.backbone.device))
            predictions = self._recall.predict(image, self._recall.retrieved(image), range(len(image)))
        return self.backbone.to_image_frame(predictions.logits, image.size)

    def learned(self) -> dict[str, Tensor]:
        return dict(self.bank.named_buffers())

    def segment(self, stack: SliceView) -> LabelMap:
        return self._segmented(stack)[0]

    @torch.inference_mode()
    def predict_explained(self, volume: Volume) -> Explained:
        """The prediction of `predict`, its confidence per slice, and the labelled slices retrieved for each slice."""
        self.eval()
        return Explained(*self._segmented(self.slicer.view(volume)))

    def support_picture(self, case: str, number: int) -> SupportPicture:
        """A labelled slice, by its case and number as in `SliceConfidence.retrieved`."""
        image, classes = self.bank.picture(case, number)
        values = np.array([0, *self.labels.values])
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        return SupportPicture(case, number, pixels, values[classes.cpu().numpy()])

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Per label, the mean over its voxels of the Dice by the slice's predicted IoU, times chance of presence."""
        scores = reasons or self.predict_explained(volume).reasons
        assert scores is not None
        dice = np.nan_to_num((2 * scores.iou / (1 + scores.iou) * scores.object_score.sigmoid()).numpy())
        classes = self.slicer.view(volume).of(prediction.array)
        areas = np.stack([(classes == value).sum(axis=(1, 2)) for value in self.labels.values], axis=1)
        pairs = zip(self.labels.values, (areas * dice).sum(axis=0), areas.sum(axis=0), strict=True)
        return {value: float(total / area) for value, total, area in pairs if area}

    def extend(self, support: SupportSet) -> FateSegmenter:
        """A segmenter with the memories of the new labelled slices in addition to its own."""
        require_same_labels(support, self.labels)
        same = self.method.with_slicer(self.slicer)  # as resolved for the first support set
        bank = SupportBank.joined([self.bank, same.fit(support, self.backbone).bank])
        return FateSegmenter(self.labels, self.slicer, self.backbone, self.method, bank)

    @property
    def holds(self) -> frozenset[Held]:
        return frozenset({"pictures", "masks", "embeddings", "names"})

    def logits_of(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        return self._noted_logits(stack, ConfidenceNotes(len(stack), len(self.labels)))

    def _segmented(self, stack: SliceView) -> tuple[LabelMap, SliceConfidence]:
        notes = ConfidenceNotes(len(stack), len(self.labels))
        found = assemble_label_map(stack, self.labels, classes_of(self._noted_logits(stack, notes)))
        names = tuple(tuple(self.bank.source(s) for s in supports) for supports in notes.retrieved)
        return found, SliceConfidence(notes.object_score, notes.iou, names)

    def _precision(self) -> torch.autocast:
        """A context in which the number format of the settings is used."""
        return computing_in(self.method.precision, self.backbone.device.type)

    def _noted_logits(
        self, stack: SliceView, notes: ConfidenceNotes
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        """Logits of the propagation, or of the second sweep after it; `notes` collects their confidence."""
        with self._precision():
            predictions = self._propagation.predictions(stack)
            if self.method.second_sweep:
                first = classes_of(self._sized(predictions, notes, stack.size))
                found = assemble_label_map(stack, self.labels, first)
                predictions = self._propagation.second_sweep(stack, stack.of(found.array), self.labels)
            yield from self._sized(predictions, notes, stack.size)

    def _sized(
        self, predictions: Iterator[SlicePredictions], notes: ConfidenceNotes, size: tuple[int, int]
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        for part in predictions:
            notes.take(part)
            yield part.numbers, self.backbone.to_image_frame(part.logits, size)


def _with_memory(backbone: Backbone) -> MemoryBackbone:
    if isinstance(backbone, MemoryBackbone):
        return backbone
    known = ", ".join(name for name, entry in BACKBONES.items() if entry.has_memory)
    raise SettingsError(
        f"FATE needs a backbone with a memory, and {backbone.name!r} has none; take {known}, or any Sam2VideoModel"
    )
