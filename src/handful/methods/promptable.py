"""Sources of prompts for a promptable segmenter: the most similar labelled slice, or a simulated annotator.

`Prompted` combines a promptable segmenter with a source of prompts into a `Segmenter`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.box_crop import decode_box_crop
from handful.data.cases import Case
from handful.data.slicing import ALL_SEQUENCES, Slicer, SliceView
from handful.data.support import LabelledSlices
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, SettingsError
from handful.methods.base import CHUNK, PromptableSegmenter, Segmenter, at_once
from handful.methods.explained import SliceConfidence
from handful.methods.learned import Learned
from handful.prompts.heuristics import append_points, boxes, centre_points, inside_points
from handful.prompts.prompts import PADDING, Prompts

PromptKind = Literal["box", "points-1", "points-3", "points-5"]
"""A box around a label, or points inside it: the one farthest from the edge, and none, two or four random ones."""
Prompter = Callable[[SliceView], Prompts]
"""Returns prompts for all slices of a stack, in their order."""

SIDE = 32
"""Width and height in pixels of the thumbnails that slices are compared by; coarse enough to tolerate small shifts."""


class Prompted(Segmenter):
    """A promptable segmenter together with a source of prompts."""

    def __init__(self, inner: PromptableSegmenter, prompter: Prompter) -> None:
        super().__init__(inner.labels, inner.slicer, inner.backbone)
        self.inner = inner
        self.prompter = prompter

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        logits: Tensor = self.inner(slices, self.prompter(_stacked(slices)))
        return logits

    def learned(self) -> dict[str, Tensor]:
        """The tensors of the promptable segmenter; a source of prompts has none."""
        return self.inner.learned()

    def segment(self, stack: SliceView) -> LabelMap:
        return self.inner.segment(stack, self.prompter(stack))

    def logits_of(self, stack: SliceView) -> Iterator[tuple[Sequence[int], Float[Tensor, "n k h w"]]]:
        return self.inner.logits_of(stack, self.prompter(stack))

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Not available."""
        return {}

    def promptable(self) -> PromptableSegmenter:
        return self.inner


