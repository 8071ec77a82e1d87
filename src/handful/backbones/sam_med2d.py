"""SAM-Med2D's adapters: a small network in every block of SAM's image encoder, parallel to the MLP.

After Cheng et al., "SAM-Med2D" (arXiv 2308.16184), and its code: attention over channels, then a convolution to half
the resolution and one back, a skip connection and a norm.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SamModel


def add_sam_med2d_adapters(model: SamModel, inner: int) -> None:
    """Puts an adapter parallel to the MLP of every block, in place; `inner` is the width of its channel attention."""
    width = model.config.vision_config.hidden_size
    for layer in model.vision_encoder.layers:
        layer.mlp = MlpWithAdapter(layer.mlp, ConvAdapter(width, inner))


class MlpWithAdapter(nn.Module):
    """The sum of a block's MLP and its adapter, which both get the normalised tokens."""

    def __init__(self, mlp: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.adapter = adapter

    def forward(self, tokens: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        both: Tensor = self.mlp(tokens) + self.adapter(tokens)
        return both


class ConvAdapter(nn.Module):
    """Channel attention and a spatial bottleneck; parameters have the authors' names."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.ReLU(), nn.Linear(inner, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, tokens: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        maps = rearrange(tokens, "n h w c -> n c h w")
        weights = self.channel(F.adaptive_avg_pool2d(maps, 1)[..., 0, 0])
        maps = maps + self.spatial(maps * weights[..., None, None])
        out: Tensor = self.norm(rearrange(maps, "n c h w -> n h w c"))
        return out
