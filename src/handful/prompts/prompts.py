"""What a person says about a slice: points, boxes and masks, for n slices and k labels at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handful.errors import SettingsError

PADDING = -1
"""Point label of a slot that holds no point, so that sets of unequal length share one tensor."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts for n slices × k labels; (x, y) in slice pixels, the first pixel has its centre at (0, 0)."""

    points: Float[Tensor, "n k p 2"] | None = None
    point_labels: Int[Tensor, "n k p"] | None = None
    """1 inside the label, 0 outside, PADDING for an unused slot."""
    boxes: Float[Tensor, "n k 4"] | None = None
    """x0, y0, x1, y1; the corner pixels belong to the box."""
    masks: Float[Tensor, "n k h w"] | None = None
    """Logits of an earlier answer (or ±large for a mask), at slice size."""

    def __post_init__(self) -> None:
        if (self.points is None) != (self.point_labels is None):
            raise SettingsError("points and point_labels go together; give both or neither")

    def to(self, device: torch.device | str) -> Prompts:
        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        return Prompts(move(self.points), move(self.point_labels), move(self.boxes), move(self.masks))
