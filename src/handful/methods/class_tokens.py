"""Learned tokens that prompt a mask decoder for each class, in place of clicks and boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from handful.backbones.base import PromptEmbeddings


class ClassTokens(nn.Module):
    """One learned prompt token per class, used instead of prompts."""

    def __init__(self, classes: int, decoder: Any, generator: Generator) -> None:
        """`decoder` is that of SAM or SAM 2; the tokens have the magnitude of its own."""
        super().__init__()
        own = decoder.mask_tokens.weight.detach()
        self.weight = nn.Parameter(float(own.std()) * torch.randn(classes, own.shape[1], generator=generator).to(own))

    def forward(self, slices: int) -> PromptEmbeddings:
        """The same prompts for each of n slices."""
        return PromptEmbeddings(self.weight[None, :, None].expand(slices, -1, -1, -1))
