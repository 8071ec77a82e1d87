"""Where the labelled region lies in a slice: ridge regression in closed form on features that know ImageNet.

Each slice is shown to EfficientNet-Lite as a small picture of 16 × 16 cells. A linear function of a cell's features
predicts how much of the cell is labelled. It is computed from sums over the labelled cases, so it takes no training, no
labelled slice is kept, and further cases can be added. Cells with a strong response say where the region is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from handful.backbones.efficientnet import EfficientNetLite, imagenet_encoder
from handful.backbones.framing import PixelPolicy
from handful.data.slice_grid import evenly_spaced
from handful.data.slicing import SliceView
from handful.data.support import LabelledScan, LabelledSlices
from handful.errors import SettingsError
from handful.methods.base import CHUNK
from handful.methods.learned import Learned

SIDE, CELLS = 128, 16
"""Pixels and cells along the square picture of a slice."""
FRAME = PixelPolicy(resize="pad")
SLICES = 64
"""Slices of a scan that are used at most, evenly spaced."""
PENALTY = 1.0
"""Penalty of each weight, for features of unit variance."""
SMALLEST = 1e-6
"""Lower limit of a variance, so that constant features cause no division by 0."""
STRONG = 0.7
"""Response from which a cell counts, relative to the mean response of labelled cells."""

Features = Float[Tensor, "n f cells cells"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances of the features of all cells, and of how much of a cell is labelled, which comes last.

    Each case has the same weight.
    """

    cases: int
    mean: Float[Tensor, " g"]
    covariance: Float[Tensor, "g g"]

    @classmethod
    def of(cls, features: Features, labelled: LabelledSlices, rows: Sequence[int]) -> Moments:
        """Those of one case, from the features of some of its labelled slices; cells that nobody labelled are ignored.

        `rows` are their numbers among the labelled slices.
        """
        known, share = (
            torch.cat([FRAME.into_frame(maps[row][None, None].float(), SIDE, CELLS) for row in rows]).double()
            for maps in (labelled.valid_mask, (labelled.classes > 0) & labelled.valid_mask)
        )
        inside = FRAME.into_frame(torch.ones(1, 1, *labelled.grid.size), SIDE, CELLS).double()
        known = known + 1 - inside  # what lies outside of the slice has no label
        cells = torch.cat([features.double(), share / known.clamp_min(SMALLEST)], dim=1).transpose(0, 1).flatten(1)
        weight = known.flatten() / known.sum().clamp_min(SMALLEST)
        mean = cells @ weight
        centred = cells - mean[:, None]
        return cls(1, mean, (centred * weight) @ centred.T)

    @classmethod
    def joined(cls, parts: Iterable[Moments]) -> Moments:
        """Those of all cases of the parts."""
        parts = list(parts)
        cases = sum(part.cases for part in parts)
        mean = torch.stack([part.mean * part.cases for part in parts]).sum(dim=0) / cases
        covariance = torch.zeros_like(parts[0].covariance)
        for part in parts:
            apart = part.mean - mean
            covariance += (part.covariance + apart[:, None] * apart) * (part.cases / cases)
        return cls(cases, mean, covariance)


