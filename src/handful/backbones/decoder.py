"""SAM's mask decoder in parts, for methods that tune it or prompt it with tokens of their own.

`decoder` and `prompt_encoder` are those of transformers' SAM or SAM 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.two_way import two_way


@dataclass(frozen=True, eq=False)
class FinePixels:
    """The image as the decoder enlarged it: a vector per pixel, those of one cell of the main level one after another.

    In this order the enlarging layers are matrix products, and no large tensor is rearranged, which takes half the time
    of transposed convolutions.
    """

    vectors: Float[Tensor, "n k p d"]
    cells: tuple[int, int]
    """Rows and columns of the main level."""
    steps: tuple[int, int]
    """How many times each of the two layers enlarged it."""

    def masks(self, weights: Float[Tensor, "n k m d"]) -> Float[Tensor, "n k m s s"]:
        """m masks of each set: the product of each pixel with the output of a hypernetwork for a token."""
        (h, w), (a, b) = self.cells, self.steps
        masks = weights @ self.vectors.transpose(2, 3)
        return rearrange(
            masks, "n k m (h w a1 a2 b1 b2) -> n k m (h a1 b1) (w a2 b2)", h=h, w=w, a1=a, a2=a, b1=b, b2=b
        )


def decode_with_tokens(
    decoder: Any,
    main: Float[Tensor, "n c f f"],
    position: Float[Tensor, "1 c f f"],
    tokens: Float[Tensor, "n k t c"],
    finer: Sequence[Tensor],
) -> tuple[Float[Tensor, "n k t c"], FinePixels]:
    """The tokens, and the enlarged image, after they have attended to each other.

    The t tokens of a set attend to each other and to one copy of the image; the k sets of a slice are independent.
    `decoder` has the parts of transformers' SamMaskDecoder up to its hypernetworks; `finer` are SAM 2's finer levels,
    none for SAM.
    """
    answers, pixels = two_way(
        decoder.transformer,
        tokens,
        rearrange(main, "n c h w -> n 1 (h w) c"),
        rearrange(position, "1 c h w -> (h w) c"),
    )
    cells = (main.shape[-2], main.shape[-1])
    steps = (decoder.upscale_conv1.stride[0], decoder.upscale_conv2.stride[0])
    fine_skip, half_skip = (_by_cell(level, cells, steps[0]) for level in finer) if finer else (None, None)
    half = _enlarged(decoder.upscale_conv1, pixels, half_skip)
    norm = decoder.upscale_layer_norm
    half = decoder.activation(F.layer_norm(half, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
    fine = decoder.activation(_enlarged(decoder.upscale_conv2, half, fine_skip))
    return answers, FinePixels(fine, cells, steps)


def _enlarged(
    layer: nn.ConvTranspose2d, pixels: Float[Tensor, "n k p c"], skip: Float[Tensor, "n 1 q d"] | None
) -> Float[Tensor, "n k q d"]:
    """What a transposed convolution makes of each pixel, whose squares do not overlap: q = p · stride²; plus `skip`."""
    assert layer.bias is not None
    squares = layer.stride[0] ** 2
    weight, bias = rearrange(layer.weight, "c d a b -> (a b d) c"), layer.bias.repeat(squares)
    fine = rearrange(F.linear(pixels, weight, bias), "n k p (s d) -> n k (p s) d", s=squares)
    return fine if skip is None else fine + skip


def _by_cell(level: Float[Tensor, "n d h w"], cells: tuple[int, int], step: int) -> Float[Tensor, "n 1 q d"]:
    """A finer level of the image in the order of `FinePixels`; `step` is that of the first enlarging layer."""
    (h, w), a = cells, step
    b = level.shape[-2] // (h * a)
    return rearrange(level, "n d (h a1 b1) (w a2 b2) -> n 1 (h w a1 a2 b1 b2) d", h=h, w=w, a1=a, a2=a, b1=b, b2=b)


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
