"""The authors' names of the weights of SAM and its relatives, and transformers' names for the same.

Each row is (authors' name, transformers' name); `*` stands for the same piece in both; the first row that begins a key
counts. A key that no row begins has no place in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor


def from_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SAM state dict under transformers' names; keys that have no place there keep theirs, but for `UNUSED`.

    SAM-Med2D's adapters lie parallel to the MLPs, as `add_sam_med2d_adapters` puts them.
    """
    adapted = any(".Adapter." in key for key in state)
    names = (*ADAPTED_MLP, *SAM) if adapted else SAM
    out = _renamed({key: tensor for key, tensor in state.items() if key not in UNUSED}, names)
    return _with_two_projections(out)


def from_sam_med3d(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SAM-Med3D state dict under transformers' names for SAM; keys that have no place there keep theirs."""
    return _renamed({key: tensor for key, tensor in state.items() if key not in UNUSED}, SAM)


def from_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A MobileSAM state dict under the names of a SamModel whose `vision_encoder` is a TinyVit.

    The classifier, a leftover of the encoder's own pre-training, is dropped.
    """
    kept = {key: tensor for key, tensor in state.items() if not key.startswith((*UNUSED, *CLASSIFIER))}
    heads = {
        key.removesuffix("attention_biases"): len(tensor) for key, tensor in kept.items() if "attention_biases" in key
    }
    ordered = {
        key: _query_key_value(tensor, heads[key[: key.index("qkv.")]]) if ".attn.qkv." in key else tensor
        for key, tensor in kept.items()
    }
    return _with_two_projections(_renamed(ordered, MOBILE_SAM))


def _query_key_value(rows: Tensor, heads: int) -> Tensor:
    """Rows of a fused layer, stored head by head, as all queries, all keys, all values."""
    return rearrange(rows, "(heads part d) ... -> (part heads d) ...", heads=heads, part=3)


def from_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SAM 2 state dict under transformers' names; keys that have no place there keep theirs."""
    out = _renamed(state, SAM2)
    kinds = [out.pop(f"prompt_encoder.point_embed.{kind}.weight") for kind in range(4)]  # one table in transformers
    out["prompt_encoder.point_embed.weight"] = torch.cat(kinds)
    return _with_two_projections(out)


def _with_two_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers keeps the random projection of positions twice."""
    name = "shared_embedding.positional_embedding"
    return state | {"shared_image_embedding.positional_embedding": state[f"prompt_encoder.{name}"]}


def _renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    rows = [
        (re.compile(re.escape(authors).replace(r"\*", "([^.]+)") + r"(?=\.|$)"), transformers.replace("*", "{}"))
        for authors, transformers in names
    ]
    return {_rename(key, rows): tensor for key, tensor in state.items()}


def _rename(key: str, rows: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, transformers in rows:
        found = pattern.match(key)
        if found:
            return transformers.format(*found.groups()) + key[found.end() :]
    return key


Names = tuple[tuple[str, str], ...]

UNUSED = ("pixel_mean", "pixel_std")
"""Keys of early SAM files that are constants: ImageNet's mean and standard deviation."""
CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")


def _same(*names: str) -> Names:
    return tuple((name, name) for name in names)


def _three_layers(authors: str, transformers: str) -> Names:
    return (
        (f"{authors}.layers.0", f"{transformers}.proj_in"),
        (f"{authors}.layers.1", f"{transformers}.layers.0"),
        (f"{authors}.layers.2", f"{transformers}.proj_out"),
    )


def _two_layers(authors: str, transformers: str) -> Names:
    return ((f"{authors}.layers.0", f"{transformers}.proj_in"), (f"{authors}.layers.1", f"{transformers}.proj_out"))


def _prompt_encoder(authors: str) -> Names:
    ours = "prompt_encoder"
    return (
        (f"{authors}.pe_layer.positional_encoding_gaussian_matrix", f"{ours}.shared_embedding.positional_embedding"),
        (f"{authors}.point_embeddings.*", f"{ours}.point_embed.*"),
        (f"{authors}.not_a_point_embed", f"{ours}.not_a_point_embed"),
        (f"{authors}.no_mask_embed", f"{ours}.no_mask_embed"),
        (f"{authors}.mask_downscaling.0", f"{ours}.mask_embed.conv1"),
        (f"{authors}.mask_downscaling.1", f"{ours}.mask_embed.layer_norm1"),
        (f"{authors}.mask_downscaling.3", f"{ours}.mask_embed.conv2"),
        (f"{authors}.mask_downscaling.4", f"{ours}.mask_embed.layer_norm2"),
        (f"{authors}.mask_downscaling.6", f"{ours}.mask_embed.conv3"),
    )


def _mask_decoder(authors: str) -> Names:
    """What the decoders of SAM and SAM 2 share."""
    ours = "mask_decoder"
    return (
        (f"{authors}.transformer.layers.*.norm*", f"{ours}.transformer.layers.*.layer_norm*"),
        (f"{authors}.transformer.norm_final_attn", f"{ours}.transformer.layer_norm_final_attn"),
        (f"{authors}.transformer", f"{ours}.transformer"),
        (f"{authors}.iou_token", f"{ours}.iou_token"),
        (f"{authors}.mask_tokens", f"{ours}.mask_tokens"),
        (f"{authors}.output_upscaling.0", f"{ours}.upscale_conv1"),
        (f"{authors}.output_upscaling.1", f"{ours}.upscale_layer_norm"),
        (f"{authors}.output_upscaling.3", f"{ours}.upscale_conv2"),
        *_three_layers(f"{authors}.output_hypernetworks_mlps.*", f"{ours}.output_hypernetworks_mlps.*"),
        *_three_layers(f"{authors}.iou_prediction_head", f"{ours}.iou_prediction_head"),
    )


SAM: Names = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.blocks.*.norm*", "vision_encoder.layers.*.layer_norm*"),
    ("image_encoder.blocks.*.attn", "vision_encoder.layers.*.attn"),
    ("image_encoder.blocks.*.mlp", "vision_encoder.layers.*.mlp"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    *_prompt_encoder("prompt_encoder"),
    *_mask_decoder("mask_decoder"),
)

ADAPTED_MLP: Names = (
    ("image_encoder.blocks.*.mlp", "vision_encoder.layers.*.mlp.mlp"),
    ("image_encoder.blocks.*.Adapter", "vision_encoder.layers.*.mlp.adapter"),
)

MOBILE_SAM: Names = (
    ("image_encoder", "vision_encoder"),
    *_prompt_encoder("prompt_encoder"),
    *_mask_decoder("mask_decoder"),
)

SAM2: Names = (
    ("image_encoder.trunk.pos_embed", "vision_encoder.backbone.pos_embed"),
    ("image_encoder.trunk.pos_embed_window", "vision_encoder.backbone.pos_embed_window"),
    ("image_encoder.trunk.patch_embed.proj", "vision_encoder.backbone.patch_embed.projection"),
    ("image_encoder.trunk.blocks.*.norm*", "vision_encoder.backbone.blocks.*.layer_norm*"),
    ("image_encoder.trunk.blocks.*.attn", "vision_encoder.backbone.blocks.*.attn"),
    ("image_encoder.trunk.blocks.*.proj", "vision_encoder.backbone.blocks.*.proj"),
    *_two_layers("image_encoder.trunk.blocks.*.mlp", "vision_encoder.backbone.blocks.*.mlp"),
    ("image_encoder.neck.convs.*.conv", "vision_encoder.neck.convs.*"),
    *_prompt_encoder("sam_prompt_encoder"),
    ("sam_mask_decoder.transformer.layers.*.*.out_proj", "mask_decoder.transformer.layers.*.*.o_proj"),
    ("sam_mask_decoder.transformer.*.out_proj", "mask_decoder.transformer.*.o_proj"),
    *_two_layers("sam_mask_decoder.transformer.layers.*.mlp", "mask_decoder.transformer.layers.*.mlp"),
    *_mask_decoder("sam_mask_decoder"),
    ("sam_mask_decoder.conv_s0", "mask_decoder.conv_s0"),
    ("sam_mask_decoder.conv_s1", "mask_decoder.conv_s1"),
    ("sam_mask_decoder.obj_score_token", "mask_decoder.obj_score_token"),
    *_three_layers("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head"),
    ("memory_attention.layers.*.*.out_proj", "memory_attention.layers.*.*.o_proj"),
    ("memory_attention.layers.*.norm*", "memory_attention.layers.*.layer_norm*"),
    ("memory_attention.norm", "memory_attention.layer_norm"),
    *_same("memory_attention.layers"),
    ("memory_encoder.mask_downsampler.encoder.0", "memory_encoder.mask_downsampler.layers.0.conv"),
    ("memory_encoder.mask_downsampler.encoder.1", "memory_encoder.mask_downsampler.layers.0.layer_norm"),
    ("memory_encoder.mask_downsampler.encoder.3", "memory_encoder.mask_downsampler.layers.1.conv"),
    ("memory_encoder.mask_downsampler.encoder.4", "memory_encoder.mask_downsampler.layers.1.layer_norm"),
    ("memory_encoder.mask_downsampler.encoder.6", "memory_encoder.mask_downsampler.layers.2.conv"),
    ("memory_encoder.mask_downsampler.encoder.7", "memory_encoder.mask_downsampler.layers.2.layer_norm"),
    ("memory_encoder.mask_downsampler.encoder.9", "memory_encoder.mask_downsampler.layers.3.conv"),
    ("memory_encoder.mask_downsampler.encoder.10", "memory_encoder.mask_downsampler.layers.3.layer_norm"),
    ("memory_encoder.mask_downsampler.encoder.12", "memory_encoder.mask_downsampler.final_conv"),
    ("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection"),
    ("memory_encoder.fuser.layers.*.dwconv", "memory_encoder.memory_fuser.layers.*.depthwise_conv"),
    ("memory_encoder.fuser.layers.*.pwconv*", "memory_encoder.memory_fuser.layers.*.pointwise_conv*"),
    ("memory_encoder.fuser.layers.*.norm", "memory_encoder.memory_fuser.layers.*.layer_norm"),
    ("memory_encoder.fuser.layers.*.gamma", "memory_encoder.memory_fuser.layers.*.scale"),
    ("memory_encoder.out_proj", "memory_encoder.projection"),
    *_three_layers("obj_ptr_proj", "object_pointer_proj"),
    ("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    *_same("mask_downsample"),
)
