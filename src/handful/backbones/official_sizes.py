"""How large a SAM, MobileSAM or SAM 2 is, by the shapes of its weights under the authors' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from math import isqrt

from transformers import Sam2VideoConfig, SamConfig

from handful.backbones.sam import DECODER_EPS
from handful.backbones.tiny_vit import TinyVitShape
from handful.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

DECODER_HEADS = 8
"""Attention heads of the mask decoder: the same in all models of the authors, and not visible in the weights."""
PATCH = 16
"""Pixels of the input per cell of the embeddings, along one side."""
MOBILE_SAM_SIDE = 1024
"""Pixels along MobileSAM's input: no weight depends on it."""


@dataclass(frozen=True)
class Hiera:
    """What the weights of a SAM 2 encoder do not tell."""

    heads: int
    """Of the first stage; each stage has twice those of the one before."""
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]


HIERAS = {
    (1, 2, 7, 2): Hiera(1, (8, 4, 14, 7), (5, 7, 9)),
    (1, 2, 11, 2): Hiera(1, (8, 4, 14, 7), (7, 10, 13)),
    (2, 3, 16, 3): Hiera(2, (8, 4, 14, 7), (12, 16, 20)),
    (2, 6, 36, 4): Hiera(2, (8, 4, 16, 8), (23, 33, 43)),
}
"""Tiny, small, base-plus and large, recognised by the blocks in their stages."""


def sam_config(shapes: Shapes) -> SamConfig:
    grid, width = shapes["image_encoder.pos_embed"][2:]
    patch = shapes["image_encoder.patch_embed.proj.weight"][-1]
    depth = _count(shapes, "image_encoder.blocks.")
    reach = [shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    # A table of 2 s - 1 relative positions belongs to attention over s cells a side: the whole grid, or a window.
    windows = {(rows + 1) // 2 for rows, _ in reach} - {grid}
    if len(windows) > 1:
        raise CheckpointError(f"an image encoder with windows of several sizes, {sorted(windows)}, is not SAM's")
    return SamConfig(
        vision_config={
            "image_size": grid * patch,
            "patch_size": patch,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": width // reach[0][1],
            "window_size": next(iter(windows), grid),
            "global_attn_indexes": [i for i, (rows, _) in enumerate(reach) if rows == 2 * grid - 1],
            "mlp_dim": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
            "output_channels": shapes["image_encoder.neck.0.weight"][0],
            "num_pos_feats": shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"][1],
        },
        prompt_encoder_config=_prompt_encoder_config(shapes, "prompt_encoder", grid * patch, patch),
        mask_decoder_config=_sam_mask_decoder_config(shapes),
    )


def adapter_width(shapes: Shapes) -> int | None:
    """Width of the channel attention of SAM-Med2D's adapters; None without adapters."""
    shape = shapes.get("image_encoder.blocks.0.Adapter.channel.0.weight")
    return None if shape is None else shape[0]


def mobile_sam_config(shapes: Shapes) -> SamConfig:
    """SAM without layers in its image encoder, which TinyViT is to replace."""
    side = MOBILE_SAM_SIDE
    channels = shapes["image_encoder.neck.0.weight"][0]
    return SamConfig(
        vision_config={
            "image_size": side,
            "patch_size": PATCH,
            "hidden_size": channels,
            "num_hidden_layers": 0,
            "output_channels": channels,
            "num_pos_feats": shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"][1],
        },
        prompt_encoder_config=_prompt_encoder_config(shapes, "prompt_encoder", side, PATCH),
        mask_decoder_config=_sam_mask_decoder_config(shapes),
    )


def tiny_vit_shape(shapes: Shapes) -> TinyVitShape:
    prefix = "image_encoder.layers"
    blocks = [_count(shapes, f"{prefix}.{stage}.blocks.") for stage in range(4)]
    widths = [shapes[f"{prefix}.{stage}.blocks.0.attn.proj.weight"][0] for stage in (1, 2, 3)]
    widths.insert(0, shapes["image_encoder.patch_embed.seq.2.c.weight"][0])
    biases = [shapes[f"{prefix}.{stage}.blocks.0.attn.attention_biases"] for stage in (1, 2, 3)]
    return TinyVitShape(
        widths=(widths[0], widths[1], widths[2], widths[3]),
        depths=(blocks[0], blocks[1], blocks[2], blocks[3]),
        heads=(biases[0][0], biases[1][0], biases[2][0]),
        # a table has one column per distance in rows and columns, so as many as the window has cells
        windows=(isqrt(biases[0][1]), isqrt(biases[1][1]), isqrt(biases[2][1])),
        channels=shapes["image_encoder.neck.0.weight"][0],
    )


def sam2_image_config(shapes: Shapes, side: int) -> dict[str, dict[str, object]]:
    trunk = "image_encoder.trunk"
    blocks = [shapes[f"{trunk}.blocks.{i}.norm2.weight"][0] for i in range(_count(shapes, f"{trunk}.blocks."))]
    widths, depths = zip(*[(width, len(list(same))) for width, same in groupby(blocks)], strict=True)
    if depths not in HIERAS:
        known = ", ".join(map(str, HIERAS))
        raise CheckpointError(f"an image encoder with stages of {depths} blocks is none of SAM 2's, which have {known}")
    hiera = HIERAS[depths]
    cells = side // 16
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
                "hidden_size": widths[0],
                "num_attention_heads": hiera.heads,
                "blocks_per_stage": list(depths),
                "embed_dim_per_stage": list(widths),
                "num_attention_heads_per_stage": [hiera.heads * 2**stage for stage in range(4)],
                "window_size_per_stage": list(hiera.windows),
                "global_attention_blocks": list(hiera.global_blocks),
                "window_positional_embedding_background_size": list(shapes[f"{trunk}.pos_embed"][2:]),
            },
            "backbone_channel_list": list(widths[::-1]),
            "backbone_feature_sizes": [[4 * cells] * 2, [2 * cells] * 2, [cells] * 2],
            "fpn_hidden_size": shapes["image_encoder.neck.convs.0.conv.weight"][0],
        },
        "prompt_encoder_config": _prompt_encoder_config(shapes, "sam_prompt_encoder", side, PATCH),
        "mask_decoder_config": {
            **_mask_decoder_config(shapes, "sam_mask_decoder"),
            "mlp_dim": shapes["sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"][0],
        },
    }


