"""Between slices and SAM 2's square: plain resizing, aspect not kept; nothing is padded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.prompts.prompts import Prompts

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def into_square(maps: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
    """Stretched onto a square; where pixels merge, each new one is the mean of those it covers."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def from_square(maps: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
    """The way back, bilinear."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalised(square: Float[Tensor, "n c s s"]) -> Float[Tensor, "n 3 s s"]:
    """Three channels with ImageNet's mean and deviation taken out; grey is repeated after the resize, which is free."""
    colour = square if square.shape[1] == 3 else square.expand(-1, 3, -1, -1)
    return (colour - square.new_tensor(MEAN)[:, None, None]) / square.new_tensor(STD)[:, None, None]


def points_in_square(
    prompts: Prompts, size: tuple[int, int], side: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Points, their labels and boxes in pixels of the square, ready for the prompt encoder.

    The prompt encoder adds half a pixel itself, so what it gets are pixel indices in the square's own grid.
    """
    h, w = size
    scale = torch.tensor([side / w, side / h])

    def move(xy: Tensor) -> Tensor:
        return (xy + 0.5) * scale.to(xy) - 0.5

    points = None if prompts.points is None else move(prompts.points)
    boxes = None if prompts.boxes is None else move(prompts.boxes.unflatten(-1, (2, 2))).flatten(-2)
    labels = None if prompts.point_labels is None else prompts.point_labels.to(torch.int)
    return points, labels, boxes
