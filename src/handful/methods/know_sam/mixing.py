"""Mixing of labelled and unlabelled slices: where one is predicted with the most certainty, it shows the other.

After Huang et al., "Learnable prompting SAM-induced knowledge distillation for semi-supervised medical image
segmentation" (arXiv 2412.13742).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

PATCHES = 4
"""Patches along each edge of a slice."""
REPLACED = 5
"""Patches of a slice that are replaced."""


def most_certain(entropies: Float[Tensor, "n s s"]) -> Bool[Tensor, "n s s"]:
    """The patches of each slice with the lowest mean entropy."""
    of_patches = F.adaptive_avg_pool2d(entropies[:, None], PATCHES).flatten(1)
    chosen = torch.zeros_like(of_patches)
    chosen.scatter_(1, of_patches.topk(REPLACED, dim=1, largest=False).indices, 1.0)
    patches = chosen.view(-1, 1, PATCHES, PATCHES)
    return F.interpolate(patches, size=entropies.shape[-2:], mode="nearest")[:, 0] > 0.5


def exchanged(
    labelled: Tensor, unlabelled: Tensor, of_labelled: Bool[Tensor, "n s s"], of_unlabelled: Bool[Tensor, "n s s"]
) -> tuple[Tensor, Tensor]:
    """Both (n, s, s) or (n, c, s, s), with the chosen pixels of each replaced by those of the other."""
    extra = (slice(None),) + (None,) * (labelled.ndim - of_labelled.ndim)
    return (
        torch.where(of_labelled[extra], unlabelled, labelled),
        torch.where(of_unlabelled[extra], labelled, unlabelled),
    )
