"""SAM and its relatives small enough for tests: the true architectures with seeded random weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamModel,
)

from handful.backbones.edgetam import EdgeTamBackbone
from handful.backbones.families import FAMILIES
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.backbones.sam_med2d import add_sam_med2d_adapters
from handful.backbones.small import SmallBackbone, SmallShape, small_model
from handful.backbones.tiny_vit import TinyVit, TinyVitShape

SIDE = 128


def tiny_sam(seed: int = 0, side: int = SIDE) -> SamBackbone:
    """SAM with two ViT layers, one of them global: 0.2 million parameters."""
    return SamBackbone(_random(SamModel(sam_config(side)), seed), "tiny-sam")


def tiny_medsam(seed: int = 0, side: int = SIDE) -> SamBackbone:
    """The weights of `tiny_sam`, on MedSAM's pixels."""
    return SamBackbone(_random(SamModel(sam_config(side)), seed), "tiny-medsam", FAMILIES["medsam"])


def tiny_sam_med2d(seed: int = 0, side: int = SIDE) -> SamBackbone:
    """SAM with SAM-Med2D's adapters."""
    model = SamModel(sam_config(side))
    add_sam_med2d_adapters(model, inner=12)
    return SamBackbone(_random(model, seed), "tiny-sam-med2d", FAMILIES["sam-med2d"])


def tiny_mobile_sam(seed: int = 0, side: int = SIDE) -> SamBackbone:
    """SAM's prompt encoder and decoder behind a narrow TinyViT."""
    config = sam_config(side)
    config.vision_config.num_hidden_layers = 0
    model = SamModel(config)
    model.vision_encoder = TinyVit(
        TinyVitShape(widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(2, 2, 4), windows=(7, 14, 7), channels=64)
    )
    return SamBackbone(_random(model, seed), "tiny-mobile-sam", FAMILIES["mobile-sam"])


def tiny_sam2(seed: int = 0, side: int = SIDE) -> Sam2Backbone:
    """SAM 2 for images, a narrow Hiera."""
    return Sam2Backbone(_random(Sam2Model(sam2_config(side)), seed), "tiny-sam2")


def tiny_sam2_video(seed: int = 0, side: int = SIDE) -> Sam2VideoBackbone:
    """SAM 2 with its memory, a narrow Hiera."""
    return Sam2VideoBackbone(_random(Sam2VideoModel(sam2_video_config(side)), seed), "tiny-sam2-video")


def tiny_edgetam(seed: int = 0, side: int = SIDE, windows: int = 4, memory_2_1: bool = False) -> EdgeTamBackbone:
    """EdgeTAM's memory over a narrow Hiera, for RepViT needs timm: 2 × `windows`² tokens a memory, 16 as published.

    `memory_2_1`: with what SAM 2.1 has in its memory and EdgeTAM as published lacks.
    """
    cells, channels = side // 16, 128  # wider than a memory: transformers' session fails where they are equal
    parts = _image_parts(side)
    parts["vision_config"]["fpn_hidden_size"] = channels
    for part in ("prompt_encoder_config", "mask_decoder_config"):
        parts[part]["hidden_size"] = channels
    config = EdgeTamVideoConfig(
        **parts,
        image_size=side,
        enable_occlusion_spatial_embedding=memory_2_1,
        enable_temporal_pos_encoding_for_object_pointers=memory_2_1,
        memory_attention_hidden_size=channels,
        memory_attention_mlp_hidden_size=96,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[cells, cells],
        memory_attention_rope_k_sizes=[windows, windows],
        perceiver_resampler_num_latents=windows**2,
        perceiver_resampler_num_latents_2d=windows**2,
        memory_encoder_hidden_size=channels,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=96,
    )
    return EdgeTamBackbone(_random(EdgeTamVideoModel(config), seed), "tiny-edgetam")


def tiny_small(seed: int = 0, side: int = SIDE) -> SmallBackbone:
    """handful-small at half its width."""
    return SmallBackbone(_random(small_model(SmallShape(channels=64), side), seed), "tiny-small")


def sam_config(side: int = SIDE, decoder_eps: float = 1e-5) -> SamConfig:
    return SamConfig(
        vision_config={
            "image_size": side,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "window_size": 4,
            "global_attn_indexes": [1],
            "output_channels": 64,
            "num_pos_feats": 32,
            "mlp_dim": 96,
        },
        prompt_encoder_config={"hidden_size": 64, "image_size": side, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 64,
            "mlp_dim": 128,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": 64,
            "layer_norm_eps": decoder_eps,
        },
    )


def sam2_config(side: int = SIDE) -> Sam2Config:
    return Sam2Config(**_image_parts(side))


def sam2_video_config(side: int = SIDE, memory_2_0: bool = False) -> Sam2VideoConfig:
    """`memory_2_0`: without what SAM 2.1 added to the memory of 2.0."""
    cells = side // 16
    return Sam2VideoConfig(
        **_image_parts(side),
        image_size=side,
        enable_occlusion_spatial_embedding=not memory_2_0,
        enable_temporal_pos_encoding_for_object_pointers=not memory_2_0,
        memory_attention_hidden_size=64,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=96,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[cells, cells],
        memory_encoder_hidden_size=64,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=64,
        memory_fuser_embed_dim=64,
        memory_fuser_intermediate_dim=96,
    )


def _image_parts(side: int) -> dict[str, dict[str, object]]:
    """Hiera tiny's stages, windows and global blocks at a sixth of its width."""
    cells = side // 16
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
                "hidden_size": 16,
                "num_attention_heads": 1,
                "embed_dim_per_stage": [16, 32, 64, 128],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
            "fpn_hidden_size": 64,
        },
        "prompt_encoder_config": {"hidden_size": 64, "image_size": side, "mask_input_channels": 8},
        "mask_decoder_config": {
            "hidden_size": 64,
            "mlp_dim": 96,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": 64,
        },
    }


def _random(model: nn.Module, seed: int) -> nn.Module:
    """Every weight drawn anew, also those that transformers starts at nought, so that nothing is hidden by zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("positional_embedding"):
                tensor.copy_(noise)
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.1 * noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
                tensor.copy_(noise / max(fan_in, 16) ** 0.5)
        # one random projection in every SAM, of which transformers keeps two copies
        shared = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(shared)
    return model


@torch.no_grad()
def moved(parts: Iterable[nn.Module]) -> None:
    """Change weights as a training might."""
    for part in parts:
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
