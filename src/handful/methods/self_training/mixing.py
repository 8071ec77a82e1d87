"""Copy-paste between labelled and unlabelled slices: a box of one slice at the same place in another.

After Bai et al., "Bidirectional copy-paste for semi-supervised medical image segmentation" (CVPR 2023): half of the
slices are labelled ones with a box of an unlabelled one, the other half the reverse. Position is kept, so what lies
left stays left.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

SMALLEST_BOX, LARGEST_BOX = 1 / 3, 2 / 3
"""Sides of a box as shares of those of the square."""


def labelled_parts(n: int, side: int, generator: Generator) -> Bool[Tensor, "n s s"]:
    """Where each of n mixed slices shows the labelled one: outside of a random box, or inside, by turns."""
    shares = SMALLEST_BOX + (LARGEST_BOX - SMALLEST_BOX) * torch.rand(n, generator=generator)
    edges = (shares * side).round().long()
    corners = (torch.rand(n, 2, generator=generator) * (side - edges[:, None] + 1)).long()
    line = torch.arange(side)
    rows = (line >= corners[:, :1]) & (line < (corners[:, 0] + edges)[:, None])
    columns = (line >= corners[:, 1:]) & (line < (corners[:, 1] + edges)[:, None])
    inside = rows[:, :, None] & columns[:, None, :]
    flipped = (torch.arange(n) % 2 == 1)[:, None, None]
    return torch.where(flipped, inside, ~inside)
