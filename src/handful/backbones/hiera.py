"""The attention of Hiera, SAM 2's image encoder, without what transformers computes and never uses."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention


class HieraAttention(nn.Module):
    """Attention within windows, with the same weights and results as the module that it replaces.

    Ryali et al., "Hiera: a hierarchical vision transformer without the bells-and-whistles" (ICML 2023). transformers'
    module also computes attention weights, between the heads of each token, and drops them.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.qkv, self.proj = theirs.qkv, theirs.proj
        self.heads, self.scale, self.pooled = theirs.num_attention_heads, theirs.scale, theirs.query_stride or (1, 1)

    def forward(self, hidden_states: Float[Tensor, "n h w c"], **unused: object) -> Float[Tensor, "n _ _ d"]:
        n, h, w = hidden_states.shape[:3]
        query, key, value = self.qkv(hidden_states).reshape(n, h * w, 3, self.heads, -1).unbind(2)
        a, b = self.pooled
        if (a, b) != (1, 1):
            query = reduce(query, "n (h a w b) k d -> n (h w) k d", "max", a=a, b=b, h=h // a)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        found = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        projected: Tensor = self.proj(found.transpose(1, 2).reshape(n, h // a, w // b, -1))
        return projected


def without_waste(model: nn.Module) -> None:
    """Replace the attention of each Hiera block in place."""
    for module in list(model.modules()):
        attention = getattr(module, "attn", None)
        if isinstance(attention, Sam2MultiScaleAttention):
            module.attn = HieraAttention(attention)
