"""Masks of all objects of a slice: SAM's "everything" mode (Kirillov et al., "Segment anything", ICCV 2023, app. B).

A regular grid of points prompts the backbone. Masks that the backbone itself thinks poor, and masks that a small change
of the threshold would change much, are left out. Of masks that nearly coincide, the better one is kept.

`label_everything` numbers the masks of a whole scan by their area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import SettingsError
from handful.methods.base import has_signal
from handful.prompts.prompts import Prompts

AT_ONCE = 64
"""Points of one decoder call."""
MOST_POINTS = 64
"""Points along a side of the grid; more would take gigabytes."""
OFFSET = 1.0
"""Change of the threshold, in logits, under which a stable mask stays nearly the same."""


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """Settings of `everything`."""

    points: int = 16
    """Points along each side of the grid, at most 64; SAM's authors take 32."""
    least_iou: float | None = None
    """Smallest IoU that the backbone predicts for a mask that is kept; None: as suits the backbone."""
    least_stability: float | None = None
    """Smallest IoU between a mask at a higher and at a lower threshold; None: as suits the backbone."""
    most_overlap: float = 0.7
    """IoU of two masks above which only the better one is kept."""

    def __post_init__(self) -> None:
        if not 1 <= self.points <= MOST_POINTS:
            raise SettingsError(f"points must be from 1 to {MOST_POINTS}, got {self.points}")
        for name in ("least_iou", "least_stability", "most_overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingsError(f"{name} must be from 0 to 1, got {value}")

    def thresholds(self, backbone: Backbone) -> tuple[float, float]:
        """The smallest predicted IoU and the smallest stability, where they are None those that suit the backbone."""
        defaults = backbone.family.defaults
        return (
            defaults.least_iou if self.least_iou is None else self.least_iou,
            defaults.least_stability if self.least_stability is None else self.least_stability,
        )


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """The masks of one slice, the best first; they may overlap."""

    masks: Bool[Tensor, "m h w"]
    iou: Float[Tensor, " m"]
    """IoU that the backbone predicts for each mask."""
    stability: Float[Tensor, " m"]
    """IoU between each mask at a higher and at a lower threshold."""

    @classmethod
    def none(cls, size: tuple[int, int]) -> FoundMasks:
        """No mask of a slice of `size` (h, w)."""
        return cls(torch.zeros(0, *size, dtype=torch.bool), torch.zeros(0), torch.zeros(0))


@torch.inference_mode()
def everything(
    slices: Float[Tensor, "1 c h w"],
    backbone: Backbone,
    config: EverythingConfig = EverythingConfig(),
) -> FoundMasks:
    """Find the masks of all m objects of one slice with values in [0, 1]."""
    image, thresholds = backbone.encode(slices.to(backbone.device)), config.thresholds(backbone)
    size = (slices.shape[-2], slices.shape[-1])
    parts = [_good(found, *thresholds) for found in _prompted(backbone, image, size, config.points)]
    logits, iou, stability = (torch.cat(part) for part in zip(*parts, strict=True))
    order = iou.argsort(descending=True, stable=True)
    order = order[_distinct(logits[order] > 0, config.most_overlap)]
    if not len(order):
        return FoundMasks.none(size)
    masks: Tensor = backbone.to_image_frame(logits[order].float()[None], size)[0] > 0
    visible = masks.any(dim=(1, 2))
    return FoundMasks(masks[visible], iou[order][visible], stability[order][visible])


@dataclass(frozen=True, kw_only=True)
class NumberedMask:
    """A mask in a label map of `label_everything`."""

    label: int
    """Its number in the label map; 1 is the largest mask of the scan."""
    slice: int
    """Number of its slice in the plane of the slices, from 0."""
    pixels: int
    """Pixels of the mask."""
    visible: int
    """Those of its pixels that no smaller mask covers in the label map."""
    area: float
    """In `unit`."""
    unit: str
    """"mm2", or "pixel" if the spacing is unknown."""
    predicted_iou: float
    stability: float


def label_everything(
    volume: Volume,
    backbone: Backbone,
    slicer: Slicer = Slicer(),  # noqa: B008
    config: EverythingConfig = EverythingConfig(),
) -> tuple[LabelMap, tuple[NumberedMask, ...]]:
    """Find the masks of all slices, and number them by their area over the whole scan.

    Where masks overlap, the label map has the smaller one. Constant slices have no mask.
    """
    stack = slicer.view(volume)
    array, found = np.zeros(volume.geometry.shape, dtype=np.int32), list[NumberedMask]()
    target = stack.of(array)
    pixel, unit = (1.0, "pixel") if volume.geometry.unit == "pixel" else (stack.spacing[1] * stack.spacing[2], "mm2")
    for number in range(len(stack)):
        slices = stack.take([number])
        result = everything(slices, backbone, config) if bool(has_signal(slices)) else FoundMasks.none(stack.size)
        counts = result.masks.sum(dim=(1, 2))
        for place in counts.argsort(descending=True, stable=True).tolist():
            mask = NumberedMask(
                label=len(found) + 1,
                slice=number,
                pixels=int(counts[place]),
                visible=0,
                area=float(f"{int(counts[place]) * pixel:.6g}"),
                unit=unit,
                predicted_iou=round(float(result.iou[place]), 4),
                stability=round(float(result.stability[place]), 4),
            )
            found.append(mask)
            target[number][result.masks[place].cpu().numpy()] = mask.label
    return _by_area(array, volume.geometry, found)


def _by_area(
    array: NDArray[np.int32], geometry: Geometry, found: Sequence[NumberedMask]
) -> tuple[LabelMap, tuple[NumberedMask, ...]]:
    """The label map and its masks, numbered by area; so far they have the order in which they were found."""
    order = sorted(range(len(found)), key=lambda place: -found[place].pixels)
    numbers = np.zeros(len(found) + 1, dtype=np.int32)
    numbers[[place + 1 for place in order]] = np.arange(1, len(found) + 1)
    array = numbers[array]
    visible = np.bincount(array.ravel(), minlength=len(found) + 1).tolist()
    masks = tuple(
        replace(found[place], label=number, visible=visible[number]) for number, place in enumerate(order, start=1)
    )
    labels = Labels.of({number: f"mask {number}" for number in range(1, max(len(masks), 1) + 1)})
    return LabelMap(array, geometry, labels), masks


def _good(found: MaskPrediction, least_iou: float, least_stability: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (in half precision, since there may be thousands), predicted IoU and stability of the good masks."""
    logits, iou = found.logits[0], found.iou[0]
    area = (logits > 0).sum(dim=(1, 2))
    wider = (logits > -OFFSET).sum(dim=(1, 2)).clamp_min(1)
    stability = (logits > OFFSET).sum(dim=(1, 2)) / wider
    good = (iou >= least_iou) & (stability >= least_stability) & (area > 0)
    return logits[good].half(), iou[good], stability[good]


def _prompted(
    backbone: Backbone, image: ImageEmbeddings, size: tuple[int, int], points: int
) -> Iterator[MaskPrediction]:
    """Yield the predictions of all points of the grid, in the model's square."""
    height, width = size
    y = (torch.arange(points) + 0.5) * height / points - 0.5
    x = (torch.arange(points) + 0.5) * width / points - 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 1, 2)
    best = backbone.family.defaults.multimask != "never"
    for some in torch.split(grid, AT_ONCE, dim=1):
        clicks = Prompts(some, torch.ones(some.shape[:-1], dtype=torch.long)).to(backbone.device)
        yield backbone.decode_square(image, backbone.embed(clicks, size), multimask=best)


def _distinct(masks: Bool[Tensor, "m s s"], most_overlap: float) -> list[int]:
    """Return the rows of masks that overlap with no earlier one of them by more than that IoU."""
    rows: list[int] = []
    kept = torch.zeros(0, masks[:0].flatten(1).shape[1], device=masks.device)
    for start in range(0, len(masks), AT_ONCE):
        block = masks[start : start + AT_ONCE].flatten(1).float()
        others = torch.cat([kept, block])
        both, area = block @ others.T, others.sum(dim=1)
        overlap = both / (area[len(kept) :, None] + area[None] - both).clamp_min(1)
        chosen = list(range(len(kept)))
        for row in range(len(block)):
            if not chosen or float(overlap[row, chosen].max()) <= most_overlap:
                chosen.append(len(kept) + row)
        rows += [start + place - len(kept) for place in chosen[len(kept) :]]
        kept = others[chosen]
    return rows