@dataclass(frozen=True, eq=False)
class Locator:
    """Finds the cells of slices that look like labelled ones."""

    moments: Moments

    @classmethod
    def of(cls, support: Iterable[LabelledSlices]) -> Locator:
        """The locator of these cases."""
        return cls(Moments.joined(moments_of(labelled) for labelled in support))

    def joined(self, other: Locator) -> Locator:
        """The locator of the cases of both."""
        return Locator(Moments.joined([self.moments, other.moments]))

    @cached_property
    def _solution(self) -> tuple[Tensor, Tensor, float]:
        """Weight of each feature, the constant, and the mean response of labelled cells."""
        # rounded as in a file, so that a model that was saved places crops exactly as before
        covariance, mean = (part.float().double() for part in (self.moments.covariance, self.moments.mean))
        spread = covariance.diagonal()[:-1].clamp_min(SMALLEST).sqrt()
        shared = covariance[:-1, -1] / spread
        within = covariance[:-1, :-1] / (spread[:, None] * spread) + PENALTY * torch.eye(len(spread)).double()
        scaled = torch.linalg.solve(within, shared)
        weights, usual = scaled / spread, mean[-1]
        response = float((scaled @ shared + usual**2) / usual.clamp_min(SMALLEST))
        return weights, usual - weights @ mean[:-1], response

    def mass(self, features: Features) -> Float[Tensor, "cells cells"]:
        """The strong responses of all slices, summed; 0 where there is none."""
        weights, constant, usual = self._solution
        response = torch.einsum("nfrc,f->nrc", features.float(), weights.float()) + float(constant)
        return torch.where(response > STRONG * usual, response, 0).clamp(0, 1).sum(dim=0)

    def __call__(self, stack: SliceView) -> Float[np.ndarray, "h w"]:
        """Strong responses, summed over the slices of a stack, on a grid of at most `2 * SIDE` pixels over a slice."""
        return on_slice(self.mass(features_of_stack(stack)), stack.size)

    def pack(self) -> dict[str, Tensor]:
        """All contents as tensors, by name."""
        mean, covariance = self.moments.mean.float(), self.moments.covariance.float()
        return {"cases": torch.tensor(self.moments.cases), "mean": mean, "covariance": covariance}

    @classmethod
    def unpack(cls, packed: dict[str, Tensor]) -> Locator:
        """The inverse of `pack`. Raises SettingsError for tensors that no locator has."""
        taken = Learned({name: tensor.cpu() for name, tensor in packed.items()}, g=sum(_channels()) + 1)
        cases = int(taken.whole("cases", "", low=1))
        locator = cls(Moments(cases, taken.floats("mean", "g").double(), taken.floats("covariance", "g g").double()))
        try:
            solved = all(torch.as_tensor(part).isfinite().all() for part in locator._solution)
        except RuntimeError:
            solved = False
        if not solved:
            raise SettingsError("the tensors that place the crop have no solution")
        return locator


def moments_of(labelled: LabelledSlices) -> Moments:
    """The moments of one case."""
    rows = evenly_spaced(len(labelled.slices), SLICES)
    return Moments.of(features_of(labelled.slices[rows]), labelled, rows)


def moments_and_features(scan: LabelledScan) -> tuple[Moments, Features]:
    """The moments of one case, and the features of the slices in which its region would be looked for."""
    labelled, shown = scan.labelled(), evenly_spaced(len(scan.view), SLICES)
    rows = evenly_spaced(len(labelled.slices), SLICES)
    features = features_of(labelled.slices[rows])
    same = [labelled.index[row] for row in rows] == shown
    return Moments.of(features, labelled, rows), features if same else features_of(scan.view.take(shown))


def features_of_stack(stack: SliceView) -> Features:
    """Features of at most SLICES slices of a stack."""
    shown = evenly_spaced(len(stack), SLICES)
    starts = range(0, len(shown), CHUNK)
    return torch.cat([features_of(stack.take(shown[start : start + CHUNK])) for start in starts])


@torch.no_grad()
def features_of(slices: Float[Tensor, "n c h w"]) -> Features:
    """Features of each cell at four resolutions of the encoder, in half precision on the CPU."""
    encoder, found = _encoder(), []
    for chunk in torch.split(slices.cpu().float(), CHUNK):
        levels = encoder(FRAME.encoder_input(chunk, SIDE))[1:]
        found.append(torch.cat([_in_cells(maps) for maps in levels], dim=1).half())
    return torch.cat(found)


def on_slice(mass: Float[Tensor, "cells cells"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A map of cells on a grid over a slice of `size`, which has as many pixels, or fewer if it is large."""
    scale = min(1.0, 2 * SIDE / max(size))
    height, width = (max(1, round(scale * length)) for length in size)
    return FRAME.from_frame(mass[None, None], SIDE, (height, width))[0, 0].double().numpy()


def _in_cells(maps: Float[Tensor, "n f h w"]) -> Features:
    merged = F.adaptive_avg_pool2d(maps, CELLS) if maps.shape[-1] > CELLS else maps
    return F.interpolate(merged, (CELLS, CELLS), mode="bilinear", align_corners=False)


@cache
def _encoder() -> EfficientNetLite:
    return imagenet_encoder().eval().requires_grad_(False)


def _channels() -> tuple[int, ...]:
    return _encoder().channels[1:]
