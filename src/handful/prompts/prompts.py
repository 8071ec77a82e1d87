"""What a person says about a slice: points, boxes and masks, for n slices and k labels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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

    @property
    def shape(self) -> tuple[int, int]:
        """Number of slices and of labels; SettingsError where there is no point, box or mask at all."""
        first = self._first()
        return int(first.shape[0]), int(first.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the prompts are; SettingsError where there are none."""
        return self._first().device

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device."""
        return self._each(lambda part: part.to(device))

    def rows(self, index: Int[Tensor, " m"]) -> Prompts:
        """The prompts of some slices, in the order of `index`."""
        return self._each(lambda part: part[index.to(part.device)])

    def labels(self, index: slice | Int[Tensor, " m"]) -> Prompts:
        """The prompts of some labels."""
        return self._each(lambda part: part[:, index])

    def reshaped(self, slices: int, labels: int) -> Prompts:
        """The same prompts in the same order, counted as other numbers of slices and labels."""
        return self._each(lambda part: part.reshape(slices, labels, *part.shape[2:]))

    def among(self, label: int, count: int, absent: float) -> Prompts:
        """Prompts for one label as prompts for `count` labels, of which the others are not prompted.

        `absent` is the logit of their masks, where there is a mask.
        """

        def spread(part: Tensor | None, value: float) -> Tensor | None:
            if part is None:
                return None
            full = part.new_full((len(part), count, *part.shape[2:]), value)
            full[:, label] = part[:, 0]
            return full

        return Prompts(
            spread(self.points, 0),
            spread(self.point_labels, PADDING),
            spread(self.boxes, 0),
            spread(self.masks, absent),
        )

    def is_prompted(self) -> Bool[Tensor, "n k"]:
        """Which labels have a prompt in which slices: a box, a point, or a mask that is not empty."""
        found: list[Tensor] = []
        if self.boxes is not None:
            found.append((self.boxes != 0).any(dim=-1))
        if self.point_labels is not None:
            found.append((self.point_labels != PADDING).any(dim=-1))
        if self.masks is not None:
            found.append((self.masks > 0).flatten(2).any(dim=-1))
        if not found:
            raise SettingsError("empty prompts: give points, boxes or masks")
        return torch.stack(found).any(dim=0)

    def is_one_click(self) -> Bool[Tensor, "n k"]:
        """Which labels have one positive point and nothing else, which leaves open how much around it is meant."""
        if self.point_labels is None:
            return torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        one = ((self.point_labels == 1).sum(dim=-1) == 1) & ((self.point_labels != PADDING).sum(dim=-1) == 1)
        if self.boxes is not None:
            one &= ~(self.boxes != 0).any(dim=-1)
        return one if self.masks is None else one & ~(self.masks > 0).flatten(2).any(dim=-1)

    def resized(self, sizes: Int[Tensor, "n 2"], size: tuple[int, int]) -> Prompts:
        """Points and boxes of slices of `sizes` (h, w), moved to slices of one size.

        A box keeps its outer edges, a point its place. Masks are dropped.
        """
        scale = (torch.tensor(size) / sizes).flip(1)[:, None]  # (n, 1, xy)
        points = None if self.points is None else (self.points + 0.5) * scale[:, :, None] - 0.5
        if self.boxes is None:
            return Prompts(points, self.point_labels)
        low, high = self.boxes[..., :2], self.boxes[..., 2:]
        moved = torch.cat([low * scale, (high + 1) * scale - 1], dim=-1)
        return Prompts(points, self.point_labels, moved * self.is_prompted()[..., None])

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """The slices of all parts, one part after the other; the parts have prompts of one kind."""

        def joined(tensors: list[Tensor | None]) -> Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(there) if there else None

        return Prompts(*[joined([getattr(part, name) for part in parts]) for name in _KINDS])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        parts = [getattr(self, name) for name in _KINDS]
        return Prompts(*[None if part is None else change(part) for part in parts])

    def _first(self) -> Tensor:
        for part in (self.points, self.boxes, self.masks):
            if part is not None:
                return part
        raise SettingsError("empty prompts: give points, boxes or masks")


_KINDS = ("points", "point_labels", "boxes", "masks")
