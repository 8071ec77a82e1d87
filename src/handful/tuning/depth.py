"""Depth adapters: small layers in every block of a frozen 2D encoder that exchange information between slices.

The encoder takes the slices of one stack in one call, in their order: n × rows × columns × channels. `convolution` is
after Chen et al., "MA-SAM" (arXiv 2309.08842), and Gong et al., "3DSAM-adapter" (arXiv 2306.13465): a bottleneck with a
depth-wise convolution over the slice axis. `attention` is the depth branch of Wu et al., "Medical SAM Adapter" (arXiv
2304.12620): the block's own frozen attention, applied along the slice axis.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Generator, Tensor, nn

from handful.errors import SettingsError
from handful.tuning.adapters import Bottleneck, InParallel, InSeries, mlp_width, transformer_blocks

TAPS = 3
"""Slices that one convolution combines: the previous one, the slice itself and the next one."""


def add_depth_convolutions(encoder: nn.Module, width: int, generator: Generator) -> list[nn.Module]:
    """Put two depth adapters of that inner width into every block, in place; return what is to be trained.

    One changes the input of the attention, one is parallel to the MLP. Until they are trained, the encoder answers
    exactly as before. Raises SettingsError for a width below 1, and for an encoder without such blocks or with depth
    adapters already.
    """
    parts: list[nn.Module] = []
    for block in _plain_blocks(encoder, width):
        weight = block.attn.proj.weight
        before = DepthConvolution(_width_of(block.layer_norm1), width, generator).to(weight)
        beside = DepthConvolution(mlp_width(block), width, generator).to(weight)
        block.layer_norm1, block.mlp = InSeries(block.layer_norm1, before), InParallel(block.mlp, beside)
        parts += [before, beside]
    return parts


def add_depth_attention(encoder: nn.Module, width: int, generator: Generator) -> list[nn.Module]:
    """Put a depth branch into every block, in place; return what is to be trained.

    The attention along the slice axis uses the weights of the block's own attention, which stay frozen, and an adapter
    of that inner width passes its result on. Raises the errors of `add_depth_convolutions`.
    """
    parts: list[nn.Module] = []
    for block in _plain_blocks(encoder, width):
        branch = DepthAttention(block.attn, _width_of(block.layer_norm1), width, generator)
        block.layer_norm1 = InSeries(block.layer_norm1, branch)
        parts.append(branch.adapter)
    return parts


class DepthConvolution(nn.Module):
    """Down, a depth-wise convolution over the slices, GELU, up; zero at the start.

    Before the first slice and after the last one, that slice is repeated.
    """

    def __init__(self, channels: int, width: int, generator: Generator) -> None:
        super().__init__()

        def random(*shape: int, inputs: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(inputs))

        self.down, self.down_bias = random(width, channels, inputs=channels), nn.Parameter(torch.zeros(width))
        self.taps, self.taps_bias = random(TAPS, width, inputs=TAPS), nn.Parameter(torch.zeros(width))
        self.up, self.up_bias = nn.Parameter(torch.zeros(channels, width)), nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        narrow = F.linear(tokens, self.down, self.down_bias)
        before, after = torch.cat([narrow[:1], narrow[:-1]]), torch.cat([narrow[1:], narrow[-1:]])
        mixed = self.taps[0] * before + self.taps[1] * narrow + self.taps[2] * after + self.taps_bias
        return F.linear(F.gelu(mixed), self.up, self.up_bias)


class DepthAttention(nn.Module):
    """Each place of a slice attends to the same place of all slices of the stack; zero at the start."""

    def __init__(self, attention: Any, channels: int, width: int, generator: Generator) -> None:
        super().__init__()
        self.qkv, self.proj, self.scale = attention.qkv, attention.proj, attention.scale
        self.heads = getattr(attention, "heads", None) or attention.num_attention_heads
        self.adapter = Bottleneck(self.proj.out_features, width, generator, channels).to(self.proj.weight)

    def forward(self, tokens: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        h = tokens.shape[1]
        parts = rearrange(self.qkv(tokens), "n h w (p k d) -> p (h w) k n d", p=3, k=self.heads)
        query, key, value = parts.unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        added: Tensor = self.adapter(self.proj(rearrange(found, "(h w) k n d -> n h w (k d)", h=h)))
        return added


def _plain_blocks(encoder: nn.Module, width: int) -> list[Any]:
    """The blocks of an encoder without depth adapters."""
    if width < 1:
        raise SettingsError(f"an adapter's width must be at least 1, got {width}")
    if any(isinstance(module, DepthConvolution | DepthAttention) for module in encoder.modules()):
        raise SettingsError("this encoder has depth adapters already; add them to a copy of the plain encoder")
    blocks = transformer_blocks(encoder)
    if not all(isinstance(getattr(block, "layer_norm1", None), nn.LayerNorm) for block in blocks):
        raise SettingsError(
            f"{type(encoder).__name__} has transformer blocks without a norm before their attention, and depth "
            "adapters need one; use a SAM (ViT) or SAM 2 (Hiera)"
        )
    return blocks


def _width_of(norm: nn.LayerNorm) -> int:
    return norm.normalized_shape[0]
