"""The router of a model with several experts: ridge regression in closed form on pooled embeddings of the backbone.

Reconstructed from descriptions of EvoSAM (arXiv 2503.06236). Each expert adds to two sums, A += XᵀX and B += XᵀY, where
the rows of X are pooled embeddings of slices and Y marks the expert. The weights of the router, (A + R)⁻¹ B, are those
of a ridge regression on the slices of all experts at once, so no image and no embedding of an earlier task is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from handful.backbones.base import Backbone
from handful.data.slice_grid import evenly_spaced
from handful.data.slicing import Slicer
from handful.data.volume import Volume
from handful.errors import SettingsError
from handful.methods.base import CHUNK, has_signal
from handful.methods.learned import Learned

SLICES = 16
"""Slices of a scan that are compared at most, evenly spaced."""
RIDGE = 0.1
"""Penalty of each feature's weight, relative to the variance of the feature."""
SMALLEST = 1e-9
"""Lower limit of a variance in the penalty, so that constant features cause no division by 0."""


@dataclass(frozen=True, eq=False)
class Router:
    """Sums over the slices of all experts; the slices of each expert have the same weight together.

    Each row x of X has the f features of a slice and a 1.
    """

    names: tuple[str, ...]
    """Names of the e experts, in the order in which they were added."""
    moments: Float[Tensor, "f f"]
    """Sum over the experts of the mean of x xᵀ."""
    means: Float[Tensor, "f e"]
    """Mean of x of each expert."""

    @classmethod
    def of(cls, name: str, features: Float[Tensor, "n f"]) -> Router:
        """The router of a single expert, from `features` of the slices of all its scans."""
        rows = _with_one(features)
        return cls((name,), rows.T @ rows / len(rows), rows.mean(dim=0)[:, None])

    @classmethod
    def unpack(cls, names: tuple[str, ...], learned: Mapping[str, Tensor]) -> Router:
        """The router in tensors of a file. Raises SettingsError if they do not fit together."""
        tensors = Learned(learned, e=len(names))
        moments = tensors.floats("moments", "f f", single=False)
        return cls(names, moments.double(), tensors.floats("means", "f e", single=False).double())

    def pack(self) -> dict[str, Tensor]:
        """The sums as tensors by name."""
        return {"moments": self.moments, "means": self.means}

    def joined(self, other: Router) -> Router:
        """The router of the experts of both. Raises SettingsError for experts of the same name, or other features."""
        if double := sorted(set(self.names) & set(other.names)):
            raise SettingsError(f"there is already an expert {double[0]!r}; name the new one otherwise with --expert")
        if len(self.moments) != len(other.moments):
            raise SettingsError(
                f"sums of {len(self.moments)} and of {len(other.moments)} features; use the same backbone for all"
            )
        means = torch.cat([self.means, other.means], dim=1)
        return Router((*self.names, *other.names), self.moments + other.moments, means)

    def require_channels(self, channels: int) -> None:
        """Raise SettingsError unless the sums are of embeddings with so many channels and have a solution."""
        if len(self.moments) != 2 * channels + 1 or not self.weights.isfinite().all():
            raise SettingsError(f"the sums of the router do not fit a backbone with {channels} channels")

    @cached_property
    def weights(self) -> Float[Tensor, "f e"]:
        """The weights of the ridge regression; those of the constant 1 are hardly penalised."""
        variances = self.moments.diagonal() / len(self.names) - self.means.mean(dim=1) ** 2
        penalty = len(self.names) * RIDGE * variances.clamp_min(SMALLEST)
        weights: Tensor = torch.linalg.solve(self.moments + penalty.diag(), self.means)
        return weights

    def scores(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n e"]:
        """The score of each expert for each slice; those of one slice sum to about 1."""
        return _with_one(features) @ self.weights

    def scores_of(self, volume: Volume, backbone: Backbone) -> dict[str, float]:
        """The mean score of each expert over slices of a scan."""
        means = self.scores(features_of_volume(volume, backbone)).mean(dim=0)
        return dict(zip(self.names, means.tolist(), strict=True))


@torch.no_grad()
def features_of_slices(slices: Float[Tensor, "n c h w"], backbone: Backbone) -> Float[Tensor, "n f"]:
    """Mean and standard deviation of each channel of the embeddings, in double precision on the CPU."""
    embeddings = backbone.encode(slices.to(backbone.device)).main.flatten(2).cpu().double()
    return torch.cat([embeddings.mean(dim=2), embeddings.std(dim=2, correction=0)], dim=1)


def features_of_volume(volume: Volume, backbone: Backbone) -> Float[Tensor, "n f"]:
    """Features of up to SLICES slices of a scan, in the plane and the window that suit the scan itself.

    Constant slices are left out, unless all are constant.
    """
    stack = Slicer().view(volume)
    slices = stack.take(evenly_spaced(len(stack), SLICES))
    if bool(has_signal(slices).any()):
        slices = slices[has_signal(slices)]
    return torch.cat([features_of_slices(chunk, backbone) for chunk in torch.split(slices, CHUNK)])


def _with_one(features: Float[Tensor, "n f"]) -> Float[Tensor, "n g"]:
    features = features.double()
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
