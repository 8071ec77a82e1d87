"""Masks of all objects of a slice: SAM's "everything" mode (Kirillov et al., "Segment anything", ICCV 2023, app. B).

A regular grid of points prompts the backbone. Masks that the backbone itself thinks poor, and masks that a small change
of the threshold would change much, are left out. Of masks that nearly coincide, the better one is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction
from handful.errors import SettingsError
from handful.prompts.prompts import Prompts

AT_ONCE = 64
"""Points of one decoder call."""
OFFSET = 1.0
"""Change of the threshold, in logits, under which a stable mask stays nearly the same."""


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """Settings of `everything`. SAM's authors take 32 points, 0.88 and 0.95, which leave handful-tiny hardly a mask."""

    points: int = 16
    """Points along each side of the grid."""
    least_iou: float = 0.6
    """Smallest IoU that the backbone predicts for a mask that is kept."""
    least_stability: float = 0.85
    """Smallest IoU between a mask at a higher and at a lower threshold."""
    most_overlap: float = 0.7
    """IoU of two masks above which only the better one is kept."""

    def __post_init__(self) -> None:
        if self.points < 1:
            raise SettingsError(f"points must be at least 1, got {self.points}")
        for name in ("least_iou", "least_stability", "most_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


@torch.inference_mode()
def everything(
    slices: Float[Tensor, "1 c h w"],
    backbone: Backbone,
    config: EverythingConfig = EverythingConfig(),
) -> Bool[Tensor, "m h w"]:
    """Return the masks of all m objects of one slice with values in [0, 1], the best first; they may overlap."""
    image = backbone.encode(slices.to(backbone.device))
    size = (slices.shape[-2], slices.shape[-1])
    kept: list[Tensor] = []
    quality: list[Tensor] = []
    for found in _prompted(backbone, image, size, config.points):
        logits, iou = found.logits[0], found.iou[0]
        area = (logits > 0).sum(dim=(1, 2))
        wider = (logits > -OFFSET).sum(dim=(1, 2)).clamp_min(1)
        stability = (logits > OFFSET).sum(dim=(1, 2)) / wider
        good = (iou >= config.least_iou) & (stability >= config.least_stability) & (area > 0)
        kept.append(logits[good])
        quality.append(iou[good])
    logits, order = torch.cat(kept), torch.cat(quality).argsort(descending=True, stable=True)
    logits = logits[order]
    logits = logits[_distinct(logits > 0, config.most_overlap)]
    if not len(logits):
        return torch.zeros(0, *size, dtype=torch.bool, device=logits.device)
    masks: Tensor = backbone.to_image_frame(logits[None], size)[0] > 0
    return masks[masks.any(dim=(1, 2))]


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
    flat = masks.flatten(1).float()
    both = flat @ flat.T
    area = both.diagonal()
    iou = both / (area[:, None] + area[None] - both).clamp_min(1)
    rows: list[int] = []
    for row in range(len(masks)):
        if not rows or float(iou[row, rows].max()) <= most_overlap:
            rows.append(row)
    return rows
