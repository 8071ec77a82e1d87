"""Crops around an object, at the side of the auxiliary network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.methods.online import PromptedObject

Window = tuple[int, int, int, int]
"""First row, last row + 1, first column, last column + 1."""
LEAST = 16
"""Smallest side of a window in pixels, where the slice has as many."""


def window_around(prompted: PromptedObject, margin: float) -> Window:
    """The bounding box of the backbone's mask, the box and the positive clicks, with `margin` of its size on each side.

    The whole slice if there is neither a mask nor a box.
    """
    height, width = prompted.logits.shape
    rows, columns = (torch.nonzero((prompted.logits > 0).any(dim=dim))[:, 0].tolist() for dim in (1, 0))
    if not rows and prompted.box is None:
        return 0, height, 0, width
    x0, y0, x1, y1 = zip(*[prompted.box], strict=True) if prompted.box else ((), (), (), ())
    points = [(x, y) for x, y, positive in prompted.points if positive]
    across = [*columns[:1], *columns[-1:], *x0, *x1, *[x for x, _ in points]]
    down = [*rows[:1], *rows[-1:], *y0, *y1, *[y for _, y in points]]
    return (*_enlarged(down, margin, height), *_enlarged(across, margin, width))


def cropped(image: Float[Tensor, "c h w"], window: Window, side: int) -> Float[Tensor, "c s s"]:
    """The window of an image at `side` × `side` pixels."""
    top, bottom, left, right = window
    part = image[None, :, top:bottom, left:right].float()
    return F.interpolate(part, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def uncropped(crop: Float[Tensor, "s s"], window: Window) -> Float[Tensor, "a b"]:
    """A crop at the size of its window."""
    top, bottom, left, right = window
    size = (bottom - top, right - left)
    return F.interpolate(crop[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def three_channels(pixels: Float[Tensor, "c h w"]) -> Float[Tensor, "3 h w"]:
    """Colour as it is, grey repeated; of several sequences the first three, the last repeated."""
    return pixels[[min(channel, len(pixels) - 1) for channel in range(3)]]


def _enlarged(places: list[float], margin: float, length: int) -> tuple[int, int]:
    low, high = min(places), max(places) + 1
    more = max(margin * (high - low), (LEAST - (high - low)) / 2)
    return max(0, int(low - more)), min(length, int(high + more) + 1)
