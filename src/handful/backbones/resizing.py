"""SAM and SAM 2 for square inputs of another side than they were trained with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import EdgeTamVideoModel, Sam2Model, Sam2VideoModel, SamModel

    _Sam2 = TypeVar("_Sam2", Sam2Model, Sam2VideoModel, EdgeTamVideoModel)


def resize_sam(model: SamModel, side: int) -> None:
    """Prepares a SAM for squares of `side` pixels, in place.

    The absolute positions of the image encoder are interpolated, as SAMed and SAM-Med2D do; transformers interpolates
    the relative ones itself. An encoder without absolute positions, as MobileSAM's, is left alone.
    """
    vision, prompts = model.config.vision_config, model.config.prompt_encoder_config
    cells = side // int(vision.patch_size)
    vision.image_size = prompts.image_size = side
    prompts.image_embedding_size = cells
    model.prompt_encoder.input_image_size = side
    model.prompt_encoder.image_embedding_size = (cells, cells)
    encoder = model.vision_encoder
    if getattr(encoder, "pos_embed", None) is not None:
        encoder.image_size = side
        encoder.patch_embed.image_size = (side, side)
        encoder.pos_embed = nn.Parameter(_interpolated(encoder.pos_embed.detach(), cells), requires_grad=False)


def resized_sam2(model: _Sam2, side: int) -> _Sam2:
    """The same weights in a model for squares of `side` pixels; no weight of SAM 2 depends on it."""
    config = copy.deepcopy(model.config)
    cells = side // int(config.prompt_encoder_config.patch_size)
    config.prompt_encoder_config.image_size = side
    config.vision_config.backbone_feature_sizes = [[4 * cells] * 2, [2 * cells] * 2, [cells] * 2]
    if hasattr(config.vision_config.backbone_config, "image_size"):
        config.vision_config.backbone_config.image_size = [side, side]
    if hasattr(config, "memory_attention_rope_feat_sizes"):
        config.image_size = side
        config.memory_attention_rope_feat_sizes = [cells, cells]
    new = type(model)(config)
    new.load_state_dict(model.state_dict())
    return new


def _interpolated(positions: Float[Tensor, "1 i j c"], cells: int) -> Float[Tensor, "1 cells cells c"]:
    maps = rearrange(positions, "1 i j c -> 1 c i j")
    maps = F.interpolate(maps, (cells, cells), mode="bilinear", align_corners=False)
    return rearrange(maps, "1 c i j -> 1 i j c")
