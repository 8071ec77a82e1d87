"""Bottleneck adapters in an image encoder: two small layers in every block learn, all its own weights stay.

After Houlsby et al. (ICML 2019), placed in SAM as Wu et al. do, "Medical SAM Adapter" (arXiv 2304.12620): one after
the attention, one parallel to the MLP. Its depth branch, which is for volumes, is `add_depth_attention`. Its
prompt-conditioned adapters of the decoder are left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from handful.errors import SettingsError

BESIDE = 0.5
"""Weight of the adapter parallel to the MLP, as in Medical SAM Adapter's code."""


def add_adapters(encoder: nn.Module, width: int, generator: Generator) -> list[nn.Module]:
    """Puts two adapters of that inner width into every block, in place; returns what is to be trained.

    Until they are trained, the encoder answers exactly as before. Its own weights are neither copied nor written to.
    Raises SettingsError for a width below 1, and for an encoder with no such block or with adapters already.
    """
    if width < 1:
        raise SettingsError(f"an adapter's width must be at least 1, got {width}")
    if any(isinstance(getattr(module, "proj", None), InSeries) for module in encoder.modules()):
        raise SettingsError("this encoder has adapters already; add them to a copy of the plain encoder")
    parts: list[nn.Module] = []
    for block in transformer_blocks(encoder):
        serial = Bottleneck(block.attn.proj.out_features, width, generator).to(block.attn.proj.weight)
        parallel = Bottleneck(mlp_width(block), width, generator).to(block.attn.proj.weight)
        block.attn.proj, block.mlp = InSeries(block.attn.proj, serial), InParallel(block.mlp, parallel, BESIDE)
        parts += [serial, parallel]
    return parts


def transformer_blocks(encoder: nn.Module) -> list[Any]:
    """All modules with an attention (`attn.proj`) and an MLP (`mlp`). Raises SettingsError if there are none."""
    blocks = [module for module in encoder.modules() if _is_block(module)]
    if not blocks:
        raise SettingsError(f"{type(encoder).__name__} has no transformer block; use a SAM or SAM 2")
    return blocks


def mlp_width(block: Any) -> int:
    """The number of channels of the tokens that a block's MLP takes."""
    return next(module.in_features for module in block.mlp.modules() if isinstance(module, nn.Linear))


class InSeries(nn.Module):
    """A frozen layer, and an adapter of its output that is added to it."""

    def __init__(self, layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        plain: Tensor = self.layer(tokens)
        added: Tensor = self.adapter(plain)
        return plain + added


class InParallel(nn.Module):
    """A frozen layer, and an adapter of its input whose output is added, times `weight`."""

    def __init__(self, layer: nn.Module, adapter: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.layer, self.adapter, self.weight = layer, adapter, weight

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        plain: Tensor = self.layer(tokens)
        added: Tensor = self.adapter(tokens)
        return plain + self.weight * added


class Bottleneck(nn.Module):
    """Down, GELU, up; zero at the start."""

    def __init__(self, channels: int, width: int, generator: Generator, out: int | None = None) -> None:
        """`out` is the number of channels of the output, by default that of the input."""
        super().__init__()
        bound, out = 1 / math.sqrt(channels), out or channels
        self.down = nn.Parameter((2 * torch.rand(width, channels, generator=generator) - 1) * bound)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(out, width))
        self.up_bias = nn.Parameter(torch.zeros(out))

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        return F.linear(F.gelu(F.linear(tokens, self.down, self.down_bias)), self.up, self.up_bias)


def _is_block(module: nn.Module) -> bool:
    attention = getattr(module, "attn", None)
    return isinstance(getattr(attention, "proj", None), nn.Linear | InSeries) and isinstance(
        getattr(module, "mlp", None), nn.Module
    )
