"""The auxiliary network, which reads a crop of the slice and the backbone's mask, and the loss that trains it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn

from handful.tuning.seeds import seeded

CERTAIN = 8.0
"""Logits of the backbone are clipped to this magnitude, so that the network can change its mask."""
PART = 0.25
"""Part of the backbone's clipped logits that the network's output is added to."""
SURROUNDINGS = 31
"""Side in pixels of the square that tells a boundary from the inside, as in F³Net's loss for larger images."""


class AuxiliaryNet(nn.Module):
    """A small U-Net whose output corrects the backbone's logits; before any training it changes nothing."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.net = BasicUNet(
                spatial_dims=2,
                in_channels=4,
                out_channels=1,
                features=(channels, channels, 2 * channels, 4 * channels, 8 * channels, channels),
                norm=("group", {"num_groups": 4}),
            )
        nn.init.zeros_(self.net.final_conv.weight)
        nn.init.zeros_(self.net.final_conv.bias)

    def forward(self, pixels: Float[Tensor, "n 3 s s"], backbone: Float[Tensor, "n s s"]) -> Float[Tensor, "n s s"]:
        """What is to be added to the backbone's logits; `pixels` are in [0, 1]."""
        mask = backbone.clamp(-CERTAIN, CERTAIN)[:, None] / CERTAIN
        added: Tensor = self.net(torch.cat([4 * pixels - 2, mask], dim=1))
        return added[:, 0]


def corrected_logits(backbone: Float[Tensor, "*s"], added: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The auxiliary logits: part of the backbone's, and what the network adds."""
    return PART * backbone.clamp(-CERTAIN, CERTAIN) + added


def structure_loss(logits: Float[Tensor, "n s s"], masks: Bool[Tensor, "n s s"]) -> Float[Tensor, ""]:
    """Binary cross entropy and soft IoU loss, in which pixels near a boundary weigh up to six times as much.

    After Wei, Wang and Huang, F³Net (AAAI 2020).
    """
    target = masks.float()
    nearby = F.avg_pool2d(target[:, None], SURROUNDINGS, stride=1, padding=SURROUNDINGS // 2)[:, 0]
    weight = 1 + 5 * (nearby - target).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (weight * entropy).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))
    inside = logits.sigmoid()
    shared = (weight * inside * target).sum(dim=(1, 2))
    either = (weight * (inside + target)).sum(dim=(1, 2)) - shared
    return (entropy + 1 - (shared + 1) / (either + 1)).mean()
