"""Low-rank updates of an image encoder: queries and values of every attention learn, all its own weights stay.

After Hu et al., "LoRA" (ICLR 2022, arXiv 2106.09685), placed in SAM as Zhang and Liu do, "SAMed" (arXiv 2304.13785).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from handful.errors import SettingsError


def add_lora(encoder: nn.Module, rank: int, generator: Generator) -> list[nn.Module]:
    """Gives the q and v of every fused `qkv` layer an update of that rank, in place; returns what is to be trained.

    Until it is trained, the encoder answers exactly as before. Its own weights are neither copied nor written to.
    Raises SettingsError for a rank below 1, and for an encoder with no such layer or with updates already.
    """
    if rank < 1:
        raise SettingsError(f"rank must be at least 1, got {rank}")
    if _updated(encoder):
        raise SettingsError("this encoder has low-rank updates already; add them to a copy of the plain encoder")
    attentions = [module for module in encoder.modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]
    if not attentions:
        raise SettingsError(f"{type(encoder).__name__} has no attention with a fused qkv layer; use a SAM or SAM 2")
    parts: list[nn.Module] = []
    for attention in attentions:
        updated = LowRankQkv(attention.qkv, rank, generator)  # type: ignore[arg-type]
        attention.qkv = updated
        parts += [updated.query, updated.value]
    return parts


def merge_lora(encoder: nn.Module) -> None:
    """Adds the updates to (copies of) the weights, so that they cost no time; training them needs `unmerge_lora`."""
    for updated in _updated(encoder):
        updated.merged = updated.weight().detach()


def unmerge_lora(encoder: nn.Module) -> None:
    """Undoes `merge_lora` exactly: the weights were never written to."""
    for updated in _updated(encoder):
        updated.merged = None


class LowRankQkv(nn.Module):
    """A fused qkv layer whose first and last third have a low-rank update."""

    merged: Tensor | None

    def __init__(self, qkv: nn.Linear, rank: int, generator: Generator) -> None:
        super().__init__()
        self.qkv = qkv
        self.query = LowRank(qkv.in_features, qkv.out_features // 3, rank, generator).to(qkv.weight)
        self.value = LowRank(qkv.in_features, qkv.out_features // 3, rank, generator).to(qkv.weight)
        self.register_buffer("merged", None, persistent=False)

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        if self.merged is not None:
            return F.linear(tokens, self.merged, self.qkv.bias)
        query, value = self.query(tokens), self.value(tokens)
        plain: Tensor = self.qkv(tokens)
        return plain + torch.cat([query, torch.zeros_like(query), value], dim=-1)

    def weight(self) -> Float[Tensor, "d c"]:
        """The plain weight with the updates added."""
        query, value = self.query.weight(), self.value.weight()
        return self.qkv.weight + torch.cat([query, torch.zeros_like(query), value])


class LowRank(nn.Module):
    """A linear map of low rank, zero at the start."""

    def __init__(self, width: int, out: int, rank: int, generator: Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)  # as nn.Linear draws its weights, and LoRA its first factor
        self.down = nn.Parameter((2 * torch.rand(rank, width, generator=generator) - 1) * bound)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, tokens: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        return F.linear(F.linear(tokens, self.down), self.up)

    def weight(self) -> Float[Tensor, "d c"]:
        """The map as one matrix."""
        return self.up @ self.down


def _updated(encoder: nn.Module) -> list[LowRankQkv]:
    return [module for module in encoder.modules() if isinstance(module, LowRankQkv)]
