"""SAM 2's memory attention for predictions on a processor: the same results as transformers' module, in less time.

Ravi et al., "SAM 2: segment anything in images and videos" (arXiv 2408.00714). Two facts save work. The weights of an
attention sum to 1, so the mean of projected values is the projection of their mean: values are averaged at the 64
channels of a memory, not at the 256 of the features. And a few rows of the image at a time go through the attention and
the feed-forward layer, so that what lies between stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex64, Float
from torch import Tensor

WEIGHTS = 2**22
"""Attention weights that are held at once."""
Module = Any
"""Sam2VideoMemoryAttention of transformers, or a part of it; transformers states no types of its layers."""


def computes_faster(attention: Module, features: Tensor) -> bool:
    """Whether `attend` may replace the module: on a processor, in float32, without gradients, with one head."""
    return (
        features.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(layer.cross_attn_image.num_attention_heads == 1 for layer in attention.layers)
    )


def attend(
    attention: Module,
    *,
    current_vision_features: Float[Tensor, "t o c"],
    current_vision_position_embeddings: Float[Tensor, "t o c"],
    memory: Float[Tensor, "n o m"],
    memory_posision_embeddings: Float[Tensor, "n o m"],
    num_object_pointer_tokens: int,
) -> Float[Tensor, "1 o t c"]:
    """The features of each object's image, combined with its memory; arguments and result as those of the module."""
    features = (current_vision_features + 0.1 * current_vision_position_embeddings).transpose(0, 1)
    values, places = memory.transpose(0, 1), memory_posision_embeddings.transpose(0, 1)
    cos, sin = attention.rotary_emb(features, attention.position_ids)
    turn = torch.complex(cos[0, :, ::2].contiguous(), sin[0, :, ::2].contiguous())
    objects = [
        _object(attention, own, value, place, turn, num_object_pointer_tokens)
        for own, value, place in zip(features, values, places, strict=True)
    ]
    return torch.stack(objects)[None]


def _object(
    attention: Module,
    features: Float[Tensor, "t c"],
    values: Float[Tensor, "n m"],
    places: Float[Tensor, "n m"],
    turn: Complex64[Tensor, "t p"],
    pointers: int,
) -> Float[Tensor, "t c"]:
    for layer in attention.layers:
        features = features + _self_attention(layer.self_attn, layer.layer_norm1(features), turn)
        keys = layer.cross_attn_image.k_proj(values + places)
        keys = torch.cat([_rotated(keys[: len(keys) - pointers], turn), keys[len(keys) - pointers :]])
        features = torch.cat(list(_combined(layer, features, keys, values, turn)))
    normed: Tensor = attention.layer_norm(features)
    return normed


def _self_attention(
    attention: Module, features: Float[Tensor, "t c"], turn: Complex64[Tensor, "t p"]
) -> Float[Tensor, "t c"]:
    query, key = (_rotated(project(features), turn) for project in (attention.q_proj, attention.k_proj))
    value = attention.v_proj(features)
    mean = F.scaled_dot_product_attention(
        query[None, None], key[None, None], value[None, None], scale=attention.scaling
    )
    projected: Tensor = attention.o_proj(mean[0, 0])
    return projected


def _combined(
    layer: Module,
    features: Float[Tensor, "t c"],
    keys: Float[Tensor, "n c"],
    values: Float[Tensor, "n m"],
    turn: Complex64[Tensor, "t p"],
) -> Iterator[Float[Tensor, "r c"]]:
    """A few rows at a time: attention to the memory, then the feed-forward layer."""
    attention = layer.cross_attn_image
    rows = max(1, WEIGHTS // len(keys))
    for part, turned in zip(torch.split(features, rows), torch.split(turn, rows), strict=True):
        query = _rotated(attention.q_proj(layer.layer_norm2(part)), turned) * attention.scaling
        weights = torch.softmax(query @ keys.T, dim=1)
        seen = part + attention.o_proj(attention.v_proj(weights @ values))
        yield seen + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(seen))))


def _rotated(features: Float[Tensor, "n c"], turn: Complex64[Tensor, "t p"]) -> Float[Tensor, "n c"]:
    """Rotary position codes: neighbouring channels are turned like complex numbers; n is a multiple of t."""
    pairs = torch.view_as_complex(features.view(-1, *turn.shape, 2))
    return torch.view_as_real(pairs * turn).reshape(features.shape)
