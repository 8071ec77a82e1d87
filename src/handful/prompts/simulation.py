"""The simulated annotator: looks at an answer, corrects its largest error by a click, and looks again.

For training on corrections and for measuring how many clicks an organ takes. How an annotator clicks, and that errors
may be weighted by a map of where a model errs, is our reconstruction of Wang, Liao, Jiang and Geng (ISBI 2025, DOI
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
from handful.prompts.heuristics import append_points, centre_points
from handful.prompts.prompt_mix import edge_band, packed
from handful.prompts.prompts import PADDING, Prompts


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Where in the largest error a correction is clicked, by shares; they need not sum to one."""

    careful: float = 0.4
    """In its deepest point."""
    quick: float = 0.4
    """Anywhere in it."""
    sloppy: float = 0.2
    """Near its edge."""

    def __post_init__(self) -> None:
        shares = (self.careful, self.quick, self.sloppy)
        if min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise SettingsError(f"shares of an annotator must be 0 or more, and one above 0; got {shares}")


CAREFUL = Annotator(careful=1.0, quick=0.0, sloppy=0.0)
"""Always corrects the largest error in its deepest point."""


@dataclass(frozen=True, eq=False)
class Rounds:
    """What a simulated annotator came to, round by round."""

    dice: Float[Tensor, "n k r"]
    """After the first prompts and after each correction; nan where the slice does not hold the label."""
    prompts: Prompts
    """All that was said."""
    logits: Float[Tensor, "n k h w"]
    """The last answer."""


def simulate(
    ask: Callable[[Prompts], Float[Tensor, "n k h w"]],
    truth: Bool[Tensor, "n k h w"],
    first: Prompts,
    annotator: Annotator,
    corrections: int,
    rng: Generator,
) -> Rounds:
    """Asks with `first`, then corrects so many times, each time with the answer so far as mask prompt.

    `ask` gives logits at slice size for prompts in slice pixels.
    """
    prompts = packed(first)
    logits = ask(prompts)
    scores = [hard_dice(logits > 0, truth)]
    for _ in range(corrections):
        prompts = packed(append_points(prompts, correct(logits > 0, truth, annotator, rng)))
        logits = ask(dataclasses.replace(prompts, masks=logits))
        scores.append(hard_dice(logits > 0, truth))
    return Rounds(torch.stack(scores, dim=2), prompts, logits)


def correct(
    shown: Bool[Tensor, "n k h w"],
    truth: Bool[Tensor, "n k h w"],
    annotator: Annotator,
    rng: Generator,
    error: Float[Tensor, "n k h w"] | None = None,
) -> Prompts:
    """A point a label in its `largest_error`: positive where it was missed, negative where it was a false positive.

    PADDING where nothing is wrong. With an `error` map, who clicks anywhere clicks where it is large.
    """
    region, sign = largest_error(shown, truth, error)
    n, k = sign.shape
    shares = torch.tensor([annotator.careful, annotator.quick, annotator.sloppy], dtype=torch.float32)
    how = torch.multinomial(shares, n * k, replacement=True, generator=rng)
    regions, wrong = region.flatten(0, 1)[:, None], sign.flatten() != PADDING
    weight = (region if error is None else region * (error + 1e-6)).flatten(0, 1)[:, None].float()
    xy = torch.zeros(n * k, 2)
    careful, quick, sloppy = (torch.nonzero(wrong & (how == way))[:, 0] for way in range(3))
    deepest = centre_points(regions[careful]).points
    assert deepest is not None
    xy[careful] = deepest[:, 0, 0]
    xy[quick] = _drawn(weight[quick], rng)
    xy[sloppy] = _drawn(weight[sloppy] * edge_band(regions[sloppy]), rng)
    return Prompts(xy.reshape(n, k, 1, 2), sign[..., None])


def largest_error(
    shown: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"], error: Float[Tensor, "n k h w"] | None = None
) -> tuple[Bool[Tensor, "n k h w"], Int[Tensor, "n k"]]:
    """The largest connected region that was missed (1) or false positive (0), and which; none and PADDING without
    errors.

    Large is by area, or by the sum of an `error` map over it.
    """
    regions = np.zeros(truth.shape, dtype=bool)
    signs = np.full(truth.shape[:2], PADDING, dtype=np.int64)
    wrong = (shown ^ truth).cpu().numpy()
    missed = truth.cpu().numpy()
    weight = None if error is None else error.detach().cpu().numpy()
    for place in zip(*np.nonzero(wrong.any(axis=(2, 3))), strict=True):
        rows, columns = _extent(wrong[place])
        part = (*place, rows, columns)
        importance = None if weight is None else weight[part]
        regions[part], signs[place] = _largest(wrong[part], missed[part], importance)
    return torch.from_numpy(regions).to(truth.device), torch.from_numpy(signs).to(truth.device)


def hard_dice(shown: Bool[Tensor, "n k h w"], truth: Bool[Tensor, "n k h w"]) -> Float[Tensor, "n k"]:
    """Dice of each label; nan where the truth is empty."""
    shared = (shown & truth).sum(dim=(2, 3)).float()
    total = (shown.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).float()
    return torch.where(truth.flatten(2).any(dim=2), 2 * shared / total.clamp_min(1), torch.nan)


def clicks_to_reach(dice: Float[Tensor, "*n r"], level: float) -> Int[Tensor, "*n"]:
    """NoC: the first round, counted from 1, whose Dice is at least `level`; r, the most there were, where none is."""
    reached = dice >= level
    return torch.where(reached.any(dim=-1), reached.int().argmax(dim=-1) + 1, dice.shape[-1])


def _drawn(weight: Float[Tensor, "m 1 h w"], rng: Generator) -> Float[Tensor, "m 2"]:
    """(x, y) of one pixel a map, drawn by weight."""
    if not len(weight):
        return torch.zeros(0, 2)
    index = torch.multinomial(weight.flatten(1), 1, generator=rng)[:, 0]
    width = weight.shape[-1]
    return torch.stack([index % width, index // width], dim=-1).float()


def _largest(
    wrong: NDArray[np.bool_], truth: NDArray[np.bool_], importance: NDArray[np.floating] | None
) -> tuple[NDArray[np.bool_], int]:
    """The largest connected part of what was missed or a false positive, and which of the two it is; a tie is
    missed."""
    found = []
    for sign, region in ((1, wrong & truth), (0, wrong & ~truth)):
        parts, count = ndimage.label(region)
        if count:
            weights = None if importance is None else importance.ravel() + 1e-6
            sizes = np.bincount(parts.ravel(), weights)
            sizes[0] = 0
            largest = int(sizes.argmax())
            found.append((float(sizes[largest]), sign, parts == largest))
    _, sign, region = max(found, key=lambda one: one[:2])
    return region, sign


def _extent(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
