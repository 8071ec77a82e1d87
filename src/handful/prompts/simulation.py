"""A simulated annotator, who corrects the largest error of a mask by a click, again and again.

Used to train on corrections and to measure how many clicks an organ takes. The positions of the clicks, and the
weighting of errors by a predicted error map, are our reconstruction of Wang, Liao, Jiang and Geng (ISBI 2025, DOI
10.1109/ISBI60581.2025.10981084), of which only the abstract is public.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from handful.errors import SettingsError
from handful.prompts.heuristics import append_points, centre_points, random_pixels
from handful.prompts.prompt_mix import edge_band, packed
from handful.prompts.prompts import PADDING, Prompts


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Relative frequencies of the positions of correction clicks in the largest error; they need not sum to 1."""

    careful: float = 0.4
    """Frequency of clicks in the middle of the error (the pixel farthest from its edge)."""
    quick: float = 0.4
    """Frequency of clicks at a random position in the error."""
    sloppy: float = 0.2
    """Frequency of clicks near the edge of the error."""

    def __post_init__(self) -> None:
        shares = (self.careful, self.quick, self.sloppy)
        if min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise SettingsError(f"frequencies of an annotator must be 0 or more, and one above 0; got {shares}")


CAREFUL = Annotator(careful=1.0, quick=0.0, sloppy=0.0)
"""Always clicks in the middle of the largest error."""


@dataclass(frozen=True, eq=False)
class Rounds:
    """The result of a simulated annotator after each of r rounds."""

    dice: Float[Tensor, "n k r"]
    """After the first prompts and after each correction; nan if the slice does not contain the label."""
    prompts: Prompts
    """All prompts together."""
    logits: Float[Tensor, "n k h w"]
    """Logits of the last masks."""


def simulate(
    segment: Callable[[Prompts], Float[Tensor, "n k h w"]],
    truth: Bool[Tensor, "n k h w"],
    first: Prompts,
    annotator: Annotator,
    corrections: int,
    rng: Generator,
) -> Rounds:
    """Prompt with `first`, then correct `corrections` times, each time with the previous mask as a mask prompt.

    `segment` gives logits at slice size for prompts in slice pixels.
    """
    prompts = packed(first)
    logits = segment(prompts)
    scores = [hard_dice(logits > 0, truth)]
    for _ in range(corrections):
        prompts = packed(append_points(prompts, correct(logits > 0, truth, annotator, rng)))
        logits = segment(dataclasses.replace(prompts, masks=logits))
        scores.append(hard_dice(logits > 0, truth))
    return Rounds(torch.stack(scores, dim=2), prompts, logits)


def correct(
    predicted: Bool[Tensor, "n k h w"],
    truth: Bool[Tensor, "n k h w"],
    annotator: Annotator,
    rng: Generator,
    error: Float[Tensor, "n k h w"] | None = None,
) -> Prompts:
    """One click per label in its `largest_error`: positive if it was missed, negative if it is a false positive.

    PADDING if there is no error. With an `error` map, random positions are more likely where the map is large.
    """
    region, sign = largest_error(predicted, truth, error)
    n, k = sign.shape
    shares = torch.tensor([annotator.careful, annotator.quick, annotator.sloppy], dtype=torch.float32)
    kinds = torch.multinomial(shares, n * k, replacement=True, generator=rng)
    regions, wrong = region.flatten(0, 1)[:, None], sign.flatten() != PADDING
    weight = (region if error is None else region * (error + 1e-6)).flatten(0, 1)[:, None].float()
    xy = torch.zeros(n * k, 2)
    careful, quick, sloppy = (torch.nonzero(wrong & (kinds == kind))[:, 0] for kind in range(3))
    deepest = centre_points(regions[careful]).points
    assert deepest is not None
    xy[careful] = deepest[:, 0, 0]
    xy[quick] = _random_pixels(weight[quick], rng)
    xy[sloppy] = _random_pixels(weight[sloppy] * edge_band(regions[sloppy]), rng)
    return Prompts(xy.reshape(n, k, 1, 2), sign[..., None])


def largest_error(
    predicted: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"], error: Float[Tensor, "n k h w"] | None = None
) -> tuple[Bool[Tensor, "n k h w"], Int[Tensor, "n k"]]:
    """The largest connected error of each label, and its kind: missed (1), false positive (0), or PADDING for none.

    The size is the area, or the sum of the `error` map over the region.
    """
    regions = np.zeros(truth.shape, dtype=bool)
    signs = np.full(truth.shape[:2], PADDING, dtype=np.int64)
    wrong = (predicted ^ truth).cpu().numpy()
    missed = truth.cpu().numpy()
    weight = None if error is None else error.detach().cpu().numpy()
    for place in zip(*np.nonzero(wrong.any(axis=(2, 3))), strict=True):
        rows, columns = _extent(wrong[place])
        part = (*place, rows, columns)
        importance = None if weight is None else weight[part]
        regions[part], signs[place] = _largest(wrong[part], missed[part], importance)
    return torch.from_numpy(regions).to(truth.device), torch.from_numpy(signs).to(truth.device)


def hard_dice(predicted: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"]) -> Float[Tensor, "n k"]:
    """Dice of each label; nan if the reference is empty."""
    shared = (predicted & truth).sum(dim=(2, 3)).float()
    total = (predicted.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).float()
    return torch.where(truth.flatten(2).any(dim=2), 2 * shared / total.clamp_min(1), torch.nan)


def clicks_to_reach(dice: Float[Tensor, "*n r"], level: float) -> Int[Tensor, "*n"]:
    """NoC: the first of the r rounds, counted from 1, with a Dice of at least `level`; r if there is none."""
    reached = dice >= level
    return torch.where(reached.any(dim=-1), reached.int().argmax(dim=-1) + 1, dice.shape[-1])


def _random_pixels(weight: Float[Tensor, "m 1 h w"], rng: Generator) -> Float[Tensor, "m 2"]:
    """(x, y) of one random pixel per map, with probabilities proportional to the weights."""
    if not len(weight):
        return torch.zeros(0, 2)
    index = random_pixels(weight.flatten(1), 1, rng)[:, 0]
    width = weight.shape[-1]
    return torch.stack([index % width, index // width], dim=-1).float()


def _largest(
    wrong: NDArray[np.bool_], truth: NDArray[np.bool_], importance: NDArray[np.floating] | None
) -> tuple[NDArray[np.bool_], int]:
    """The largest connected error and its kind: missed (1, also if both are equal) or false positive (0)."""
    candidates = []
    for sign, region in ((1, wrong & truth), (0, wrong & ~truth)):
        parts, count = ndimage.label(region)
        if count:
            weights = None if importance is None else importance.ravel() + 1e-6
            sizes = np.bincount(parts.ravel(), weights)
            sizes[0] = 0
            largest = int(sizes.argmax())
            candidates.append((float(sizes[largest]), sign, parts == largest))
    _, sign, region = max(candidates, key=lambda candidate: candidate[:2])
    return region, sign


def _extent(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
