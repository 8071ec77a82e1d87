"""AutoSAM's heads: maps of all classes from image embeddings, by a mask decoder, a CNN, a U-Net, or upscaling alone."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import decode_with_tokens, no_mask, score_tokens

PUBLISHED_MASK_TOKENS = 2
COARSEST = 4
"""Cells along the coarsest level of the head 'unet', at least."""


class Head(nn.Module, ABC):
    """Maps of all classes from image embeddings; holds no part of the encoder."""

    pixels: int = 0
    """Side of the square in which it wants the slice itself before the embeddings, and answers; 0 where it does not."""

    @abstractmethod
    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        """Logits of k classes in the model's square, the background first."""

    def fixed_state(self) -> dict[str, Tensor]:
        """What never trains, yet decides the answer: drawn at random, or by the support."""
        return {}


class _DecoderHead(Head):
    """Copies of the backbone's mask decoder, all of which train: transformer, upscaling and the first hypernetworks."""

    mark: Tensor
    """Added to the image at every place (1, c, 1, 1)."""
    position: Tensor
    """The image's position code (1, c, f, f)."""

    def __init__(self, backbone: Backbone, painters: int) -> None:
        super().__init__()
        decoder: Any = backbone.fork().mask_decoder
        self.transformer = decoder.transformer
        self.upscale_conv1, self.upscale_conv2 = decoder.upscale_conv1, decoder.upscale_conv2
        self.upscale_layer_norm, self.activation = decoder.upscale_layer_norm, decoder.activation
        self.painters = decoder.output_hypernetworks_mlps[:painters]
        self.requires_grad_(True)

    @abstractmethod
    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        """Sets of tokens, each of which meets the image by itself, and which tokens of a set paint a class."""

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        tokens, painting = self.tokens()
        asked = tokens.expand(len(image), -1, -1, -1)
        answers, fine = decode_with_tokens(self, image.main + self.mark, self.position, asked, image.features[:-1])
        masks = torch.einsum("nsmd,nsdhw->nsmhw", self.painters[0](answers[:, :, painting]), fine)
        return rearrange(masks, "n s m h w -> n (s m) h w")


class VitHead(_DecoderHead):
    """SAM's mask decoder without prompts: a learned token a class beside the IoU token, which stays SAM's own.

    The class tokens start round SAM's token for a single mask; position code and 'no mask' embedding are SAM's.
    """

    def __init__(
        self, backbone: Backbone, classes: int, *, shared_pass: bool = True, token_init_std: float = 0.5
    ) -> None:
        super().__init__(backbone, painters=1)
        self.shared_pass = shared_pass
        decoder: Any = backbone.mask_decoder
        first = decoder.mask_tokens.weight[:1].detach()
        noise = torch.randn(classes, backbone.channels).to(first)
        self.class_tokens = nn.Parameter(first + token_init_std * noise)
        self.register_buffer("kept_tokens", score_tokens(decoder).detach().clone(), persistent=False)
        mark = no_mask(backbone.prompt_encoder) + backbone.no_memory()
        self.register_buffer("mark", mark.detach().clone(), persistent=False)
        self.register_buffer("position", backbone.position_encoding().clone(), persistent=False)

    kept_tokens: Tensor

    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        first = len(self.kept_tokens)
        if self.shared_pass:
            return torch.cat([self.kept_tokens, self.class_tokens])[None], slice(first, None)
        kept = repeat(self.kept_tokens, "t c -> k t c", k=len(self.class_tokens))
        return torch.cat([kept, self.class_tokens[:, None]], dim=1), slice(first, None)


