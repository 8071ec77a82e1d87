"""Heads of AutoSAM, which predict maps of all classes from image embeddings: mask decoder, CNN, U-Net, or linear."""

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

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import decode_with_tokens, no_mask, score_tokens

PUBLISHED_MASK_TOKENS = 2
COARSEST = 4
"""Minimum width in cells of the coarsest level of the head 'unet'."""


class Head(nn.Module, ABC):
    """Predicts maps of all classes from image embeddings; contains no part of the encoder."""

    pixels: int = 0
    """Width of the frame in which the head takes the slices themselves (before the embeddings) and returns its maps.

    0 if it takes embeddings only.
    """

    @abstractmethod
    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        """Logits of k classes in the model frame; the first class is the background."""

    def fixed_state(self) -> dict[str, Tensor]:
        """Tensors that are not trained but needed to restore the head: random constants, or facts of the support."""
        return {}


class _DecoderHead(Head):
    """A trainable copy of the backbone's mask decoder: transformer, upscaling and the first hypernetworks."""

    mark: Tensor
    """Embedding (1, c, 1, 1) that is added to all image features."""
    position: Tensor
    """Positional encoding (1, c, f, f) of the image."""

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
        """s sets of t tokens, which attend to the image independently, and the tokens of a set that produce masks."""

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        tokens, of_masks = self.tokens()
        tokens = tokens.expand(len(image), -1, -1, -1)
        output, pixels = decode_with_tokens(self, image.main + self.mark, self.position, tokens, image.features[:-1])
        masks = pixels.masks(self.painters[0](output[:, :, of_masks]))
        return rearrange(masks, "n s m h w -> n (s m) h w")


class VitHead(_DecoderHead):
    """SAM's mask decoder with one trained token per class instead of prompts.

    The class tokens are initialised at SAM's token for a single mask, plus noise. IoU token, positional encoding and
    'no mask' embedding are SAM's.
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


class PublishedVitHead(_DecoderHead):
    """The ViT head as published: each class has its own image copy, untrained IoU token and two mask tokens.

    As in the authors' code, which does not load SAM's weights for them, all tokens and the positional encoding are
    random, and the 'no mask' embedding is left out. Only the first of the two masks is used, so only it is computed.
    The unused IoU head counts among the parameters.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        from transformers.models.sam.modeling_sam import SamFeedForward  # seconds, not needed by other methods

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
        """SAM's random Fourier encoding of the cell centres, with its own random frequencies."""
        centres = (torch.arange(self.cells).to(self.frequencies) + 0.5) / self.cells
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        angles = 2 * math.pi * (2 * torch.stack([columns, rows], dim=-1) - 1) @ self.frequencies
        return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "h w c -> 1 c h w")

    def tokens(self) -> tuple[Float[Tensor, "s t c"], slice]:
        return torch.cat([self.iou_tokens, self.mask_tokens], dim=1), slice(1, 2)

    def fixed_state(self) -> dict[str, Tensor]:
        return {"iou_tokens": self.iou_tokens.detach(), "frequencies": self.frequencies}