def sam2_video_config(shapes: Shapes, side: int) -> Sam2VideoConfig:
    """SAM 2.1 added to SAM 2.0 where a pointer stands in time, and a mark for objects out of sight."""
    fuser = "memory_encoder.fuser.layers"
    return Sam2VideoConfig(
        **sam2_image_config(shapes, side),
        image_size=side,
        num_maskmem=shapes["maskmem_tpos_enc"][0],
        enable_occlusion_spatial_embedding="no_obj_embed_spatial" in shapes,
        enable_temporal_pos_encoding_for_object_pointers="obj_ptr_tpos_proj.weight" in shapes,
        memory_attention_hidden_size=shapes["memory_attention.norm.weight"][0],
        memory_attention_num_layers=_count(shapes, "memory_attention.layers."),
        memory_attention_feed_forward_hidden_size=shapes["memory_attention.layers.0.linear1.weight"][0],
        memory_attention_rope_feat_sizes=[side // 16] * 2,
        memory_encoder_hidden_size=shapes["memory_encoder.pix_feat_proj.weight"][0],
        memory_encoder_output_channels=shapes["memory_encoder.out_proj.weight"][0],
        mask_downsampler_embed_dim=shapes["memory_encoder.mask_downsampler.encoder.12.weight"][0],
        memory_fuser_num_layers=_count(shapes, f"{fuser}."),
        memory_fuser_embed_dim=shapes[f"{fuser}.0.dwconv.weight"][0],
        memory_fuser_intermediate_dim=shapes[f"{fuser}.0.pwconv1.weight"][0],
    )


def _prompt_encoder_config(shapes: Shapes, prefix: str, side: int, patch: int) -> dict[str, object]:
    return {
        "image_size": side,
        "patch_size": patch,
        "hidden_size": shapes[f"{prefix}.no_mask_embed.weight"][1],
        "mask_input_channels": shapes[f"{prefix}.mask_downscaling.3.weight"][0],
    }


def _sam_mask_decoder_config(shapes: Shapes) -> dict[str, object]:
    return {
        **_mask_decoder_config(shapes, "mask_decoder"),
        "mlp_dim": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "layer_norm_eps": DECODER_EPS,
    }


def _mask_decoder_config(shapes: Shapes, prefix: str) -> dict[str, object]:
    tokens, channels = shapes[f"{prefix}.mask_tokens.weight"]
    return {
        "hidden_size": channels,
        "num_hidden_layers": _count(shapes, f"{prefix}.transformer.layers."),
        "num_attention_heads": DECODER_HEADS,
        "num_multimask_outputs": tokens - 1,
        "iou_head_hidden_dim": shapes[f"{prefix}.iou_prediction_head.layers.0.weight"][0],
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many layers are numbered after `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})
