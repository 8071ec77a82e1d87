"""Bottleneck adapters in an image encoder: two small layers in every block learn, all its own weights stay.

After Houlsby et al. (ICML 2019), placed in SAM as Wu et al. do, "Medical SAM Adapter" (arXiv 2304.12620): one after
the attention, one parallel to the MLP. Its space-depth branch, which is for volumes, and its prompt-conditioned
adapters are not here.
"""

from __future__ import annotations

import math

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
    if any(isinstance(module, Bottleneck) for module in encoder.modules()):
        raise SettingsError("this encoder has adapters already; add them to a copy of the plain encoder")
    blocks = [module for module in encoder.modules() if _is_block(module)]
    if not blocks:
        raise SettingsError(f"{type(encoder).__name__} has no transformer block; use a SAM or SAM 2")
    parts: list[nn.Module] = []
    for block in blocks:
        attention: nn.Module = block.attn  # type: ignore[assignment]
        serial = AfterAttention(attention.proj, width, generator)  # type: ignore[arg-type]
        parallel = ParallelToMlp(block.mlp, width, generator)  # type: ignore[arg-type]
        attention.proj, block.mlp = serial, parallel
        parts += [serial.adapter, parallel.adapter]
    return parts


class AfterAttention(nn.Module):
    """An attention's last layer, and an adapter of what comes out of it."""

    def __init__(self, projection: nn.Linear, width: int, generator: Generator) -> None:
        super().__init__()
        self.projection = projection
        self.adapter = Bottleneck(projection.out_features, width, generator).to(projection.weight)

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        attended: Tensor = self.projection(tokens)
        added: Tensor = self.adapter(attended)
        return attended + added


class ParallelToMlp(nn.Module):
    """A block's MLP, and an adapter of what goes into it."""

    def __init__(self, mlp: nn.Module, width: int, generator: Generator) -> None:
        super().__init__()
        self.mlp = mlp
        first = next(module for module in mlp.modules() if isinstance(module, nn.Linear))
        self.adapter = Bottleneck(first.in_features, width, generator).to(first.weight)

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        plain: Tensor = self.mlp(tokens)
        added: Tensor = self.adapter(tokens)
        return plain + BESIDE * added


class Bottleneck(nn.Module):
    """Down, GELU, up; zero at the start."""

    def __init__(self, channels: int, width: int, generator: Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(channels)
        self.down = nn.Parameter((2 * torch.rand(width, channels, generator=generator) - 1) * bound)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(channels, width))
        self.up_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        return F.linear(F.gelu(F.linear(tokens, self.down, self.down_bias)), self.up, self.up_bias)


def _is_block(module: nn.Module) -> bool:
    attention = getattr(module, "attn", None)
    return isinstance(getattr(attention, "proj", None), nn.Linear) and isinstance(
        getattr(module, "mlp", None), nn.Module
    )