class CnnHead(Head):
    """Convolutions at the main level, then two upsampling steps; widths are multiples of the backbone's.

    The first step doubles the side, and both together multiply it by `enlarging`.

    SAM 2's finer levels are added after each upsampling, through a 1 x 1 convolution (the paper covers SAM only). There
    are no normalisation layers. With PyTorch's default initialisation, which `as_published` keeps, each layer passes on
    less than half of its input. Otherwise, weights are initialised as in He et al. (2015), so that the signal reaches
    the tenth layer.
    """

    def __init__(
        self, channels: int, classes: int, finer: bool = False, *, enlarging: int = 4, as_published: bool = False
    ) -> None:
        super().__init__()
        half, quarter, last = channels // 2, channels // 4, enlarging // 2
        self.deep = nn.Sequential(
            *_convolutions(1, channels, 4 * channels, 4 * channels),
            *_convolutions(3, 4 * channels, 4 * channels, 2 * channels),
            *_convolutions(3, 2 * channels, 2 * channels, channels),
            *_convolutions(3, channels, channels, channels),
            nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2),
        )
        self.fine = nn.Sequential(
            *_convolutions(3, half, half, half), nn.ConvTranspose2d(half, quarter, kernel_size=last, stride=last)
        )
        self.out = nn.Sequential(nn.Conv2d(quarter, quarter, 3, padding=1), nn.Conv2d(quarter, classes, 1))
        self.finer = nn.ModuleList()
        if finer:
            self.finer.extend([nn.Conv2d(channels // 8, quarter, 1), nn.Conv2d(quarter, half, 1)])
        layers = [] if as_published else [layer for layer in (*self.deep, *self.fine) if isinstance(layer, nn.Conv2d)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        skips = [narrow(level) for narrow, level in zip(self.finer, image.features[:-1], strict=True)]
        fine_skip, half_skip = skips or (0, 0)  # SAM has none
        logits: Tensor = self.out(self.fine(self.deep(image.main) + half_skip) + fine_skip)
        return logits


class LinearHead(Head):
    """The mask decoder's upscaling with random weights and SAM 2's finer levels, followed by two 1 x 1 convolutions.

    Its two steps multiply the side by `enlarging`, the first of them by 2.
    """

    def __init__(self, channels: int, classes: int, *, enlarging: int = 4, relu_out: bool = False) -> None:
        from transformers.models.sam.modeling_sam import SamLayerNorm  # seconds, not needed by other methods

        super().__init__()
        quarter, eighth, step = channels // 4, channels // 8, enlarging // 2
        self.upscale_conv1 = nn.ConvTranspose2d(channels, quarter, kernel_size=2, stride=2)
        self.upscale_layer_norm = SamLayerNorm(quarter, data_format="channels_first")
        self.upscale_conv2 = nn.ConvTranspose2d(quarter, eighth, kernel_size=step, stride=step)
        self.activation = nn.GELU()
        last: list[nn.Module] = [nn.ReLU()] if relu_out else []
        self.out = nn.Sequential(nn.Conv2d(eighth, eighth, 1), nn.ReLU(), nn.Conv2d(eighth, classes, 1), *last)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        fine_skip, half_skip = image.features[:-1] or (0, 0)  # SAM has none
        half = self.activation(self.upscale_layer_norm(self.upscale_conv1(image.main) + half_skip))
        logits: Tensor = self.out(self.activation(self.upscale_conv2(half) + fine_skip))
        return logits


class UNetHead(Head):
    """A U-Net over the embeddings, not from the paper: each feature level enters at the U-Net level of its resolution.

    Instance norm of the inputs and after every convolution removes differences between scanners. Up to two further
    levels below the main one cover the whole slice. `enlarging` is the side of masks over that of the main level, which
    has `cells` cells along its side. If `with_slices` is set, the slices themselves are an input, too,
    at twice the resolution of SAM 2's finest level (four times that of SAM's only level), for thin structures.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        cells: int,
        finer: bool = False,
        *,
        enlarging: int = 4,
        with_slices: bool = False,
    ) -> None:
        super().__init__()
        between = [0] * (enlarging.bit_length() - 3)  # levels of the U-Net between SAM 2's two finer levels
        self.joins = [channels // 8, *between, channels // 4, channels] if finer else [channels]
        self.joins += [0] * sum(cells // 2**halved >= COARSEST for halved in (1, 2))
        narrowest = channels // 8
        self.enlarged = 1 if finer else enlarging
        if with_slices:
            self.joins = [3, *self.joins] if finer else [3, 0, *self.joins]
            self.pixels, self.enlarged = cells * enlarging * (2 if finer else 1), 1
            narrowest = max(8, channels // 32)
        widths = [narrowest * 2 ** min(level, 3 + with_slices) for level in range(len(self.joins))]
        self.down = nn.ModuleList(
            _normed(inside + join, width) for inside, join, width in zip([0, *widths], self.joins, widths, strict=False)
        )
        self.up = nn.ModuleList(_normed(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n k s s"]:
        levels = iter(image.features)
        features: list[Tensor] = []
        for block, join in zip(self.down, self.joins, strict=True):
            parts = [F.avg_pool2d(features[-1], 2)] if features else []
            parts += [F.instance_norm(next(levels))] if join else []
            features.append(block(torch.cat(parts, dim=1)))
        decoded = features.pop()
        for block in reversed(self.up):
            fine = features.pop()
            coarse = F.interpolate(decoded, (fine.shape[-2], fine.shape[-1]), mode="bilinear", align_corners=False)
            decoded = block(torch.cat([fine, coarse], dim=1))
        logits: Tensor = self.out(decoded)
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
    """Logits of the labels relative to the background, which is the first class; the softmax is the same."""
    return logits[:, 1:] - logits[:, :1]


def _convolutions(size: int, inside: int, between: int, outside: int) -> list[nn.Module]:
    first = nn.Conv2d(inside, between, size, padding=size // 2)
    return [first, nn.ReLU(), nn.Conv2d(between, outside, size, padding=size // 2), nn.ReLU()]
