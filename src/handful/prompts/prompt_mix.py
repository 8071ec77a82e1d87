"""Realistic first prompts, simulated from masks; each region gets a random kind of prompt.

After "parallel heuristic prompt generation" of Wang, Liao, Jiang and Geng (ISBI 2025, DOI
10.1109/ISBI60581.2025.10981084): prompts in training should be as diverse as those of real users. Only the abstract is
public; the kinds of prompts and their frequencies are our reconstruction.
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
"""The number of points is padded to a multiple of this, in training and in use."""
BAND = 3
"""Maximum distance in pixels from the edge of a click at the boundary, or just outside."""
RING = 10
"""Maximum distance in pixels from a region of a negative click."""
SHORTEST, LONGEST = 5, 8
"""Minimum and maximum number of points of a scribble."""


@dataclass(frozen=True, kw_only=True)
class PromptMix:
    """Relative frequencies of the kinds of first prompts; they need not sum to 1."""

    centre: float = 0.2
    """Frequency of a click in the middle."""
    uniform: float = 0.15
    """Frequency of a click at a random position inside."""
    boundary: float = 0.1
    """Frequency of a click inside, near the edge."""
    clicks: float = 0.1
    """Frequency of two to five clicks, inside and just outside; the first is inside."""
    tight_box: float = 0.1
    """Frequency of a box that touches the region on all sides."""
    jittered_box: float = 0.15
    """Frequency of a box with random errors of its sides (standard deviation 10 %, at most 5 to 20 pixels)."""
    loose_box: float = 0.1
    """Frequency of a box that is 10 % to 30 % too large on each side."""
    scribble: float = 0.05
    """Frequency of a scribble along the region."""
    near_miss: float = 0.05
    """Frequency of a positive click just outside of the region."""
    confusion: float = 0.3
    """Probability of an additional negative click on the neighbouring region that is most easily confused."""

    def __post_init__(self) -> None:
        if min(self.shares()) < 0 or not 0 < sum(self.shares()) < math.inf:
            raise SettingsError(f"frequencies of prompt_mix must be 0 or more, and one above 0; got {self.shares()}")
        if not 0 <= self.confusion <= 1:
            raise SettingsError(f"confusion must be a probability in [0, 1], got {self.confusion}")

    def shares(self) -> tuple[float, ...]:
        """The frequencies, in the order of `BEHAVIOURS`."""
        return tuple(getattr(self, name) for name in BEHAVIOURS)

    @classmethod
    def only(cls, behaviour: str) -> PromptMix:
        """Prompts of one kind only. Raises SettingsError if it is not one of BEHAVIOURS."""
        if behaviour not in BEHAVIOURS:
            raise SettingsError(f"there is no kind of prompt {behaviour!r}; kinds are {', '.join(BEHAVIOURS)}")
        return cls(**{name: float(name == behaviour) for name in BEHAVIOURS}, confusion=0.0)


def simulate_prompts(masks: Bool[Tensor, "n k h w"], prompt_mix: PromptMix, rng: Generator) -> Prompts:
    """First prompts for n slices × k regions; the kind of each is random and independent of the others.

    Points are `packed`. A region without a box has a box of zeros; an absent region has no prompt.
    """
    n, k = masks.shape[:2]
    regions = masks.flatten(0, 1)[:, None]
    shares = torch.tensor(prompt_mix.shares(), dtype=torch.float32)
    kinds = torch.multinomial(shares, n * k, replacement=True, generator=rng)
    rows_of_prompts = _no_prompts(n * k, LONGEST)
    for number, behaviour in enumerate(BEHAVIOURS.values()):
        rows = torch.nonzero((kinds == number) & regions.flatten(1).any(dim=1))[:, 0]
        if len(rows):
            _write(rows_of_prompts, rows, behaviour(regions[rows], rng))
    prompts = rows_of_prompts.reshaped(n, k)
    if prompt_mix.confusion:
        prompts = append_points(prompts, confusion_negatives(masks, None, prompt_mix.confusion, rng))
    return packed(prompts)


def confusion_negatives(
    masks: Bool[Tensor, "n k h w"], predicted: Bool[Tensor, "n k h w"] | None, chance: float, rng: Generator
) -> Prompts:
    """With this probability, a negative point for each region, on the other region it is most easily confused with.

    If there is a prediction, that is the region which it overlaps most, and the point is in the overlap. Otherwise, it
    is the region with most pixels within RING pixels. PADDING without such a point.
    """
    n, k = masks.shape[:2]
    reached = _near(masks, RING) if predicted is None else predicted
    overlap = torch.einsum("nkp,njp->nkj", (reached & ~masks).flatten(2).float(), masks.flatten(2).float())
    most, neighbour = (overlap * ~torch.eye(k, dtype=torch.bool)).max(dim=2)
    chosen = torch.nonzero((most > 0) & (torch.rand(n, k, generator=rng) < chance))
    points, labels = torch.zeros(n, k, 1, 2), torch.full((n, k, 1), PADDING)
    if len(chosen):
        row, label = chosen.unbind(1)
        region = masks[row, neighbour[row, label]] & ~masks[row, label]
        if predicted is not None:
            region = region & predicted[row, label]
        inside = inside_points(region[:, None], 1, rng).points
        assert inside is not None
        points[row, label], labels[row, label] = inside[:, 0], 0
    return Prompts(points, labels)


def packed(prompts: Prompts, slots: int = SLOTS) -> Prompts:
    """The same prompts with points first, PADDING up to a multiple of `slots`, and boxes (zeros for none).

    Padding changes predictions slightly, so it must be the same in training and in use.
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
"""Functions that give each kind of prompt for regions (m, 1, h, w), none of which is empty."""


