"""Segmenters that must be asked, and who asks them: prompts carried over from labelled slices, or a simulated reader.

A `PromptableSegmenter` is no `Segmenter`: one that ignored its prompts in silence would lie. `Prompted` makes it one,
so that prediction and evaluation have one path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from handful.backbones.base import Backbone
from handful.data.cases import Case, SupportSet
from handful.data.slicing import Slicer, SliceView
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, SettingsError
from handful.methods.base import CHUNK, Segmenter, drawn, has_signal, to_classes
from handful.prompts.heuristics import append_points, boxes, centre_points, inside_points
from handful.prompts.prompts import PADDING, Prompts

PromptKind = Literal["box", "points-1", "points-3", "points-5"]
"""A box round a label, or points inside it: the deepest one, and two or four drawn at random."""
Prompter = Callable[[SliceView], Prompts]
"""Prompts for every slice of a stack, in its order."""

NOT_ASKED = -1024.0
"""Logit of a label that has no prompt in a slice."""
SIDE = 32
"""Pixels along the thumbnails by which slices are compared: coarse enough to forgive a small shift."""


class PromptableSegmenter(nn.Module, ABC):
    """Segments what prompts ask for; a label without a prompt in a slice is not there."""

    def __init__(self, labels: Labels, slicer: Slicer, backbone: Backbone) -> None:
        super().__init__()
        self.labels = labels
        self.slicer = slicer
        self.backbone = backbone

    @abstractmethod
    def answer(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label; what is said of labels without a prompt does not matter."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """All that was learned beside the backbone, by name."""

    def forward(self, slices: Float[Tensor, "n c h w"], prompts: Prompts) -> Float[Tensor, "n k h w"]:
        """Logits of each label for slices in [0, 1]; NOT_ASKED where a label has no prompt.

        Raises SettingsError where the prompts are not for these slices and labels.
        """
        wanted = asked(prompts)
        if wanted.shape != (len(slices), len(self.labels)):
            raise SettingsError(
                f"prompts for (slices, labels) = {tuple(wanted.shape)}, but there are "
                f"{(len(slices), len(self.labels))}; give one row a slice and one prompt a label"
            )
        absent = ~wanted[..., None, None].to(slices.device)
        return self.answer(slices, prompts.to(slices.device)).masked_fill(absent, NOT_ASKED)

    def predict(self, volume: Volume, prompts: Prompts) -> LabelMap:
        """The label map of a volume, on its very grid; `prompts` has a row for each of its slices, as `slicer` cuts."""
        return Prompted(self, lambda stack: prompts).predict(volume)


class Prompted(Segmenter):
    """A promptable segmenter with a prompter that asks it: a segmenter like any other."""

    def __init__(self, promptable: PromptableSegmenter, prompter: Prompter) -> None:
        super().__init__(promptable.labels, promptable.slicer, promptable.backbone)
        self.promptable = promptable
        self.prompter = prompter

    def forward(self, slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        logits: Tensor = self.promptable(slices, self.prompter(_stacked(slices)))
        return logits

    def learned(self) -> dict[str, Tensor]:
        """What the promptable one learned; a prompter learns nothing."""
        return self.promptable.learned()

    def segment(self, stack: SliceView) -> LabelMap:
        """As always, but slices in which nothing is asked for cost nothing."""
        prompts = self.prompter(stack)
        wanted = asked(prompts)
        if len(wanted) != len(stack):
            raise SettingsError(f"prompts for {len(wanted)} slices, but there are {len(stack)}; give a row a slice")
        return drawn(stack, self.labels, self._answered(stack, prompts, wanted.any(dim=1)))

    def _answered(
        self, stack: SliceView, prompts: Prompts, wanted: Bool[Tensor, " n"]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        chosen = torch.nonzero(wanted)[:, 0].tolist()
        for start in range(0, len(chosen), CHUNK):
            numbers = chosen[start : start + CHUNK]
            slices = stack.take(numbers).to(self.backbone.device)
            logits = self.promptable(slices, _rows(prompts, torch.tensor(numbers)))
            yield numbers, to_classes(logits) * has_signal(slices)[:, None, None]


@dataclass(frozen=True, eq=False)
class SimulatedReader:
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
        stack.volume.geometry.require_same(self.reference.geometry, "the simulated reader's reference and the scan")
        parts = []
        for number, classes in enumerate(stack.of(self.reference.array)):
            masks = torch.from_numpy(np.stack([classes == value for value in self.labels.values]))[None]
            generator = Generator().manual_seed(self.seed * 1_000_003 + number)
            parts.append(as_prompts(masks, self.kind, self.jitter, generator))
        return _joined(parts)


def oracle(
    promptable: PromptableSegmenter, kind: PromptKind = "box", jitter: float = 0.0, seed: int = 0
) -> Callable[[Case], LabelMap]:
    """Segments labelled cases with prompts from their own references, for `evaluate_cases`: it looks at the truth."""

    def segment(case: Case) -> LabelMap:
        reference = case.read_reference()
        if reference is None:
            raise InputError(f"case {case.name!r} has no reference to take prompts from; leave it out")
        reader = SimulatedReader(reference, promptable.labels, kind, jitter, seed)
        return Prompted(promptable, reader).predict(case.read_image())

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
    def of(cls, support: SupportSet, slicer: Slicer, kind: PromptKind, seed: int) -> TransferredPrompts:
        """The prompts of all labelled slices; of the slices themselves only thumbnails are kept."""
        generator = Generator().manual_seed(seed)
        looks: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        parts: list[Prompts] = []
        for labelled in support.slices(slicer):
            for slices, masks in zip(
                *[torch.split(part, CHUNK) for part in (labelled.slices, labelled.masks)], strict=True
            ):
                looks.append(thumbnails(slices))
                sizes += [(slices.shape[-2], slices.shape[-1])] * len(slices)
                parts.append(as_prompts(masks > 0, kind, 0.0, generator))
        return cls(torch.cat(looks), torch.tensor(sizes), _joined(parts))

    def __call__(self, stack: SliceView) -> Prompts:
        starts = range(0, len(stack), CHUNK)
        looks = torch.cat([thumbnails(stack.cut(start, start + CHUNK)) for start in starts])
        nearest = torch.cdist(looks, self.thumbnails).argmin(dim=1)
        return _resized(_rows(self.prompts, nearest), self.sizes[nearest], stack.size)

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


def asked(prompts: Prompts) -> Bool[Tensor, "n k"]:
    """Which labels are asked for in which slices: by a box, a point, or a mask that is not empty."""
    found: list[Tensor] = []
    if prompts.boxes is not None:
        found.append((prompts.boxes != 0).any(dim=-1))
    if prompts.point_labels is not None:
        found.append((prompts.point_labels != PADDING).any(dim=-1))
    if prompts.masks is not None:
        found.append((prompts.masks > 0).flatten(2).any(dim=-1))
    if not found:
        raise SettingsError("empty prompts: give points, boxes or masks")
    return torch.stack(found).any(dim=0)


def thumbnails(slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """Small grey pictures of zero mean and unit variance; near in Euclid's sense is alike."""
    grey = slices.mean(dim=1, keepdim=True)
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).flatten(1)
    return (small - small.mean(dim=1, keepdim=True)) / small.std(dim=1, keepdim=True).clamp_min(1e-6)


