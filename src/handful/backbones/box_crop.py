"""Box crops: each object is prompted for in a window round its box, which is encoded at the backbone's full size.

A model that sees a whole slice in 256 pixels has little left for an organ of ten voxels. Interactive segmentation has
long zoomed in on what a person points at (Sofiiuk et al., "f-BRS", CVPR 2020); here a box says where.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.backbones.framing import from_square, into_square
from handful.prompts.prompts import Prompts

OUTSIDE = -1024.0
"""Logit of every pixel outside the window."""
BATCH = 8
"""Windows that are encoded at once."""


def decode_box_crop(
    backbone: Backbone,
    slices: Float[Tensor, "n c h w"],
    boxes: Float[Tensor, "n k 4"],
    rough: Float[Tensor, "n k h w"] | None = None,
    context: float = 3.0,
) -> Float[Tensor, "n k h w"]:
    """Logits of the object in each box (x0, y0, x1, y1 in slice pixels), from a window `context` times as large.

    `rough` is a mask prompt for each box, in logits. A box of zeros is no prompt, and its logits are those of no label.
    Each box costs an encode of its own, which no cache stores: the next box is another window.
    """
    n, k, h, w = *boxes.shape[:2], *slices.shape[-2:]
    logits = slices.new_full((n, k, h, w), OUTSIDE)
    wanted = (boxes != 0).any(dim=2).nonzero().tolist()
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        windows = [_window(boxes[row, label].tolist(), (h, w), context) for row, label in some]
        cuts, prompts = [], []
        for (row, label), (x0, y0, x1, y1) in zip(some, windows, strict=True):
            cuts.append(into_square(slices[row : row + 1, :, y0:y1, x0:x1], backbone.side))
            mask = None if rough is None else rough[row : row + 1, label : label + 1, y0:y1, x0:x1]
            prompts.append((_moved(boxes[row, label], (x0, y0, x1, y1), backbone.side), mask))
        found = _decoded(backbone, torch.cat(cuts), prompts)
        for (row, label), (x0, y0, x1, y1), crop in zip(some, windows, found, strict=True):
            logits[row, label, y0:y1, x0:x1] = from_square(crop[None], (y1 - y0, x1 - x0))[0, 0]
    return logits


def _decoded(
    backbone: Backbone, cuts: Tensor, prompts: list[tuple[Tensor, Tensor | None]]
) -> Float[Tensor, "o 1 side side"]:
    size = (backbone.side, backbone.side)
    masks = [into_square(mask, backbone.side) for _, mask in prompts if mask is not None]
    prompt = Prompts(boxes=torch.stack([box for box, _ in prompts])[:, None], masks=torch.cat(masks) if masks else None)
    return backbone.decode(backbone.encode_exact(cuts), backbone.embed(prompt, size))


def _window(box: list[float], size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive) of a square of whole pixels round the box, within the slice."""
    x0, y0, x1, y1 = box
    h, w = size
    reach = context * max(x1 - x0 + 1, y1 - y0 + 1) / 2
    middle_x, middle_y = (x0 + x1 + 1) / 2, (y0 + y1 + 1) / 2
    left, top = max(0, int(middle_x - reach)), max(0, int(middle_y - reach))
    right, bottom = min(w, int(middle_x + reach) + 1), min(h, int(middle_y + reach) + 1)
    return min(left, w - 1), min(top, h - 1), max(right, 1), max(bottom, 1)


def _moved(box: Float[Tensor, 4], window: tuple[int, int, int, int], side: int) -> Float[Tensor, 4]:
    """The box in pixels of a square that shows the window.

    The outer edges of its corner pixels stay where they are, so that a box of one pixel covers all pixels of the square
    that show it. `points_in_square` moves the centres of the corner pixels instead, as the corners are points to SAM.
    """
    x0, y0, x1, y1 = window
    across, down = side / (x1 - x0), side / (y1 - y0)
    scale, origin = box.new_tensor([across, down] * 2), box.new_tensor([x0, y0] * 2)
    corner = box.new_tensor([-0.5, -0.5, 0.5, 0.5])  # the box's outer edges, which are what a zoom keeps
    return (box + 0.5 + corner - origin) * scale - 0.5 - corner
