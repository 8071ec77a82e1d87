"""The configuration of SAM 2's mask decoder and memory that the models trained by handful have in common."""

from __future__ import annotations

from typing import Any


def head_and_memory(channels: int, cells: int) -> dict[str, Any]:
    """Entries of a Sam2VideoConfig for features of so many channels and cells along their side; one mask per object."""
    return {
        "mask_decoder_config": {
            "hidden_size": channels,
            "mlp_dim": 4 * channels,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_multimask_outputs": 1,
            "iou_head_hidden_dim": channels,
            "dynamic_multimask_via_stability": False,
        },
        "multimask_output_in_sam": False,
        "multimask_output_for_tracking": False,
        "memory_attention_hidden_size": channels,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 4 * channels,
        "memory_attention_dropout": 0.0,
        "memory_attention_rope_dropout": 0.0,
        "memory_attention_rope_feat_sizes": [cells, cells],
        "memory_encoder_hidden_size": channels,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": channels,
        "memory_fuser_embed_dim": channels,
        "memory_fuser_intermediate_dim": 4 * channels,
    }
