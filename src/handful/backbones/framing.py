"""Between slices and a model's square input: resizing, normalisation, and where the pixels of a slice come to lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.prompts.prompts import Prompts

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of each colour, for values in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of each colour."""


@dataclass(frozen=True, kw_only=True)
class PixelPolicy:
    """How slices with values in [0, 1] become the input of an image encoder, as its authors trained it.

    The steps, in this order: grey is repeated to three channels, and other channels become three (`as_colours`);
    resize; `min_max`; subtract `mean` and divide by `std`, channel by channel; pad with zeros.
    """

    resize: Literal["pad", "stretch"]
    """'pad': the longest side becomes the square's side, and zeros fill the rest, right and below. 'stretch': both
    sides become the square's side, so the aspect ratio changes."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pixels are resized, always with anti-aliasing. 'bicubic' stays within the range of the slice."""
    min_max: bool = False
    """Scale each resized slice so that its lowest value is 0 and its highest 1, all channels together."""
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def content(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """Rows and columns of the square that a slice of `size` (h, w) covers, from the upper left corner."""
        if self.resize == "stretch":
            return side, side
        scale = side / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def encoder_input(self, slices: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n 3 side side"]:
        """What the image encoder is given for slices in [0, 1]."""
        h, w = slices.shape[-2:]
        pixels = resized(slices, self.content((h, w), side), self.interpolation)
        if self.min_max:
            pixels = _scaled_to_unit_range(pixels)
        colour = as_colours(pixels)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return _padded((colour - mean) / std, side)

    def into_frame(self, maps: Float[Tensor, "n k h w"], side: int, cells: int) -> Float[Tensor, "n k cells cells"]:
        """Maps of slices laid into the square of `side` pixels, as means over `cells` × `cells` cells; padding is 0."""
        if self.resize == "stretch":
            return into_square(maps, cells)
        content = self.content((maps.shape[-2], maps.shape[-1]), side)
        # one slice at a time, because the full square is large
        squares = (_padded(resized(part, content), side) for part in torch.split(maps, 1))
        return torch.cat([F.interpolate(square, size=(cells, cells), mode="area") for square in squares])

    def from_frame(self, maps: Float[Tensor, "n k s s"], side: int, size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        """The inverse: maps of the square, bilinear onto slices of `size` (h, w), padding dropped."""
        if self.resize == "stretch":
            return from_square(maps, size)
        h, w = self.content(size, side)
        squares = (from_square(part, (side, side)) for part in torch.split(maps, 1))
        return torch.cat([from_square(square[..., :h, :w], size) for square in squares])


def as_colours(slices: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Slices with three channels: grey repeated, colours and three sequences as they are, others as `colour_shares`."""
    channels = slices.shape[1]
    if channels in (1, 3):
        return slices.expand(-1, 3, -1, -1)
    return torch.einsum("nchw,kc->nkhw", slices, colour_shares(channels).to(slices))


def colour_shares(channels: int) -> Float[Tensor, "3 c"]:
    """The share of each sequence in three colours.

    Of two sequences, the third colour is the mean. Of more than three, each colour is the mean of every third one.
    """
    if channels == 2:
        return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    shares = torch.stack([(torch.arange(channels) % 3 == colour).float() for colour in range(3)])
    return shares / shares.sum(dim=1, keepdim=True)


def resized(
    maps: Float[Tensor, "n k h w"], size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Float[Tensor, "n k rows columns"]:
    """Maps stretched to `size` (rows, columns); where pixels merge, each new one is the mean of those it covers."""
    if maps.shape[-2:] == size:
        return maps
    new = F.interpolate(maps.float(), size=size, mode=mode, align_corners=False, antialias=True).to(maps)
    if mode == "bilinear":
        return new
    low, high = (extreme(maps, dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    return new.clamp(low, high)


def into_square(maps: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
    """Maps stretched onto a square, the aspect ratio not kept."""
    return resized(maps, (side, side))


def from_square(maps: Float[Tensor, "n k rows columns"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
    """Maps of a square, or of a part of it, bilinear onto `size` (h, w)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def points_in_square(
    prompts: Prompts, size: tuple[int, int], content: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Points, their labels and boxes in pixels of the square, of which the slice covers the first `content` (h, w).

    The centre of a pixel stays the centre of that pixel: x becomes (x + ½) · scale − ½. The prompt encoder adds the
    half pixel that is subtracted here. The authors of SAM multiply x by the scale alone. Where slices are enlarged,
    their prompts therefore lie up to half a slice pixel further to the left and further up than these.
    """
    scale = torch.tensor([content[1] / size[1], content[0] / size[0]])

    def move(xy: Tensor) -> Tensor:
        return (xy + 0.5) * scale.to(xy) - 0.5

    points = None if prompts.points is None else move(prompts.points)
    boxes = None if prompts.boxes is None else move(prompts.boxes.reshape(*prompts.boxes.shape[:-1], 2, 2)).flatten(-2)
    labels = None if prompts.point_labels is None else prompts.point_labels.to(torch.int)
    return points, labels, boxes


def _scaled_to_unit_range(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each slice from 0 to 1; a slice of one value becomes 0."""
    low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
    return (pixels - low) / (high - low).clamp_min(1e-8)


def _padded(content: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    return F.pad(content, (0, side - content.shape[-1], 0, side - content.shape[-2]))
