"""Masks to prompts, as a person would give them, for n slices × k labels at once: points, corrections, boxes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from handful.prompts.prompts import PADDING, Prompts


def inside_points(masks: Bool[Tensor, "n k h w"], count: int, rng: Generator) -> Prompts:
    """`count` positive points a label, anywhere inside it; PADDING where a slice does not hold the label."""
    xy, found = _draw(masks, count, rng)
    return Prompts(points=xy, point_labels=torch.where(found[..., None], 1, PADDING).expand(xy.shape[:-1]))


def centre_points(masks: Bool[Tensor, "n k h w"]) -> Prompts:
    """One positive point a label: the deepest of its largest connected region; PADDING where it is absent.

    Deepest is farthest from the region's edge, and the slice's edge is one, too; of equally deep points it is the one
    nearest to the region's centroid. So the point lies inside, also in a ring.
    """
    xy, area = _deepest(masks)
    return Prompts(points=xy[:, :, None], point_labels=torch.where(area > 0, 1, PADDING)[..., None])


def deepest_corrections(shown: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"]) -> Prompts:
    """A point a label, the deepest of its largest connected error region: positive if missed, negative if false
    positive.

    What evaluations of SAM simulate as a person's next click; PADDING where nothing is wrong.
    """
    missed_xy, missed = _deepest(truth & ~shown)
    invented_xy, false_positive = _deepest(shown & ~truth)
    more_missed = missed >= false_positive
    labels = torch.where(torch.maximum(missed, false_positive) > 0, more_missed.long(), PADDING)
    xy = torch.where(more_missed[..., None], missed_xy, invented_xy)
    return Prompts(points=xy[:, :, None], point_labels=labels[..., None])


def corrective_points(shown: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"], rng: Generator) -> Prompts:
    """A point a label in its larger error region: positive where it was missed, negative where it was a false
    positive."""
    missed, false_positive = truth & ~shown, shown & ~truth
    more_missed = missed.sum(dim=(2, 3)) >= false_positive.sum(dim=(2, 3))
    xy, found = _draw(torch.where(more_missed[..., None, None], missed, false_positive), 1, rng)
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


def ellipses(boxes: Float[Tensor, "n k 4"], size: tuple[int, int]) -> Bool[Tensor, "n k h w"]:
    """The ellipse that touches all four sides of each box; a box's corner pixels belong to it."""
    y, x = (torch.arange(length, device=boxes.device) for length in size)
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    across = (x - ((x0 + x1) / 2)[..., None]) / ((x1 - x0 + 1) / 2)[..., None]
    down = (y - ((y0 + y1) / 2)[..., None]) / ((y1 - y0 + 1) / 2)[..., None]
    inside = across[..., None, :] ** 2 + down[..., :, None] ** 2 <= 1
    return inside & (boxes != 0).any(dim=-1)[..., None, None]


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


def _deepest(regions: Tensor) -> tuple[Float[Tensor, "n k 2"], Float[Tensor, "n k"]]:
    """Of each region's largest connected part, the deepest point and the area in pixels; zeros where there is none."""
    n, k = regions.shape[:2]
    found = [_deepest_of(region) for region in regions.flatten(0, 1).cpu().numpy()]
    values = torch.tensor(found, dtype=torch.float32, device=regions.device).reshape(n, k, 3)
    return values[..., :2], values[..., 2]


def _deepest_of(region: NDArray[np.bool_]) -> tuple[int, int, int]:
    """x, y and area, as `_deepest` has them."""
    parts, _ = ndimage.label(region)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    largest = int(areas.argmax())
    if largest == 0:
        return 0, 0, 0
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    depth = ndimage.distance_transform_edt(np.pad(parts[rows, columns] == largest, 1))
    y, x = np.nonzero(depth)
    deep = depth[y, x]
    away = (y - y.mean()) ** 2 + (x - x.mean()) ** 2
    best = int(np.where(deep >= deep.max() - 1e-6, away, np.inf).argmin())
    return int(columns.start + x[best] - 1), int(rows.start + y[best] - 1), int(areas[largest])


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First and last True along the last axis."""
    length = line.shape[-1]
    forwards, backwards = line.int().argmax(dim=-1), line.flip(-1).int().argmax(dim=-1)
    return forwards, length - 1 - backwards
