"""A start for handful-small: the mask decoder, the prompts and the memory that handful-tiny has learned.

Both models have the same head; handful-small's masks are twice as fine. Its head starts with handful-tiny's weights,
and its encoder is first trained to give features like handful-tiny's, so that the head can use them from the beginning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor
from transformers import Sam2VideoModel

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import SettingsError

TWICE = ("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias", "conv1.bias", "conv2.bias")
"""Parameters of the layers that read a mask prompt, which handful-small has twice."""
APART = 0.02
"""Random share by which the two copies of a channel differ at first; equal ones would learn the same for ever."""


@torch.no_grad()
def take_head(model: Sam2VideoModel, tiny: Backbone, rng: Generator) -> None:
    """Write handful-tiny's mask decoder, prompt encoder and memory into a new handful-small.

    With equal features, masks are nearly those of handful-tiny, each cell four times. The convolutions between the
    encoder and the decoder keep their own weights, as their inputs are others.

    Raises SettingsError where the models have other widths.
    """
    assert isinstance(tiny, Sam2VideoBackbone)
    found, own = tiny.model.state_dict(), model.state_dict()
    for name, target in own.items():
        if name.startswith(("vision_encoder.", "mask_decoder.conv_s")):
            continue
        source = found.get(name, target)
        fitted = _fitted(name, source)
        if fitted.shape != target.shape:
            raise SettingsError(f"handful-tiny's {name} has the shape {tuple(source.shape)}, not {tuple(target.shape)}")
        if fitted.shape != source.shape and fitted.numel() > 1:
            fitted = fitted * (1 + APART * torch.randn(fitted.shape, generator=rng))
        target.copy_(fitted)


def _fitted(name: str, weight: Tensor) -> Tensor:
    """Return a weight of handful-tiny as handful-small has it, for masks of twice as many cells per side."""
    part = name.rpartition("mask_embed.")[2]
    if part != name:
        if part in TWICE:
            return torch.cat([weight, weight])
        if part == "conv1.weight":
            return torch.cat([_each_twice(weight), _each_twice(weight)]) / 4
        if part == "conv2.weight":
            return torch.cat([torch.cat([weight, weight], dim=1)] * 2) / 2
        if part == "conv3.weight":
            return torch.cat([weight, weight], dim=1) / 2
    if name == "mask_decoder.upscale_conv2.weight":
        return _each_twice(weight)
    if name == "mask_downsample.weight":
        return F.avg_pool2d(weight, 2) * 4
    return weight


def _each_twice(kernel: Tensor) -> Tensor:
    return kernel.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def unlike(image: ImageEmbeddings, wanted: ImageEmbeddings) -> Float[Tensor, ""]:
    """Return the mean squared difference of features at all levels, relative to the variance of the wanted ones."""
    parts = []
    for own, other in zip(image.features, wanted.features, strict=True):
        other = F.interpolate(other.float(), size=own.shape[-2:], mode="bilinear", align_corners=False)
        parts.append(F.mse_loss(own.float(), other) / other.var())
    return torch.stack(parts).mean()