class FaithfulVitHead(_DecoderHead):
    """The ViT head as published: each class has the image, an untrained IoU token and two mask tokens to itself.

    All tokens and the position code are drawn at random and the 'no mask' embedding is left out, as in the authors'
    code, where they slip through the loading of SAM's weights. Of the two masks only the first is used, so only it is
    painted; the IoU head, which nobody asks, counts among the parameters.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, painters=PUBLISHED_MASK_TOKENS)
        channels, self.cells = backbone.channels, backbone.feature_side
        self.mask_tokens = nn.Parameter(torch.randn(classes, PUBLISHED_MASK_TOKENS, channels))
        self.iou_tokens = nn.Parameter(torch.randn(classes, 1, channels), requires_grad=False)
        self.iou_prediction_head = SamFeedForward(channels, channels, PUBLISHED_MASK_TOKENS, 3).requires_grad_(False)
        self.register_buffer("mark", torch.zeros(1, channels, 1, 1), persistent=False)
        self.register_buffer("frequencies", torch.randn(2, channels // 2))

    frequencies: Tensor

    @property
    def position(self) -> Float[Tensor, "1 c f f"]:  # type: ignore[override]
        """SAM's random Fourier code of the cells' centres, from random numbers of its own."""
        centres = (torch.arange(self.cells).to(self.frequencies) + 0.5) / self.cells
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        angles = 2 * math.pi * (2 * torch.stack([columns, rows], dim=-1) - 1) @ self.frequencies
        return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "h w c -> 1 c h w")

    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        return torch.cat([self.iou_tokens, self.mask_tokens], dim=1), slice(1, 2)

    def fixed_state(self) -> dict[str, Tensor]:
        return {"iou_tokens": self.iou_tokens.detach(), "frequencies": self.frequencies}


class CnnHead(Head):
    """Convolutions at the main level, then two doublings; widths are multiples of the backbone's.

    SAM 2's finer levels come in after each doubling, through a 1 × 1 convolution: the paper knows SAM alone. There are
    no norms, and with PyTorch's own start, which `as_published` keeps, each layer passes on less than half of what it
    saw; else the weights start as He et al. (2015) draw them, so that the tenth layer still sees the image.
    """

    def __init__(self, channels: int, classes: int, finer: bool = False, *, as_published: bool = False) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.deep = nn.Sequential(
            *_convolutions(1, channels, 4 * channels, 4 * channels),
            *_convolutions(3, 4 * channels, 4 * channels, 2 * channels),
            *_convolutions(3, 2 * channels, 2 * channels, channels),
            *_convolutions(3, channels, channels, channels),
            nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2),
        )
        self.fine = nn.Sequential(
            *_convolutions(3, half, half, half), nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2)
        )
        self.out = nn.Sequential(nn.Conv2d(quarter, quarter, 3, padding=1), nn.Conv2d(quarter, classes, 1))
        self.finer = nn.ModuleList()
        if finer:
            self.finer.extend([nn.Conv2d(channels // 8, quarter, 1), nn.Conv2d(quarter, half, 1)])
        bent = [] if as_published else [layer for layer in (*self.deep, *self.fine) if isinstance(layer, nn.Conv2d)]
        for layer in bent:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        skips = [narrow(level) for narrow, level in zip(self.finer, image.features[:-1], strict=True)]
        fine_skip, half_skip = skips or (0, 0)  # SAM has none
        logits: Tensor = self.out(self.fine(self.deep(image.main) + half_skip) + fine_skip)
        return logits


class LinearHead(Head):
    """The mask decoder's upscaling with random weights, SAM 2's finer levels added as there, and two 1 × 1 layers."""

    def __init__(self, channels: int, classes: int, *, relu_out: bool = False) -> None:
        super().__init__()
        quarter, eighth = channels // 4, channels // 8
        self.upscale_conv1 = nn.ConvTranspose2d(channels, quarter, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(quarter, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(quarter, eighth, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        last: list[nn.Module] = [nn.ReLU()] if relu_out else []
        self.out = nn.Sequential(nn.Conv2d(eighth, eighth, 1), nn.ReLU(), nn.Conv2d(eighth, classes, 1), *last)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        fine_skip, half_skip = image.features[:-1] or (0, 0)  # SAM has none
        half = self.activation(self.upscale_layer_norm(self.upscale_conv1(image.main) + half_skip))
        logits: Tensor = self.out(self.activation(self.upscale_conv2(half) + fine_skip))
        return logits


class UNetHead(Head):
    """A U-Net over the embeddings: each level joins where the net is as coarse; ours, not the paper's.

    Instance norm on what comes in and after every convolution takes out of the features what sets one scanner apart
    from another; up to two further levels below the main one see the whole slice. With `with_slices` the slices
    themselves join too, on twice the grid of SAM 2's finest level (of SAM's only one, on four times its grid),
    for structures that are thin in their scans.
    """

    def __init__(
        self, channels: int, classes: int, cells: int, finer: bool = False, *, with_slices: bool = False
    ) -> None:
        super().__init__()
        self.joins = [channels // 8, channels // 4, channels] if finer else [channels]
        self.joins += [0] * sum(cells // 2**halved >= COARSEST for halved in (1, 2))
        narrowest = channels // 8
        self.enlarged = 1 if finer else 4
        if with_slices:
            self.joins = [3, *self.joins] if finer else [3, 0, *self.joins]
            self.pixels, self.enlarged = cells * (8 if finer else 4), 1
            narrowest = max(8, channels // 32)
        widths = [narrowest * 2 ** min(level, 3 + with_slices) for level in range(len(self.joins))]
        self.down = nn.ModuleList(
            _normed(inside + join, own) for inside, join, own in zip([0, *widths], self.joins, widths, strict=False)
        )
        self.up = nn.ModuleList(_normed(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        levels = iter(image.features)
        seen: list[Tensor] = []
        for block, join in zip(self.down, self.joins, strict=True):
            parts = [F.avg_pool2d(seen[-1], 2)] if seen else []
            parts += [F.instance_norm(next(levels))] if join else []
            seen.append(block(torch.cat(parts, dim=1)))
        found = seen.pop()
        for block in reversed(self.up):
            fine = seen.pop()
            coarse = F.interpolate(found, (fine.shape[-2], fine.shape[-1]), mode="bilinear", align_corners=False)
            found = block(torch.cat([fine, coarse], dim=1))
        logits: Tensor = self.out(found)
        if self.enlarged == 1:
            return logits
        return F.interpolate(logits, scale_factor=self.enlarged, mode="bilinear", align_corners=False)

    def fixed_state(self) -> dict[str, Tensor]:
        return {"pixels": torch.tensor(self.pixels)} if self.pixels else {}


def _normed(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in (inside, outside):
        layers += [nn.Conv2d(wide, outside, 3, padding=1), nn.InstanceNorm2d(outside, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def against_background(logits: Float[Tensor, "n k s s"]) -> Float[Tensor, "n l s s"]:
    """Logits of the labels where the background, which comes first and falls away, has logit 0: the same softmax."""
    return logits[:, 1:] - logits[:, :1]


def _convolutions(size: int, inside: int, between: int, outside: int) -> list[nn.Module]:
    first = nn.Conv2d(inside, between, size, padding=size // 2)
    return [first, nn.ReLU(), nn.Conv2d(between, outside, size, padding=size // 2), nn.ReLU()]
