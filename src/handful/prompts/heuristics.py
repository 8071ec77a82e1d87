"""Masks to prompts, as a person would give them, for n slices × k labels at once: points, corrections, boxes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from handful.prompts.prompts import PADDING, Prompts


def inside_points(masks: Bool[Tensor, "n k h w"], count: int, rng: Generator) -> Prompts:
    """`count` positive points a label, anywhere inside it; PADDING where a slice does not hold the label."""
    xy, found = _draw(masks, count, rng)
    return Prompts(points=xy, point_labels=torch.where(found[..., None], 1, PADDING).expand(xy.shape[:-1]))


def corrective_points(shown: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"], rng: Generator) -> Prompts:
    """A point a label in its larger error region: positive where it was missed, negative where it was invented."""
    missed, invented = truth & ~shown, shown & ~truth
    more_missed = missed.sum(dim=(2, 3)) >= invented.sum(dim=(2, 3))
    xy, found = _draw(torch.where(more_missed[..., None, None], missed, invented), 1, rng)
    labels = torch.where(found, more_missed.long(), PADDING)
    return Prompts(points=xy, point_labels=labels[..., None])


def boxes(masks: Bool[Tensor, "n k h w"], jitter: float, rng: Generator) -> Float[Tensor, "n k 4"]:
    """x0, y0, x1, y1 round each label, each side moved by up to `jitter` of the box; zeros where absent."""
    columns, rows = masks.any(dim=2), masks.any(dim=3)
    x0, x1 = _extent(columns)
    y0, y1 = _extent(rows)
    corners = torch.stack([x0, y0, x1, y1], dim=-1).float()
    size = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dim=-1) + 1
    moved = corners + jitter * size * (2 * torch.rand(corners.shape, generator=rng) - 1)
    return moved * columns.any(dim=-1, keepdim=True)


def append_points(first: Prompts, second: Prompts) -> Prompts:
    """Both sets of points; boxes of the first are kept."""
    assert first.points is not None
    assert second.points is not None
    assert first.point_labels is not None
    assert second.point_labels is not None
    points = torch.cat([first.points, second.points], dim=2)
    return Prompts(points, torch.cat([first.point_labels, second.point_labels], dim=2), first.boxes, first.masks)


def _draw(region: Tensor, count: int, rng: Generator) -> tuple[Float[Tensor, "n k p 2"], Bool[Tensor, "n k"]]:
    n, k, _, w = region.shape
    weights = region.flatten(2).flatten(0, 1).float()
    found = weights.sum(dim=1) > 0
    weights[~found] = 1.0
    index = torch.multinomial(weights, count, replacement=True, generator=rng).view(n, k, count)
    return torch.stack([index % w, index // w], dim=-1).float(), found.view(n, k)


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First and last True along the last axis."""
    length = line.shape[-1]
    forwards, backwards = line.int().argmax(dim=-1), line.flip(-1).int().argmax(dim=-1)
    return forwards, length - 1 - backwards