class FrozenPromptable(PromptableSegmenter):
    """A backbone without any training; all labels of a slice are decoded in one call.

    `multimask` takes the best of the backbone's candidate masks, by their predicted IoU, instead of its single mask.
    None does so when the backbone's defaults say so. Crops of `box_crop` always get the single mask.
    """

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, box_crop: bool = False, multimask: bool | None = None
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.box_crop = box_crop
        self.multimask = multimask

    @torch.no_grad()
    def prompted_logits(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """As in the base class. Raises SettingsError if `box_crop` is set and the prompts have no boxes."""
        if not self.box_crop:
            return self.decode(self.backbone.encode(slices), prompts)
        if prompts.boxes is None:
            raise SettingsError("box_crop needs boxes, but the prompts have none; give boxes or set box_crop=False")
        return decode_box_crop(self.backbone, slices, prompts.boxes)

    @property
    def encoder(self) -> Backbone | None:
        return None if self.box_crop else self.backbone

    @torch.no_grad()
    def decode(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        prompt, best = self.backbone.embed(prompts, image.size), self._takes_best(prompts)
        some, all_of_them = bool(best.any()), bool(best.all())
        logits = self.backbone.decode_square(image, prompt, multimask=some).logits
        if some and not all_of_them:
            single = self.backbone.decode_square(image, prompt, multimask=False).logits
            logits = torch.where(best[..., None, None].to(logits.device), logits, single)
        return self.backbone.to_image_frame(logits, image.size)

    def _takes_best(self, prompts: Prompts) -> Bool[Tensor, "n k"]:
        """For which labels the best of the candidate masks is taken."""
        when = self.backbone.family.defaults.multimask
        if self.multimask is None and when == "one-click":
            return prompts.is_one_click()
        return torch.full(prompts.shape, when == "always" if self.multimask is None else self.multimask)

    def learned(self) -> dict[str, Tensor]:
        return {}


Source = Backbone | PromptableSegmenter | Segmenter
"""A model that can be prompted, directly or through its backbone."""


def resolve_source(
    source: Source, labels: Labels | None = None, slicer: Slicer | None = None
) -> tuple[PromptableSegmenter, Segmenter | None]:
    """The promptable segmenter for `source`, and `source` itself if it can propose segmentations without prompts.

    A segmenter that takes no prompts is prompted through its backbone. Raises SettingsError if `source` is a backbone
    and there are no labels, or a segmenter and labels or a slicer are given that differ from its own.
    """
    if isinstance(source, Backbone):
        if labels is None:
            raise SettingsError("a backbone has no labels of its own; name them: labels=Labels.of({1: 'liver'})")
        return FrozenPromptable(labels, slicer or Slicer(), source), None
    if slicer is not None or (labels is not None and labels != source.labels):
        raise SettingsError("a segmenter has its own labels and slicer; leave labels and slicer out")
    if isinstance(source, PromptableSegmenter):
        return source, None
    return source.promptable() or FrozenPromptable(source.labels, source.slicer, source.backbone), source


def labels_of(source: Source) -> Labels | None:
    """The labels of a source; None for a backbone."""
    return None if isinstance(source, Backbone) else source.labels


@dataclass(frozen=True, eq=False)
class SimulatedAnnotator:
    """Prompts derived from the *reference* of the scan that is segmented.

    This simulates a person who prompts every label on every slice of every scan. The resulting scores are upper bounds
    for that amount of work, not results of an automatic method.
    """

    reference: LabelMap
    """The reference label map, on the grid of the scan."""
    labels: Labels
    """The labels of the segmenter."""
    kind: PromptKind = "box"
    jitter: float = 0.0
    """Maximum error of each side of a box, as a fraction of the box; points are not moved."""
    seed: int = 0
    """Random seed of the jitter and of random points."""

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise SettingsError(f"jitter must be a fraction from 0 to below 1, got {self.jitter}")

    def __call__(self, stack: SliceView) -> Prompts:
        """The prompts of all slices. Raises GeometryMismatch if the reference is not on the grid of the scan."""
        stack.volume.geometry.require_same(self.reference.geometry, "the simulated annotator's reference and the scan")
        parts = []
        for number, classes in enumerate(stack.of(self.reference.array)):
            masks = torch.from_numpy(np.stack([classes == value for value in self.labels.values]))[None]
            generator = Generator().manual_seed(self.seed * 1_000_003 + number)
            parts.append(as_prompts(masks, self.kind, self.jitter, generator))
        return Prompts.cat(parts)


def oracle(
    promptable: PromptableSegmenter, kind: PromptKind = "box", jitter: float = 0.0, seed: int = 0
) -> Callable[[Case], LabelMap]:
    """A function that segments a labelled case with prompts derived from its reference, for `evaluate_cases`.

    The parameters are those of `SimulatedAnnotator`.
    """

    def segment(case: Case) -> LabelMap:
        reference = case.read_reference()
        if reference is None:
            raise InputError(f"case {case.name!r} has no reference to take prompts from; leave it out")
        annotator = SimulatedAnnotator(reference, promptable.labels, kind, jitter, seed)
        return Prompted(promptable, annotator).predict(case.read_image())

    return segment


@dataclass(frozen=True, eq=False)
class TransferredPrompts:
    """Automatic prompts: each slice gets the prompts of the most similar labelled slice."""

    thumbnails: Float[Tensor, "s p"]
    """Thumbnails that slices are compared by, one row per labelled slice."""
    sizes: Int[Tensor, "s 2"]
    """Height and width of each labelled slice in pixels."""
    prompts: Prompts
    """In pixels of the labelled slices."""

    @classmethod
    def of(cls, support: Iterable[LabelledSlices], kind: PromptKind, seed: int) -> TransferredPrompts:
        """The prompts and thumbnails of all labelled slices."""
        generator = Generator().manual_seed(seed)
        pictures: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        parts: list[Prompts] = []
        for labelled in support:
            count = at_once(labelled.labels)
            for start in range(0, len(labelled.slices), count):
                slices = labelled.slices[start : start + count]
                pictures.append(thumbnails(slices))
                sizes += [(slices.shape[-2], slices.shape[-1])] * len(slices)
                masks = labelled.masks(slice(start, start + count))
                parts.append(as_prompts(masks > 0, kind, 0.0, generator))
        return cls(torch.cat(pictures), torch.tensor(sizes), Prompts.cat(parts))

    def __call__(self, stack: SliceView) -> Prompts:
        """The prompts of all slices of a stack, in its pixels."""
        starts = range(0, len(stack), CHUNK)
        pictures = torch.cat([thumbnails(stack.cut(start, start + CHUNK)) for start in starts])
        nearest = torch.cdist(pictures, self.thumbnails).argmin(dim=1)
        return self.prompts.rows(nearest).resized(self.sizes[nearest], stack.size)

    def pack(self) -> dict[str, Tensor]:
        """All contents as tensors, by name."""
        parts = {"points": self.prompts.points, "point_labels": self.prompts.point_labels, "boxes": self.prompts.boxes}
        given = {name: tensor for name, tensor in parts.items() if tensor is not None}
        return {"thumbnails": self.thumbnails, "sizes": self.sizes, **given}

    @classmethod
    def unpack(cls, packed: dict[str, Tensor], kind: PromptKind, labels: Labels) -> TransferredPrompts:
        """The inverse of `pack`; tensors are moved to the CPU. Raises SettingsError if they are not of this kind."""
        taken = Learned({name: tensor.cpu() for name, tensor in packed.items()}, k=len(labels))
        pictures, sizes = taken.floats("thumbnails", f"s {SIDE**2}"), taken.whole("sizes", "s 2", low=1)
        if kind == "box":
            return cls(pictures, sizes, Prompts(boxes=taken.floats("boxes", "s k 4")))
        points = taken.floats("points", "s k q 2")
        return cls(pictures, sizes, Prompts(points, taken.whole("point_labels", "s k q", low=PADDING, high=1)))


def as_prompts(masks: Bool[Tensor, "n k h w"], kind: PromptKind, jitter: float, generator: Generator) -> Prompts:
    """Prompts of one kind for the masks; PADDING points or zero boxes where a label is absent."""
    if kind == "box":
        return Prompts(boxes=boxes(masks, jitter, generator))
    deepest, more = centre_points(masks), int(kind.removeprefix("points-")) - 1
    return append_points(deepest, inside_points(masks, more, generator)) if more else deepest


def thumbnails(slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """Small grey pictures with zero mean and unit variance, to be compared by Euclidean distance."""
    grey = slices.mean(dim=1, keepdim=True)
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).flatten(1)
    return (small - small.mean(dim=1, keepdim=True)) / small.std(dim=1, keepdim=True).clamp_min(1e-6)


def _stacked(slices: Float[Tensor, "n c h w"]) -> SliceView:
    """Slices as an axial stack, for code that needs a volume; the grid is arbitrary."""
    n, _, h, w = slices.shape
    geometry = Geometry((w, h, n), np.diag([-1.0, -1.0, -1.0, 1.0]), unit="pixel")  # keeps the order of the slices
    array = rearrange(slices.detach().cpu(), "n c h w -> c w h n").numpy()
    names = () if len(array) in (1, 3) else tuple(map(str, range(len(array))))
    volume = Volume(array, geometry, sequences=names)
    return Slicer(plane="axial", window=(0.0, 1.0), sequences=ALL_SEQUENCES).view(volume)
