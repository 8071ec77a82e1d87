"""SAM's mask decoder in parts, for methods that tune it or prompt it with tokens of their own.

`decoder` and `prompt_encoder` are those of transformers' SAM or SAM 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def decode_with_tokens(
    decoder: Any,
    main: Float[Tensor, "n c f f"],
    position: Float[Tensor, "1 c f f"],
    tokens: Float[Tensor, "n k t c"],
    finer: Sequence[Tensor],
) -> tuple[Float[Tensor, "n k t c"], Float[Tensor, "n k d s s"]]:
    """The tokens, and the upscaled image, after they have attended to each other.

    The t tokens of a set attend to each other and to one copy of the image; the k sets of a slice are independent.
    `decoder` has the parts of transformers' SamMaskDecoder up to its hypernetworks; `finer` are SAM 2's finer levels,
    none for SAM. A mask is the product of the output of a hypernetwork for a token with the image.
    """
    n, k = tokens.shape[:2]
    answers, image = decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=main.repeat_interleave(k, dim=0),
        image_positional_embeddings=position.expand(n * k, -1, -1, -1),
        attention_similarity=None,
    )
    image = rearrange(image, "(n k) 1 (h w) c -> (n k) c h w", n=n, h=main.shape[-2])
    skips = [level.repeat_interleave(k, dim=0) for level in finer]
    fine_skip, half_skip = skips or (0, 0)  # SAM has none
    half = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + half_skip))
    fine = decoder.activation(decoder.upscale_conv2(half) + fine_skip)
    return answers, rearrange(fine, "(n k) c h w -> n k c h w", n=n)


def single_mask_parts(
    decoder: Any, *, tokens: bool = True, iou: bool = False, finer_levels: bool = False
) -> list[nn.Module]:
    """The parts of the decoder that produce the single mask, without the multi-mask and object-score heads.

    `tokens`: with its own tokens. `iou`: with the head that predicts the mask's IoU. `finer_levels`: with the
    projections of SAM 2's finer levels, which are part of encoding.
    """
    parts = [decoder.transformer, decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2]
    parts.append(decoder.output_hypernetworks_mlps[0])
    names: list[str] = ["iou_token", "mask_tokens", "obj_score_token"] if tokens else []
    names += ["iou_prediction_head"] if iou else []
    names += ["conv_s0", "conv_s1"] if finer_levels else []
    return parts + [getattr(decoder, name) for name in names if hasattr(decoder, name)]


def without_multimask(decoder: Any) -> None:
    """Keep SAM 2 on the single mask: otherwise it may switch to candidate masks, whose heads are not trained."""
    if hasattr(decoder, "dynamic_multimask_via_stability"):
        decoder.dynamic_multimask_via_stability = False


def has_finer_levels(decoder: Any) -> bool:
    """Whether the image embeddings have finer levels in addition to the main one, as in SAM 2."""
    return hasattr(decoder, "conv_s0")


def score_tokens(decoder: Any) -> Float[Tensor, "t c"]:
    """The decoder's own tokens that come before its mask tokens: that of the object score, if any, and of the IoU."""
    return torch.cat([getattr(decoder, n).weight for n in ("obj_score_token", "iou_token") if hasattr(decoder, n)])


def no_mask(prompt_encoder: Any) -> Float[Tensor, "1 c 1 1"]:
    """The embedding added to the main features if there is no mask prompt."""
    embedding: Tensor = prompt_encoder.no_mask_embed.weight
    return embedding[:, :, None, None]


def positive_click_token(prompt_encoder: Any) -> Float[Tensor, " c"]:
    """The embedding of 'a point inside': one Embedding per type in SAM, one row per type in SAM 2."""
    types = prompt_encoder.point_embed
    click: Tensor = types.weight[1] if isinstance(types, nn.Embedding) else types[1].weight[0]
    return click
