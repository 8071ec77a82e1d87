"""The shape of handful-tiny: a small configuration of SAM 2's own architecture, loaded by transformers as it is."""

from __future__ import annotations

from transformers import Sam2VideoConfig


def tiny_config(side: int = 256, width: int = 32, channels: int = 128) -> Sam2VideoConfig:
    """A Sam2VideoConfig of 4.4 million parameters for slices of `side` × `side` pixels; the weights fit every side.

    `width` is that of Hiera's first stage, `channels` that of features, prompts and mask decoder (a multiple of 64,
    the width of a memory). One mask is predicted an object, without alternatives.
    """
    cells = side // 16
    widths = [width * 2**stage for stage in range(4)]
    return Sam2VideoConfig(
        image_size=side,
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
                "hidden_size": width,
                "num_attention_heads": 1,
                "blocks_per_stage": [1, 2, 5, 2],
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 8, 4],
                "global_attention_blocks": [4, 6],
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
            "fpn_hidden_size": channels,
        },
        prompt_encoder_config={"hidden_size": channels, "image_size": side, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": channels,
            "mlp_dim": 4 * channels,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_multimask_outputs": 1,
            "iou_head_hidden_dim": channels,
            "dynamic_multimask_via_stability": False,
        },
        multimask_output_in_sam=False,
        multimask_output_for_tracking=False,
        memory_attention_hidden_size=channels,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=4 * channels,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[cells, cells],
        memory_encoder_hidden_size=channels,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=4 * channels,
    )
