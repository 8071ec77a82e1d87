"""Prompts: points, boxes and masks, for n slices and k labels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from handful.errors import SettingsError

PADDING = -1
"""Point label of an unused slot, so that different numbers of points fit into one tensor."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts for n slices × k labels, in slice pixels; (0, 0) is the centre of the first pixel."""

    points: Float[Tensor, "n k p 2"] | None = None
    """(x, y) of p points for each slice and label."""
    point_labels: Int[Tensor, "n k p"] | None = None
    """1 for a point inside the label, 0 for one outside, PADDING for an unused slot."""
    boxes: Float[Tensor, "n k 4"] | None = None
    """x0, y0, x1, y1; the corner pixels belong to the box. Zeros for no box."""
    masks: Float[Tensor, "n k h w"] | None = None
    """Logits of a previous mask at slice size; for a binary mask, large values of either sign."""

    def __post_init__(self) -> None:
        if (self.points is None) != (self.point_labels is None):
            raise SettingsError("points and point_labels go together; give both or neither")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of slices and of labels. Raises SettingsError if there are no points, boxes or masks."""
        first = self._first()
        return int(first.shape[0]), int(first.shape[1])

    @property
    def device(self) -> torch.device:
        """The device of the tensors. Raises SettingsError if there are none."""
        return self._first().device

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device."""
        return self._each(lambda part: part.to(device))

    def rows(self, index: Int[Tensor, " m"]) -> Prompts:
        """The prompts of the slices with these indices, in this order."""
        return self._each(lambda part: part[index.to(part.device)])

    def labels(self, index: slice | Int[Tensor, " m"]) -> Prompts:
        """The prompts of the labels with these indices."""
        return self._each(lambda part: part[:, index])

    def reshaped(self, slices: int, labels: int) -> Prompts:
        """The same prompts in the same order, for other numbers of slices and labels with the same product."""
        return self._each(lambda part: part.reshape(slices, labels, *part.shape[2:]))

    def among(self, label: int, count: int, absent: float) -> Prompts:
        """Prompts for one label, extended to `count` labels of which only the one with index `label` is prompted.

        If there is a mask, the others get masks with the logit `absent`.
        """

        def extended(part: Tensor | None, value: float) -> Tensor | None:
            if part is None:
                return None
            full = part.new_full((len(part), count, *part.shape[2:]), value)
            full[:, label] = part[:, 0]
            return full

        return Prompts(
            extended(self.points, 0),
            extended(self.point_labels, PADDING),
            extended(self.boxes, 0),
            extended(self.masks, absent),
        )

    def is_prompted(self) -> Bool[Tensor, "n k"]:
        """Whether each label has a prompt in each slice: a box, a point, or a mask that is not empty."""
        by_kind: list[Tensor] = []
        if self.boxes is not None:
            by_kind.append((self.boxes != 0).any(dim=-1))
        if self.point_labels is not None:
            by_kind.append((self.point_labels != PADDING).any(dim=-1))
        if self.masks is not None:
            by_kind.append((self.masks > 0).flatten(2).any(dim=-1))
        if not by_kind:
            raise SettingsError("empty prompts: give points, boxes or masks")
        return torch.stack(by_kind).any(dim=0)

    def is_one_click(self) -> Bool[Tensor, "n k"]:
        """Which labels have one positive point and nothing else, which leaves open how much around it is meant."""
        if self.point_labels is None:
            return torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        one_click = ((self.point_labels == 1).sum(dim=-1) == 1) & ((self.point_labels != PADDING).sum(dim=-1) == 1)
        if self.boxes is not None:
            one_click &= ~(self.boxes != 0).any(dim=-1)
        return one_click if self.masks is None else one_click & ~(self.masks > 0).flatten(2).any(dim=-1)

    def resized(self, sizes: Int[Tensor, "n 2"], size: tuple[int, int]) -> Prompts:
        """Points and boxes for slices of `sizes` (h, w), scaled to slices of `size` (h, w). Masks are dropped."""
        scale = (torch.tensor(size) / sizes).flip(1)[:, None]  # (n, 1, xy)
        points = None if self.points is None else (self.points + 0.5) * scale[:, :, None] - 0.5
        if self.boxes is None:
            return Prompts(points, self.point_labels)
        low, high = self.boxes[..., :2], self.boxes[..., 2:]
        moved = torch.cat([low * scale, (high + 1) * scale - 1], dim=-1)
        return Prompts(points, self.point_labels, moved * (self.boxes != 0).any(dim=-1, keepdim=True))

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """The slices of all parts, one after the other; all parts must have the same kinds of prompts."""

        def joined(tensors: list[Tensor | None]) -> Tensor | None:
            given = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(given) if given else None

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
