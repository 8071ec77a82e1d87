"""AutoSAM with a U-Net as its head, not from the paper: it uses all levels of the embeddings, and the slices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import has_finer_levels
from handful.errors import SettingsError
from handful.methods.auto_sam.heads import Head, UNetHead
from handful.methods.auto_sam.training import HeadTraining
from handful.methods.encoded_support import noisy

RATE, STEPS = 2e-3, 1500
"""Peak learning rate and training steps: the head starts from random weights on any backbone."""


@dataclass(frozen=True, kw_only=True)
class AutoSamUNet(HeadTraining):
    """Trains a U-Net on the embeddings of the frozen encoder, and on the slices where these are finer."""

    when = "2 to 10 labelled cases; each image is segmented in one pass"
    minutes = "3 to 18 min"

    feature_dropout: float = 0.5
    """Fraction of the embedding channels that are dropped in each training step, if slices are an input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.feature_dropout < 1:
            raise SettingsError(f"feature_dropout must be a fraction from 0 to below 1, got {self.feature_dropout}")

    def resolved(self, backbone: Backbone) -> AutoSamUNet:
        return dataclasses.replace(self, train=self.train.filled(STEPS, RATE))

    def random_head(self, backbone: Backbone, classes: int, with_slices: bool) -> Head:
        finer = has_finer_levels(backbone.mask_decoder)
        cells, enlarging = backbone.feature_side, backbone.mask_side // backbone.feature_side
        return UNetHead(backbone.channels, classes, cells, finer, enlarging=enlarging, with_slices=with_slices)

    def needs_slices(self, edge: int, backbone: Backbone) -> bool:
        """Whether slices with this longest edge are finer than the finest level of the embeddings."""
        return edge > (backbone.mask_side if has_finer_levels(backbone.mask_decoder) else backbone.feature_side)

    def perturbed(self, image: ImageEmbeddings, head: Head, generator: torch.Generator) -> ImageEmbeddings:
        image = noisy(image, self.feature_noise, generator)
        return _with_fewer_channels(image, self.feature_dropout, generator) if head.pixels else image


def _with_fewer_channels(image: ImageEmbeddings, share: float, generator: torch.Generator) -> ImageEmbeddings:
    """The embeddings with a random fraction of the channels of each slice set to 0; the slices themselves are kept."""
    slices, *levels = image.features
    masks = [(torch.rand(*level.shape[:2], 1, 1, generator=generator) >= share).to(level) for level in levels]
    return dataclasses.replace(
        image, features=(slices, *[level * mask for level, mask in zip(levels, masks, strict=True)])
    )
