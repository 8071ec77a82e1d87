"""Who prompts a promptable segmenter: prompts carried over from labelled slices, or a simulated annotator.

`Prompted` makes a segmenter of both, so that prediction and evaluation have one path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from handful.data.slicing import Slicer, SliceView
from handful.data.support import LabelledSlices
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, SettingsError
from handful.methods.base import CHUNK, PromptableSegmenter, Segmenter
from handful.methods.explained import SliceConfidence
from handful.prompts.heuristics import append_points, boxes, centre_points, inside_points
from handful.prompts.prompts import Prompts

PromptKind = Literal["box", "points-1", "points-3", "points-5"]
"""A box round a label, or points inside it: the deepest one, and two or four drawn at random."""
Prompter = Callable[[SliceView], Prompts]
"""Prompts for every slice of a stack, in its order."""

SIDE = 32
"""Pixels along the thumbnails by which slices are compared: coarse enough to forgive a small shift."""


class Prompted(Segmenter):
    """A promptable segmenter with a prompter that asks it: a segmenter like any other."""

    def __init__(self, inner: PromptableSegmenter, prompter: Prompter) -> None:
        super().__init__(inner.labels, inner.slicer, inner.backbone)
        self.inner = inner
        self.prompter = prompter

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        logits: Tensor = self.inner(slices, self.prompter(_stacked(slices)))
        return logits

    def learned(self) -> dict[str, Tensor]:
        """What the promptable one learned; a prompter learns nothing."""
        return self.inner.learned()

    def segment(self, stack: SliceView) -> LabelMap:
        return self.inner.segment(stack, self.prompter(stack))

    def confidence(
        self, volume: Volume, prediction: LabelMap, reasons: SliceConfidence | None = None
    ) -> dict[int, float]:
        """Unknown: the prompts of a slice depend on the others."""
        return {}

    def promptable(self) -> PromptableSegmenter:
        return self.inner


class FrozenPromptable(PromptableSegmenter):
    """A backbone as it is; all labels of a slice are asked for in one decoder call."""

    def __init__(
        self, labels: Labels, slicer: Slicer, backbone: Backbone, box_crop: bool = False, multimask: bool = False
    ) -> None:
        super().__init__(labels, slicer, backbone)
        self.box_crop = box_crop
        self.multimask = multimask

    @torch.no_grad()
    def answer(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Raises SettingsError where `box_crop` is set and there is no box to look at closely."""
        if not self.box_crop:
            return self.answer_encoded(self.backbone.encode(slices), prompts)
        if prompts.boxes is None:
            raise SettingsError("box_crop looks round boxes, but the prompts have none; give boxes or box_crop=False")
        return decode_box_crop(self.backbone, slices, prompts.boxes)

    @property
    def encoder(self) -> Backbone | None:
        return None if self.box_crop else self.backbone

    @torch.no_grad()
    def answer_encoded(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k h w"]:
        answer = self.backbone.decode_square(image, self.backbone.embed(prompts, image.size), self.multimask)
        return self.backbone.to_image_frame(answer.logits, image.size)

    def learned(self) -> dict[str, Tensor]:
        return {}


Source = Backbone | PromptableSegmenter | Segmenter
"""What can be prompted, if only through its backbone."""


def resolve_source(
    source: Source, labels: Labels | None = None, slicer: Slicer | None = None
) -> tuple[PromptableSegmenter, Segmenter | None]:
    """What answers prompts for `source`, and the segmenter that makes proposals, where it is one.

    A segmenter that takes no prompts leaves the answers to its backbone. Raises SettingsError where a backbone comes
    without labels, or a segmenter with others than its own.
    """
    if isinstance(source, Backbone):
        if labels is None:
            raise SettingsError(
                "a backbone knows no labels; say which ones the annotator draws: labels=Labels.of({...})"
            )
        return FrozenPromptable(labels, slicer or Slicer(), source), None
    if slicer is not None or (labels is not None and labels != source.labels):
        raise SettingsError("a segmenter has labels and a slicer of its own; leave labels and slicer out")
    if isinstance(source, PromptableSegmenter):
        return source, None
    return source.promptable() or FrozenPromptable(source.labels, source.slicer, source.backbone), source


def labels_of(source: Source) -> Labels | None:
    """The labels that a source knows; None of a backbone."""
    return None if isinstance(source, Backbone) else source.labels


@dataclass(frozen=True, eq=False)
class SimulatedAnnotator:
    """An oracle: prompts drawn from the *true* label map of the scan that is asked about.

    It stands for a person who prompts every slice of every scan and sees every label. What comes of it is an upper
    bound for that much work, never a result of an automatic method.
    """

    reference: LabelMap
    """The truth, on the grid of the scan."""
    labels: Labels
    """Those of the segmenter that is asked."""
    kind: PromptKind = "box"
    jitter: float = 0.0
    """Each side of a box is off by up to this share of the box; points are not moved."""
    seed: int = 0
    """Of jitter and drawn points."""

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise SettingsError(f"jitter must be a share from 0 to below 1, got {self.jitter}")

    def __call__(self, stack: SliceView) -> Prompts:
        """Raises GeometryMismatch where the stack is not of the scan that the reference belongs to."""
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
    """Segments labelled cases with prompts from their own references, for `evaluate_cases`: it looks at the truth."""

    def segment(case: Case) -> LabelMap:
        reference = case.read_reference()
        if reference is None:
            raise InputError(f"case {case.name!r} has no reference to take prompts from; leave it out")
        annotator = SimulatedAnnotator(reference, promptable.labels, kind, jitter, seed)
        return Prompted(promptable, annotator).predict(case.read_image())

    return segment


@dataclass(frozen=True, eq=False)
class TransferredPrompts:
    """Automatic: each slice gets the prompts that fit the labelled support slice which it most resembles."""

    thumbnails: Float[Tensor, "s p"]
    """What slices are compared by, a row a support slice."""
    sizes: Int[Tensor, "s 2"]
    """Height and width of each support slice in pixels."""
    prompts: Prompts
    """In the pixels of each support slice."""

    @classmethod
    def of(cls, support: Iterable[LabelledSlices], kind: PromptKind, seed: int) -> TransferredPrompts:
        """The prompts of all labelled slices, case by case; of the slices themselves only thumbnails are kept."""
        generator = Generator().manual_seed(seed)
        looks: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        parts: list[Prompts] = []
        for labelled in support:
            for slices, masks in zip(
                *[torch.split(part, CHUNK) for part in (labelled.slices, labelled.masks)], strict=True
            ):
                looks.append(thumbnails(slices))
                sizes += [(slices.shape[-2], slices.shape[-1])] * len(slices)
                parts.append(as_prompts(masks > 0, kind, 0.0, generator))
        return cls(torch.cat(looks), torch.tensor(sizes), Prompts.cat(parts))

    @classmethod
    def joined(cls, parts: Sequence[TransferredPrompts]) -> TransferredPrompts:
        """The support slices of all parts, one after the other."""
        return cls(
            torch.cat([part.thumbnails for part in parts]),
            torch.cat([part.sizes for part in parts]),
            Prompts.cat([part.prompts for part in parts]),
        )

    def rows(self, numbers: Sequence[int]) -> TransferredPrompts:
        """The support slices of these rows."""
        chosen = torch.tensor(numbers)
        return TransferredPrompts(self.thumbnails[chosen], self.sizes[chosen], self.prompts.rows(chosen))

    def __call__(self, stack: SliceView) -> Prompts:
        return self.nearest(thumbnails_of(stack), stack.size)

    def nearest(self, slices: Float[Tensor, "n p"], size: tuple[int, int]) -> Prompts:
        """The prompts for slices of that height and width, given as thumbnails."""
        nearest = torch.cdist(slices, self.thumbnails).argmin(dim=1)
        return self.prompts.rows(nearest).resized(self.sizes[nearest], size)

    def pack(self) -> dict[str, Tensor]:
        """All as tensors, by name."""
        parts = {"points": self.prompts.points, "point_labels": self.prompts.point_labels, "boxes": self.prompts.boxes}
        kept = {name: tensor for name, tensor in parts.items() if tensor is not None}
        return {"thumbnails": self.thumbnails, "sizes": self.sizes, **kept}

    @classmethod
    def unpack(cls, packed: dict[str, Tensor]) -> TransferredPrompts:
        """What `pack` was called on, on the CPU."""
        tensors = {name: tensor.cpu() for name, tensor in packed.items()}
        prompts = Prompts(tensors.get("points"), tensors.get("point_labels"), tensors.get("boxes"))
        return cls(tensors["thumbnails"], tensors["sizes"], prompts)


def as_prompts(masks: Bool[Tensor, "n k h w"], kind: PromptKind, jitter: float, generator: Generator) -> Prompts:
    """What a person who sees the masks would say; PADDING points and zero boxes where a label is absent."""
    if kind == "box":
        return Prompts(boxes=boxes(masks, jitter, generator))
    deepest, more = centre_points(masks), int(kind.removeprefix("points-")) - 1
    return append_points(deepest, inside_points(masks, more, generator)) if more else deepest


def thumbnails_of(stack: SliceView) -> Float[Tensor, "n p"]:
    """Thumbnails of all slices of a stack."""
    starts = range(0, len(stack), CHUNK)
    return torch.cat([thumbnails(stack.cut(start, start + CHUNK)) for start in starts])


def thumbnails(slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """Small grey pictures of zero mean and unit variance; near in Euclid's sense is alike."""
    grey = slices.mean(dim=1, keepdim=True)
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).flatten(1)
    return (small - small.mean(dim=1, keepdim=True)) / small.std(dim=1, keepdim=True).clamp_min(1e-6)


def _stacked(slices: Float[Tensor, "n c h w"]) -> SliceView:
    """Slices as the axial stack of a volume that has no other place in the world."""
    n, _, h, w = slices.shape
    geometry = Geometry((w, h, n), np.diag([-1.0, -1.0, -1.0, 1.0]), unit="pixel")  # slices run as they are stored
    volume = Volume(rearrange(slices.detach().cpu(), "n c h w -> c w h n").numpy(), geometry)
    return Slicer(plane="axial", window=(0.0, 1.0)).view(volume)