def edge_band(masks: Bool[Tensor, "n k h w"]) -> Bool[Tensor, "n k h w"]:
    """The part of each mask within BAND pixels of its edge; the whole mask if it has no edge in the slice."""
    band = masks & _near(~masks, BAND)
    return torch.where(_any(band), band, masks)


def _stroke(mask: NDArray[np.bool_], count: int) -> list[tuple[int, int]]:
    """(x, y) of `count` points along the main axis of a mask, each as far from the edge as possible.

    Fewer if the mask has fewer pixels.
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
    """All pixels within `reach` rows and columns of a mask."""
    grown = F.max_pool2d(masks.float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(grown, (1, 2 * reach + 1), stride=1, padding=(0, reach)) > 0


def _sides(box: Float[Tensor, "n k 4"]) -> Float[Tensor, "n k 4"]:
    """Width, height, width and height in pixels."""
    return (box[..., 2:] - box[..., :2] + 1).repeat(1, 1, 2)


def _within(box: Float[Tensor, "n k 4"], masks: Tensor) -> Float[Tensor, "n k 4"]:
    """The box clipped to the slice, with its corners in order."""
    h, w = masks.shape[-2:]
    low, high = torch.minimum(box[..., :2], box[..., 2:]), torch.maximum(box[..., :2], box[..., 2:])
    return torch.cat([low, high], dim=-1).clamp_min(0).minimum(torch.tensor([w, h, w, h]) - 1.0)


def _any(masks: Tensor) -> Tensor:
    return masks.flatten(2).any(dim=2)[..., None, None]


def _no_prompts(rows: int, count: int) -> Prompts:
    labels = torch.full((rows, 1, count), PADDING)
    return Prompts(torch.zeros(rows, 1, count, 2), labels, torch.zeros(rows, 1, 4))


def _write(target: Prompts, rows: Tensor, prompts: Prompts) -> None:
    """Write the prompts of some regions into the rows of all."""
    full = packed(prompts, LONGEST)
    for name in ("points", "point_labels", "boxes"):
        getattr(target, name)[rows] = getattr(full, name)
