"""The two-way transformer of SAM's mask decoder, for few tokens: the results of transformers' module, in less time.

Kirillov et al., "Segment anything" (ICCV 2023). A set has a few tokens, and the image thousands of cells. Where tokens
and image attend to each other, the projections of the cells are applied to the tokens instead: the products are the
same, because matrix multiplication is associative, and the image takes part in two thin products in place of two wide
ones and an attention. What is added to all scores of one softmax alike is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Module = Any
"""A part of transformers' SamTwoWayTransformer or its kin; transformers states no types of its layers."""


def two_way(
    transformer: Module,
    tokens: Float[Tensor, "n k t c"],
    image: Float[Tensor, "n 1 p c"],
    position: Float[Tensor, "p c"],
) -> tuple[Float[Tensor, "n k t c"], Float[Tensor, "n k p c"]]:
    """k independent sets of tokens, each with its own copy of the image, after they have attended to each other."""
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _usual(layer.self_attn, queries, queries, queries)
        else:
            marked = queries + tokens
            queries = queries + _usual(layer.self_attn, marked, marked, queries)
        queries = layer.layer_norm1(queries)
        placed = image + position
        queries = queries + _to_image(layer.cross_attn_token_to_image, queries + tokens, placed, image)
        queries = layer.layer_norm2(queries)
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        image = image + _to_tokens(layer.cross_attn_image_to_token, placed, queries + tokens, queries)
        image = layer.layer_norm4(image)
    last = transformer.final_attn_token_to_image
    queries = queries + _to_image(last, queries + tokens, image + position, image)
    return transformer.layer_norm_final_attn(queries), image


def _usual(attention: Module, query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "n k _ c"]:
    attended: Tensor = attention(query=query, key=key, value=value)[0]
    return attended


def _pays(attention: Module, tokens: Float[Tensor, "n k t c"]) -> bool:
    """Whether the tokens of all heads are fewer than the channels that the image would be projected to.

    Never under autocast, which would round scores to bfloat16; torch's attention keeps them in float32.
    """
    few = attention.num_attention_heads * tokens.shape[2] < attention.internal_dim
    return bool(few) and not torch.is_autocast_enabled(tokens.device.type)


def _to_image(
    attention: Module,
    tokens: Float[Tensor, "n k t c"],
    keys: Float[Tensor, "n m p c"],
    values: Float[Tensor, "n m p c"],
) -> Float[Tensor, "n k t c"]:
    """The tokens' means of an image; m is k, or 1 where all sets have the same."""
    if not _pays(attention, tokens):
        return _usual(attention, tokens, *(level.expand(-1, tokens.shape[1], -1, -1) for level in (keys, values)))
    heads = attention.num_attention_heads
    query = attention.scaling * _by_head(attention.q_proj(tokens), heads)
    query = torch.einsum("nkhtd,hdc->nkhtc", query, _rows(attention.k_proj, heads))
    scores = query.flatten(2, 3) @ keys.transpose(2, 3)
    means = rearrange(scores.softmax(dim=3) @ values, "n k (h t) c -> n k h t c", h=heads)
    found = torch.einsum("nkhtc,hdc->nkthd", means, _rows(attention.v_proj, heads)).flatten(3)
    projected: Tensor = _out(attention)(found + attention.v_proj.bias)
    return projected


def _to_tokens(
    attention: Module,
    image: Float[Tensor, "n m p c"],
    keys: Float[Tensor, "n k t c"],
    values: Float[Tensor, "n k t c"],
) -> Float[Tensor, "n k p c"]:
    """The image's means of the tokens; m is k, or 1 where all sets have the same image."""
    if not _pays(attention, keys):
        return _usual(attention, image.expand(-1, keys.shape[1], -1, -1), keys, values)
    heads, out = attention.num_attention_heads, _out(attention)
    key = attention.scaling * _by_head(attention.k_proj(keys), heads)
    value = _by_head(attention.v_proj(values), heads)
    bias = torch.einsum("nkhtd,hd->nkht", key, rearrange(attention.q_proj.bias, "(h d) -> h d", h=heads)).flatten(2)
    key = torch.einsum("nkhtd,hdc->nkhtc", key, _rows(attention.q_proj, heads)).flatten(2, 3)
    value = torch.einsum("nkhtd,chd->nkhtc", value, rearrange(out.weight, "c (h d) -> c h d", h=heads)).flatten(2, 3)
    scores = key @ image.transpose(2, 3) + bias[..., None]
    weights = rearrange(scores, "n k (h t) p -> n k h t p", h=heads).softmax(dim=3).flatten(2, 3)
    return weights.transpose(2, 3) @ value + out.bias


def _by_head(projected: Float[Tensor, "n k t _"], heads: int) -> Float[Tensor, "n k h t d"]:
    return rearrange(projected, "n k t (h d) -> n k h t d", h=heads)


def _rows(projection: nn.Linear, heads: int) -> Float[Tensor, "h d c"]:
    return rearrange(projection.weight, "(h d) c -> h d c", h=heads)


def _out(attention: Module) -> nn.Linear:
    """The last projection, which has another name in SAM than in SAM 2."""
    last: nn.Linear = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
    return last
