"""The architecture of handful-tiny: a small configuration of SAM 2 that transformers loads without further code."""

from __future__ import annotations

from torch import nn
from transformers import Sam2VideoConfig, Sam2VideoModel

from handful.backbones.sam2_head import head_and_memory


def tiny_config(
    side: int = 256, width: int = 32, channels: int = 128, blocks: tuple[int, int, int, int] = (1, 2, 5, 2)
) -> Sam2VideoConfig:
    """Return a Sam2VideoConfig of 4.4 million parameters for slices of `side` × `side` pixels.

    The parameters do not depend on `side`, so weights trained at one side load at every other.

    `width` is the width of the first stage of Hiera (SAM 2's encoder), `blocks` the number of blocks in each of its
    four stages. `channels` is the width of features, prompts and mask decoder; it must be a multiple of 64, the width
    of a memory. The decoder predicts one mask per object. Attention is global in the second and in the second-last
    block of the third stage, and limited to windows elsewhere.
    """
    cells = side // 16
    third = blocks[0] + blocks[1]
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
                "blocks_per_stage": list(blocks),
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 8, 4],
                "global_attention_blocks": sorted({third + 1, third + max(1, blocks[2] - 2)}),
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
            "fpn_hidden_size": channels,
        },
        prompt_encoder_config={"hidden_size": channels, "image_size": side, "patch_size": 16},
        **head_and_memory(channels, cells),
    )


def initialise(model: Sam2VideoModel) -> None:
    """Initialise a new model as the authors of SAM do; transformers would start every weight near zero.

    In addition, the query and key projections of the mask decoder's cross-attentions start with equal weights. A click
    then attends to its own position from the first step; otherwise the decoder ignores clicks for thousands of steps.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding | nn.LayerNorm):
            module.reset_parameters()
    decoder = model.mask_decoder.transformer
    crossings = [decoder.final_attn_token_to_image]
    for layer in decoder.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in crossings:
        nn.init.normal_(attention.q_proj.weight, std=0.15)
        attention.k_proj.load_state_dict(attention.q_proj.state_dict())
    hiera = getattr(model.vision_encoder, "backbone", None)  # handful-small has another encoder
    positions = [] if hiera is None else [hiera.pos_embed, hiera.pos_embed_window]
    for table in (*positions, model.memory_temporal_positional_encoding):
        nn.init.trunc_normal_(table, std=0.02)
    nn.init.normal_(model.no_object_pointer, std=0.02)
    # points and image must share one random positional encoding; a model made from a configuration has two
    code = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(code)
