"""How people prompt, well and badly: masks to first prompts, each region asked for in a way of its own.

After "parallel heuristic prompt generation" of Wang, Liao, Jiang and Geng (ISBI 2025, DOI
10.1109/ISBI60581.2025.10981084): prompts in training as diverse as those of the people who will ask. Only the abstract
is public; the prompt_mix and their shares are our reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from handful.errors import SettingsError
from handful.prompts.heuristics import append_points, boxes, centre_points, inside_points
from handful.prompts.prompts import PADDING, Prompts

SLOTS = 8
"""Points come in multiples of so many slots, PADDING where there are fewer, in training as later."""
BAND = 3
"""Pixels within which a click counts as at the boundary, or as just missed."""
RING = 10
"""Pixels round a region in which a negative click is put."""
SHORTEST, LONGEST = 5, 8
"""Points of a scribble."""


@dataclass(frozen=True, kw_only=True)
class PromptMix:
    """How often people ask in which way; shares need not sum to one."""

    centre: float = 0.2
    """A click in the middle."""
    uniform: float = 0.15
    """A click anywhere inside."""
    boundary: float = 0.1
    """A click inside, near the edge."""
    clicks: float = 0.1
    """Two to five clicks, inside and just outside; the first is inside."""
    tight_box: float = 0.1
    """A box that touches the region on all sides."""
    jittered_box: float = 0.15
    """A box with each side off by a tenth of its length (standard deviation), by 5 to 20 pixels at most."""
    loose_box: float = 0.1
    """A box too large by a tenth to three tenths on each side."""
    scribble: float = 0.05
    """A stroke along the region."""
    near_miss: float = 0.05
    """A click meant for the region that falls just outside of it."""
    confusion: float = 0.3
    """Chance of a negative click on the neighbour that a region is most easily taken for, on top of the rest."""

    def __post_init__(self) -> None:
        if min(self.shares()) < 0 or not 0 < sum(self.shares()) < math.inf:
            raise SettingsError(f"shares of prompt_mix must be 0 or more, and one above 0; got {self.shares()}")
        if not 0 <= self.confusion <= 1:
            raise SettingsError(f"confusion must be a chance in [0, 1], got {self.confusion}")

    def shares(self) -> tuple[float, ...]:
        """In the order of `BEHAVIOURS`."""
        return tuple(getattr(self, name) for name in BEHAVIOURS)

    @classmethod
    def only(cls, behaviour: str) -> PromptMix:
        """Somebody who asks in one way alone; SettingsError where it is none of BEHAVIOURS."""
        if behaviour not in BEHAVIOURS:
            raise SettingsError(f"there is no behaviour {behaviour!r}; prompt_mix are {', '.join(BEHAVIOURS)}")
        return cls(**{name: float(name == behaviour) for name in BEHAVIOURS}, confusion=0.0)


def simulate_prompts(masks: Bool[Tensor, "n k h w"], prompt_mix: PromptMix, rng: Generator) -> Prompts:
    """First prompts for n slices × k regions; boxes are zeros where there is none, as is all of an absent region.

    Points are `packed`. Every region draws its behaviour independently of the others. One seed, one answer.
    """
    n, k = masks.shape[:2]
    regions = masks.flatten(0, 1)[:, None]
    shares = torch.tensor(prompt_mix.shares(), dtype=torch.float32)
    drawn = torch.multinomial(shares, n * k, replacement=True, generator=rng)
    said = _silence(n * k, LONGEST)
    for number, behaviour in enumerate(BEHAVIOURS.values()):
        rows = torch.nonzero((drawn == number) & regions.flatten(1).any(dim=1))[:, 0]
        if len(rows):
            _write(said, rows, behaviour(regions[rows], rng))
    prompts = said.reshaped(n, k)
    if prompt_mix.confusion:
        prompts = append_points(prompts, confusion_negatives(masks, None, prompt_mix.confusion, rng))
    return packed(prompts)


def confusion_negatives(
    masks: Bool[Tensor, "n k h w"], shown: Bool[Tensor, "n k h w"] | None, chance: float, rng: Generator
) -> Prompts:
    """With this chance a negative point a region, on the other region that it is most easily taken for; else PADDING.

    That is the one that `shown`, the answer so far, overlaps most, and the point lies in that overlap. Without an
    answer it is the one that comes closest, within RING pixels.
    """
    n, k = masks.shape[:2]
    reached = _near(masks, RING) if shown is None else shown
    overlap = torch.einsum("nkp,njp->nkj", (reached & ~masks).flatten(2).float(), masks.flatten(2).float())
    most, neighbour = (overlap * ~torch.eye(k, dtype=torch.bool)).max(dim=2)
    wanted = torch.nonzero((most > 0) & (torch.rand(n, k, generator=rng) < chance))
    points, labels = torch.zeros(n, k, 1, 2), torch.full((n, k, 1), PADDING)
    if len(wanted):
        row, own = wanted.unbind(1)
        region = masks[row, neighbour[row, own]] & ~masks[row, own]
        if shown is not None:
            region = region & shown[row, own]
        found = inside_points(region[:, None], 1, rng).points
        assert found is not None
        points[row, own], labels[row, own] = found[:, 0], 0
    return Prompts(points, labels)


def packed(prompts: Prompts, slots: int = SLOTS) -> Prompts:
    """The same prompts with the points of each region first, PADDING up to a multiple of `slots`, and boxes.

    A box of zeros is none. What answers prompts sees padding too, so it has to be the same in training and later.
    """
    (n, k), device = prompts.shape, prompts.device
    points, labels = prompts.points, prompts.point_labels
    if points is None or labels is None:
        points = torch.zeros(n, k, 0, 2, device=device)
        labels = torch.zeros(n, k, 0, dtype=torch.long, device=device)
    used = labels != PADDING
    order = (~used).to(torch.int8).argsort(dim=2, stable=True)
    most = int(used.sum(dim=2).max()) if used.numel() else 0
    order = order[..., :most]
    points, labels = points.gather(2, order[..., None].expand(-1, -1, -1, 2)), labels.gather(2, order)
    points = points * (labels != PADDING)[..., None]
    empty = slots * max(1, math.ceil(most / slots)) - most
    return Prompts(
        F.pad(points, (0, 0, 0, empty)),
        F.pad(labels, (0, empty), value=PADDING),
        torch.zeros(n, k, 4, device=device) if prompts.boxes is None else prompts.boxes,
        prompts.masks,
    )


def _centre(masks: Tensor, rng: Generator) -> Prompts:
    return centre_points(masks)


def _uniform(masks: Tensor, rng: Generator) -> Prompts:
    return inside_points(masks, 1, rng)


def _boundary(masks: Tensor, rng: Generator) -> Prompts:
    return inside_points(edge_band(masks), 1, rng)


def _clicks(masks: Tensor, rng: Generator) -> Prompts:
    m = len(masks)
    ring = _near(masks, RING) & ~_near(masks, 1)
    inside, outside = inside_points(masks, 5, rng), inside_points(ring, 5, rng)
    assert inside.points is not None
    assert outside.points is not None
    assert outside.point_labels is not None
    negative = (torch.rand(m, 1, 5, generator=rng) < 0.3) & (outside.point_labels != PADDING)
    negative[..., 0] = False
    count = torch.randint(2, 6, (m, 1, 1), generator=rng)
    labels = torch.where(torch.arange(5) < count, (~negative).long(), PADDING)
    return Prompts(torch.where(negative[..., None], outside.points, inside.points), labels)


def _tight_box(masks: Tensor, rng: Generator) -> Prompts:
    return Prompts(boxes=boxes(masks, 0.0, rng))


def _jittered_box(masks: Tensor, rng: Generator) -> Prompts:
    tight = boxes(masks, 0.0, rng)
    most = 5 + 15 * torch.rand(len(masks), 1, 1, generator=rng)
    off = 0.1 * _sides(tight) * torch.randn(tight.shape, generator=rng)
    return Prompts(boxes=_within(tight + off.clamp(-most, most), masks))


def _loose_box(masks: Tensor, rng: Generator) -> Prompts:
    tight = boxes(masks, 0.0, rng)
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    off = (0.1 + 0.2 * torch.rand(tight.shape, generator=rng)) * _sides(tight) * outwards
    return Prompts(boxes=_within(tight + off, masks))


def _scribble(masks: Tensor, rng: Generator) -> Prompts:
    counts = torch.randint(SHORTEST, LONGEST + 1, (len(masks),), generator=rng).tolist()
    points, labels = torch.zeros(len(masks), 1, LONGEST, 2), torch.full((len(masks), 1, LONGEST), PADDING)
    for row, (mask, count) in enumerate(zip(masks[:, 0].numpy(), counts, strict=True)):
        stroke = _stroke(mask, count)
        points[row, 0, : len(stroke)] = torch.tensor(stroke, dtype=torch.float32)
        labels[row, 0, : len(stroke)] = 1
    return Prompts(points, labels)


def _near_miss(masks: Tensor, rng: Generator) -> Prompts:
    outside = _near(masks, BAND) & ~masks
    return inside_points(torch.where(_any(outside), outside, masks), 1, rng)


BEHAVIOURS = {
    "centre": _centre,
    "uniform": _uniform,
    "boundary": _boundary,
    "clicks": _clicks,
    "tight_box": _tight_box,
    "jittered_box": _jittered_box,
    "loose_box": _loose_box,
    "scribble": _scribble,
    "near_miss": _near_miss,
}
"""Every way to ask: regions (m, 1, h, w), none of them empty, to prompts."""


def edge_band(masks: Bool[Tensor, "n k h w"]) -> Bool[Tensor, "n k h w"]:
    """The part of each mask within BAND pixels of its edge; all of it where it has no edge in the slice."""
    band = masks & _near(~masks, BAND)
    return torch.where(_any(band), band, masks)


def _stroke(mask: NDArray[np.bool_], count: int) -> list[tuple[int, int]]:
    """(x, y) of `count` points along the longest way through a mask: in each part of it, the deepest one.

    Fewer where the mask has fewer pixels.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.nonzero(mask)
    places = np.stack([x, y], axis=1).astype(float)
    centred = places - places.mean(axis=0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    order = np.lexsort((x, y, along))
    parts = np.array_split(order, min(count, len(order)))
    best = [part[depth[y[part], x[part]].argmax()] for part in parts]
    return [(int(x[i]), int(y[i])) for i in best]


def _near(masks: Bool[Tensor, "n k h w"], reach: int) -> Bool[Tensor, "n k h w"]:
    """All pixels at most `reach` rows and columns away from a mask."""
    grown = F.max_pool2d(masks.float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(grown, (1, 2 * reach + 1), stride=1, padding=(0, reach)) > 0


def _sides(box: Float[Tensor, "n k 4"]) -> Float[Tensor, "n k 4"]:
    """Width, height, width, height in pixels."""
    return (box[..., 2:] - box[..., :2] + 1).repeat(1, 1, 2)


def _within(box: Float[Tensor, "n k 4"], masks: Tensor) -> Float[Tensor, "n k 4"]:
    """The box cut off at the slice's edge, its corners in order."""
    h, w = masks.shape[-2:]
    low, high = torch.minimum(box[..., :2], box[..., 2:]), torch.maximum(box[..., :2], box[..., 2:])
    return torch.cat([low, high], dim=-1).clamp_min(0).minimum(torch.tensor([w, h, w, h]) - 1.0)


def _any(masks: Tensor) -> Tensor:
    return masks.flatten(2).any(dim=2)[..., None, None]


def _silence(rows: int, count: int) -> Prompts:
    labels = torch.full((rows, 1, count), PADDING)
    return Prompts(torch.zeros(rows, 1, count, 2), labels, torch.zeros(rows, 1, 4))


def _write(said: Prompts, rows: Tensor, prompts: Prompts) -> None:
    """Lays the prompts of some regions into those of all."""
    full = packed(prompts, LONGEST)
    for name in ("points", "point_labels", "boxes"):
        getattr(said, name)[rows] = getattr(full, name)