def _rows(prompts: Prompts, rows: Int[Tensor, " m"]) -> Prompts:
    def chosen(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows.to(tensor.device)]

    return Prompts(chosen(prompts.points), chosen(prompts.point_labels), chosen(prompts.boxes), chosen(prompts.masks))


def _joined(parts: Sequence[Prompts]) -> Prompts:
    """Boxes or points of one kind, one part after the other."""

    def all_of(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(there) if there else None

    return Prompts(
        all_of([part.points for part in parts]),
        all_of([part.point_labels for part in parts]),
        all_of([part.boxes for part in parts]),
    )


def _resized(prompts: Prompts, sizes: Int[Tensor, "n 2"], size: tuple[int, int]) -> Prompts:
    """Prompts of slices of `sizes` (h, w) for slices of one size: a box keeps its outer edges, a point its place."""
    scale = (torch.tensor(size) / sizes).flip(1)[:, None]  # (n, 1, xy)
    points = None if prompts.points is None else (prompts.points + 0.5) * scale[:, :, None] - 0.5
    if prompts.boxes is None:
        return Prompts(points, prompts.point_labels)
    low, high = prompts.boxes[..., :2], prompts.boxes[..., 2:]
    moved = torch.cat([low * scale, (high + 1) * scale - 1], dim=-1)
    return Prompts(points, prompts.point_labels, moved * asked(prompts)[..., None])


def _stacked(slices: Float[Tensor, "n c h w"]) -> SliceView:
    """Slices as the axial stack of a volume that has no other place in the world."""
    n, _, h, w = slices.shape
    geometry = Geometry((w, h, n), np.diag([-1.0, -1.0, -1.0, 1.0]), unit="pixel")  # slices run as they are stored
    volume = Volume(rearrange(slices.detach().cpu(), "n c h w -> c w h n").numpy(), geometry)
    return Slicer(plane="axial", window=(0.0, 1.0)).view(volume)
