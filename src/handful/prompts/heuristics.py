"""Simulated prompts from masks, for n slices × k labels at once: points, corrections and boxes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from handful.prompts.prompts import PADDING, Prompts

MOST_PIXELS = 2**24
"""Pixels among which torch chooses at once."""


def inside_points(masks: Bool[Tensor, "n k h w"], count: int, rng: Generator) -> Prompts:
    """`count` positive points per label at random positions inside it; PADDING if the label is absent."""
    xy, present = _random_points(masks, count, rng)
    return Prompts(points=xy, point_labels=torch.where(present[..., None], 1, PADDING).expand(xy.shape[:-1]))


def centre_points(masks: Bool[Tensor, "n k h w"]) -> Prompts:
    """One positive point per label: the pixel of its largest connected region farthest from the edge.

    PADDING if the label is absent. The edge of the slice counts as an edge. Of equally far pixels, the one nearest to
    the region's centroid is taken. The point is inside the region, also for a ring.
    """
    xy, area = _deepest(masks)
    return Prompts(points=xy[:, :, None], point_labels=torch.where(area > 0, 1, PADDING)[..., None])


def deepest_corrections(predicted: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"]) -> Prompts:
    """One point per label in the middle of its largest connected error region, as in evaluations of SAM.

    Positive if the region was missed, negative if it is a false positive; PADDING if there is no error.
    """
    missed_xy, missed = _deepest(truth & ~predicted)
    false_xy, false_positive = _deepest(predicted & ~truth)
    more_missed = missed >= false_positive
    labels = torch.where(torch.maximum(missed, false_positive) > 0, more_missed.long(), PADDING)
    xy = torch.where(more_missed[..., None], missed_xy, false_xy)
    return Prompts(points=xy[:, :, None], point_labels=labels[..., None])


def corrective_points(predicted: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"], rng: Generator) -> Prompts:
    """One random point per label in its missed or its false positive region, whichever is larger.

    Positive in the missed region, negative in the false positive one; PADDING if there is no error.
    """
    missed, false_positive = truth & ~predicted, predicted & ~truth
    more_missed = missed.sum(dim=(2, 3)) >= false_positive.sum(dim=(2, 3))
    xy, wrong = _random_points(torch.where(more_missed[..., None, None], missed, false_positive), 1, rng)
    labels = torch.where(wrong, more_missed.long(), PADDING)
    return Prompts(points=xy, point_labels=labels[..., None])


def boxes(masks: Bool[Tensor, "n k h w"], jitter: float, rng: Generator) -> Float[Tensor, "n k 4"]:
    """The box x0, y0, x1, y1 around each label, each side moved by up to `jitter` of the box; zeros if absent."""
    columns, rows = masks.any(dim=2), masks.any(dim=3)
    x0, x1 = _extent(columns)
    y0, y1 = _extent(rows)
    corners = torch.stack([x0, y0, x1, y1], dim=-1).float()
    size = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dim=-1) + 1
    moved = corners + jitter * size * (2 * torch.rand(corners.shape, generator=rng) - 1)
    return moved * columns.any(dim=-1, keepdim=True)


def ellipses(boxes: Float[Tensor, "n k 4"], size: tuple[int, int]) -> Bool[Tensor, "n k h w"]:
    """The ellipse inside each box (x0, y0, x1, y1; corner pixels included) that touches all four sides."""
    y, x = (torch.arange(length, device=boxes.device) for length in size)
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    across = (x - ((x0 + x1) / 2)[..., None]) / ((x1 - x0 + 1) / 2)[..., None]
    down = (y - ((y0 + y1) / 2)[..., None]) / ((y1 - y0 + 1) / 2)[..., None]
    inside = across[..., None, :] ** 2 + down[..., :, None] ** 2 <= 1
    return inside & (boxes != 0).any(dim=-1)[..., None, None]


def append_points(first: Prompts, second: Prompts) -> Prompts:
    """The points of both; boxes and masks are those of `first`."""
    assert first.points is not None
    assert second.points is not None
    assert first.point_labels is not None
    assert second.point_labels is not None
    points = torch.cat([first.points, second.points], dim=2)
    return Prompts(points, torch.cat([first.point_labels, second.point_labels], dim=2), first.boxes, first.masks)


def _random_points(region: Tensor, count: int, rng: Generator) -> tuple[Float[Tensor, "n k p 2"], Bool[Tensor, "n k"]]:
    """Random points in each region, and whether the region is not empty."""
    n, k, _, w = region.shape
    weights = region.flatten(2).flatten(0, 1).float()
    present = weights.sum(dim=1) > 0
    weights[~present] = 1.0
    index = random_pixels(weights, count, rng).view(n, k, count)
    return torch.stack([index % w, index // w], dim=-1).float(), present.view(n, k)


def random_pixels(weights: Float[Tensor, "m p"], count: int, rng: Generator) -> Int[Tensor, "m d"]:
    """`count` random pixels of each map, with chances as the weights; of very many, every n-th comes into question."""
    if weights.shape[1] <= MOST_PIXELS:
        return torch.multinomial(weights, count, replacement=True, generator=rng)
    chosen = []
    for weight in weights:
        places = torch.nonzero(weight)[:, 0]
        places = places[:: 1 + len(places) // MOST_PIXELS]
        chosen.append(places[torch.multinomial(weight[places], count, replacement=True, generator=rng)])
    return torch.stack(chosen)


def _deepest(regions: Tensor) -> tuple[Float[Tensor, "n k 2"], Float[Tensor, "n k"]]:
    """The pixel farthest from the edge and the area of each region's largest connected part; zeros if it is empty."""
    n, k = regions.shape[:2]
    rows = [_deepest_of(region) for region in regions.flatten(0, 1).cpu().numpy()]
    values = torch.tensor(rows, dtype=torch.float32, device=regions.device).reshape(n, k, 3)
    return values[..., :2], values[..., 2]


def _deepest_of(region: NDArray[np.bool_]) -> tuple[int, int, int]:
    """x, y and area, as in `_deepest`."""
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
    """Indices of the first and the last True along the last axis."""
    length = line.shape[-1]
    forwards, backwards = line.int().argmax(dim=-1), line.flip(-1).int().argmax(dim=-1)
    return forwards, length - 1 - backwards
