"""Between slices and a model's square: resizing, ImageNet's colours, and where a slice's pixels come to lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.prompts.prompts import Prompts

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def resized(maps: Float[Tensor, "n k h w"], size: tuple[int, int]) -> Float[Tensor, "n k rows columns"]:
    """Maps stretched to `size` (rows, columns); where pixels merge, each new one is the mean of those it covers."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False, antialias=True).to(maps)


def into_square(maps: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
    """Stretched onto a square, as SAM 2 has it: aspect not kept, nothing padded."""
    return resized(maps, (side, side))


def from_square(maps: Float[Tensor, "n k rows columns"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
    """The way back, from the square or from a piece of it, bilinear."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalised(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Three channels with ImageNet's mean and deviation taken out; grey is repeated after the resize, which is free."""
    colour = pixels if pixels.shape[1] == 3 else pixels.expand(-1, 3, -1, -1)
    return (colour - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(STD)[:, None, None]


def points_in_square(
    prompts: Prompts, size: tuple[int, int], content: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Points, their labels and boxes in pixels of the square, of which the slice covers the first `content` (h, w).

    The prompt encoder adds half a pixel itself, so what it gets are pixel indices in the square's own grid.
    """
    scale = torch.tensor([content[1] / size[1], content[0] / size[0]])

    def move(xy: Tensor) -> Tensor:
        return (xy + 0.5) * scale.to(xy) - 0.5

    points = None if prompts.points is None else move(prompts.points)
    boxes = None if prompts.boxes is None else move(prompts.boxes.reshape(*prompts.boxes.shape[:-1], 2, 2)).flatten(-2)
    labels = None if prompts.point_labels is None else prompts.point_labels.to(torch.int)
    return points, labels, boxes
