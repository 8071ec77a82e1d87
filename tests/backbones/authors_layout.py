"""The authors' names of every weight of SAM, its relatives and SAM 2, written down one by one.

Kept apart from the loader's own table on purpose: the loader is judged by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Pairs = Iterator[tuple[str, str]]


def authors_state(model: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """A transformers model's weights as the authors would save them; pairs that name no weight of it are left out."""
    state = model.state_dict()
    out = {authors: state[ours] for authors, ours in pairs if ours in state}
    kinds = state.get("prompt_encoder.point_embed.weight")
    if kinds is not None:  # SAM 2 in transformers keeps the four kinds of point in one table
        for kind in range(4):
            out[f"sam_prompt_encoder.point_embeddings.{kind}.weight"] = kinds[kind : kind + 1]
    return out


def _both(authors: str, ours: str) -> Pairs:
    for what in ("weight", "bias"):
        yield f"{authors}.{what}", f"{ours}.{what}"


def sam_pairs(layers: int) -> Pairs:
    yield "image_encoder.pos_embed", "vision_encoder.pos_embed"
    yield from _both("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection")
    for i in range(layers):
        theirs, ours = f"image_encoder.blocks.{i}", f"vision_encoder.layers.{i}"
        yield from _both(f"{theirs}.norm1", f"{ours}.layer_norm1")
        yield from _both(f"{theirs}.norm2", f"{ours}.layer_norm2")
        yield from _both(f"{theirs}.attn.qkv", f"{ours}.attn.qkv")
        yield from _both(f"{theirs}.attn.proj", f"{ours}.attn.proj")
        yield f"{theirs}.attn.rel_pos_h", f"{ours}.attn.rel_pos_h"
        yield f"{theirs}.attn.rel_pos_w", f"{ours}.attn.rel_pos_w"
        yield from _both(f"{theirs}.mlp.lin1", f"{ours}.mlp.lin1")
        yield from _both(f"{theirs}.mlp.lin2", f"{ours}.mlp.lin2")
    yield "image_encoder.neck.0.weight", "vision_encoder.neck.conv1.weight"
    yield from _both("image_encoder.neck.1", "vision_encoder.neck.layer_norm1")
    yield "image_encoder.neck.2.weight", "vision_encoder.neck.conv2.weight"
    yield from _both("image_encoder.neck.3", "vision_encoder.neck.layer_norm2")
    for kind in range(4):
        yield f"prompt_encoder.point_embeddings.{kind}.weight", f"prompt_encoder.point_embed.{kind}.weight"
    yield from _prompt_encoder_pairs("prompt_encoder")
    yield from _mask_decoder_pairs("mask_decoder", out="out_proj", mlp=("lin1", "lin2"))


def sam2_image_pairs(blocks: int) -> Pairs:
    yield "no_mem_embed", "no_memory_embedding"
    trunk, backbone = "image_encoder.trunk", "vision_encoder.backbone"
    yield f"{trunk}.pos_embed", f"{backbone}.pos_embed"
    yield f"{trunk}.pos_embed_window", f"{backbone}.pos_embed_window"
    yield from _both(f"{trunk}.patch_embed.proj", f"{backbone}.patch_embed.projection")
    for i in range(blocks):
        theirs, ours = f"{trunk}.blocks.{i}", f"{backbone}.blocks.{i}"
        yield from _both(f"{theirs}.norm1", f"{ours}.layer_norm1")
        yield from _both(f"{theirs}.norm2", f"{ours}.layer_norm2")
        yield from _both(f"{theirs}.attn.qkv", f"{ours}.attn.qkv")
        yield from _both(f"{theirs}.attn.proj", f"{ours}.attn.proj")
        yield from _both(f"{theirs}.mlp.layers.0", f"{ours}.mlp.proj_in")
        yield from _both(f"{theirs}.mlp.layers.1", f"{ours}.mlp.proj_out")
        yield from _both(f"{theirs}.proj", f"{ours}.proj")
    for level in range(4):
        yield from _both(f"image_encoder.neck.convs.{level}.conv", f"vision_encoder.neck.convs.{level}")
    yield from _prompt_encoder_pairs("sam_prompt_encoder")
    yield from _mask_decoder_pairs("sam_mask_decoder", out="o_proj", mlp=("proj_in", "proj_out"))
    yield from _both("sam_mask_decoder.conv_s0", "mask_decoder.conv_s0")
    yield from _both("sam_mask_decoder.conv_s1", "mask_decoder.conv_s1")
    yield "sam_mask_decoder.obj_score_token.weight", "mask_decoder.obj_score_token.weight"
    yield from _mlp_pairs("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head")


def sam2_video_pairs(blocks: int, memory_layers: int) -> Pairs:
    yield from sam2_image_pairs(blocks)
    yield "maskmem_tpos_enc", "memory_temporal_positional_encoding"
    yield "no_mem_pos_enc", "no_memory_positional_encoding"
    yield "no_obj_ptr", "no_object_pointer"
    yield "no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"
    yield from _both("mask_downsample", "mask_downsample")
    yield from _mlp_pairs("obj_ptr_proj", "object_pointer_proj")
    yield from _both("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer")
    for i in range(memory_layers):
        layer = f"memory_attention.layers.{i}"
        for attention in ("self_attn", "cross_attn_image"):
            for which in "qkv":
                yield from _both(f"{layer}.{attention}.{which}_proj", f"{layer}.{attention}.{which}_proj")
            yield from _both(f"{layer}.{attention}.out_proj", f"{layer}.{attention}.o_proj")
        yield from _both(f"{layer}.linear1", f"{layer}.linear1")
        yield from _both(f"{layer}.linear2", f"{layer}.linear2")
        for j in (1, 2, 3):
            yield from _both(f"{layer}.norm{j}", f"{layer}.layer_norm{j}")
    yield from _both("memory_attention.norm", "memory_attention.layer_norm")
    down = "memory_encoder.mask_downsampler"
    for i in range(4):
        yield from _both(f"{down}.encoder.{3 * i}", f"{down}.layers.{i}.conv")
        yield from _both(f"{down}.encoder.{3 * i + 1}", f"{down}.layers.{i}.layer_norm")
    yield from _both(f"{down}.encoder.12", f"{down}.final_conv")
    yield from _both("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection")
    for i in range(2):
        theirs, ours = f"memory_encoder.fuser.layers.{i}", f"memory_encoder.memory_fuser.layers.{i}"
        yield f"{theirs}.gamma", f"{ours}.scale"
        yield from _both(f"{theirs}.dwconv", f"{ours}.depthwise_conv")
        yield from _both(f"{theirs}.norm", f"{ours}.layer_norm")
        yield from _both(f"{theirs}.pwconv1", f"{ours}.pointwise_conv1")
        yield from _both(f"{theirs}.pwconv2", f"{ours}.pointwise_conv2")
    yield from _both("memory_encoder.out_proj", "memory_encoder.projection")


def _prompt_encoder_pairs(theirs: str) -> Pairs:
    ours = "prompt_encoder"
    yield f"{theirs}.pe_layer.positional_encoding_gaussian_matrix", f"{ours}.shared_embedding.positional_embedding"
    yield f"{theirs}.not_a_point_embed.weight", f"{ours}.not_a_point_embed.weight"
    yield f"{theirs}.no_mask_embed.weight", f"{ours}.no_mask_embed.weight"
    for index, name in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3")):
        yield from _both(f"{theirs}.mask_downscaling.{index}", f"{ours}.mask_embed.{name}")


def _mask_decoder_pairs(theirs: str, out: str, mlp: tuple[str, str]) -> Pairs:
    ours = "mask_decoder"
    official_mlp = ("lin1", "lin2") if mlp == ("lin1", "lin2") else ("layers.0", "layers.1")
    for i in (0, 1):
        layer = f"transformer.layers.{i}"
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from _attention_pairs(f"{theirs}.{layer}.{attention}", f"{ours}.{layer}.{attention}", out)
        for j in (1, 2, 3, 4):
            yield from _both(f"{theirs}.{layer}.norm{j}", f"{ours}.{layer}.layer_norm{j}")
        for authors, transformers in zip(official_mlp, mlp, strict=True):
            yield from _both(f"{theirs}.{layer}.mlp.{authors}", f"{ours}.{layer}.mlp.{transformers}")
    final = "transformer.final_attn_token_to_image"
    yield from _attention_pairs(f"{theirs}.{final}", f"{ours}.{final}", out)
    yield from _both(f"{theirs}.transformer.norm_final_attn", f"{ours}.transformer.layer_norm_final_attn")
    yield f"{theirs}.iou_token.weight", f"{ours}.iou_token.weight"
    yield f"{theirs}.mask_tokens.weight", f"{ours}.mask_tokens.weight"
    yield from _both(f"{theirs}.output_upscaling.0", f"{ours}.upscale_conv1")
    yield from _both(f"{theirs}.output_upscaling.1", f"{ours}.upscale_layer_norm")
    yield from _both(f"{theirs}.output_upscaling.3", f"{ours}.upscale_conv2")
    for i in range(4):
        yield from _mlp_pairs(f"{theirs}.output_hypernetworks_mlps.{i}", f"{ours}.output_hypernetworks_mlps.{i}")
    yield from _mlp_pairs(f"{theirs}.iou_prediction_head", f"{ours}.iou_prediction_head")


def _attention_pairs(theirs: str, ours: str, out: str) -> Pairs:
    for which in "qkv":
        yield from _both(f"{theirs}.{which}_proj", f"{ours}.{which}_proj")
    yield from _both(f"{theirs}.out_proj", f"{ours}.{out}")


def _mlp_pairs(theirs: str, ours: str) -> Pairs:
    yield from _both(f"{theirs}.layers.0", f"{ours}.proj_in")
    yield from _both(f"{theirs}.layers.1", f"{ours}.layers.0")
    yield from _both(f"{theirs}.layers.2", f"{ours}.proj_out")


def mobile_sam_encoder(
    widths: tuple[int, int, int, int],
    depths: tuple[int, int, int, int],
    heads: tuple[int, int, int],
    windows: tuple[int, int, int],
    channels: int = 256,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of TinyViT's weights in MobileSAM's file, the classifier included."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def convolution(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.c.weight"] = (out, into, kernel, kernel)
        for what in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{what}"] = (out,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    first = widths[0]
    convolution("patch_embed.seq.0", first // 2, 3, 3)
    convolution("patch_embed.seq.2", first, first // 2, 3)
    for block in range(depths[0]):
        name = f"layers.0.blocks.{block}"
        convolution(f"{name}.conv1", 4 * first, first, 1)
        convolution(f"{name}.conv2", 4 * first, 1, 3)
        convolution(f"{name}.conv3", first, 4 * first, 1)
    for stage, (width, depth, count, window) in enumerate(
        zip(widths[1:], depths[1:], heads, windows, strict=True), start=1
    ):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            shapes[f"{name}.attn.attention_biases"] = (count, window**2)
            norm(f"{name}.attn.norm", width)
            linear(f"{name}.attn.qkv", 3 * width, width)
            linear(f"{name}.attn.proj", width, width)
            norm(f"{name}.mlp.norm", width)
            linear(f"{name}.mlp.fc1", 4 * width, width)
            linear(f"{name}.mlp.fc2", width, 4 * width)
            convolution(f"{name}.local_conv", width, 1, 3)
    for stage in range(3):
        into, out = widths[stage : stage + 2]
        convolution(f"layers.{stage}.downsample.conv1", out, into, 1)
        convolution(f"layers.{stage}.downsample.conv2", out, 1, 3)
        convolution(f"layers.{stage}.downsample.conv3", out, out, 1)
    norm("norm_head", widths[3])
    linear("head", 1000, widths[3])
    shapes["neck.0.weight"], shapes["neck.2.weight"] = (channels, widths[3], 1, 1), (channels, channels, 3, 3)
    norm("neck.1", channels)
    norm("neck.3", channels)
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def sam_med2d_adapter(width: int, block: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapter of one block in SAM-Med2D's file."""
    name = f"image_encoder.blocks.{block}.Adapter"
    return {
        f"{name}.norm.weight": (width,),
        f"{name}.norm.bias": (width,),
        f"{name}.channel.0.weight": (width // 4, width),
        f"{name}.channel.2.weight": (width, width // 4),
        f"{name}.spatial.0.weight": (width, width, 3, 3),
        f"{name}.spatial.2.weight": (width, width, 4, 4),
    }


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of these names and shapes, the same ones for one seed, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 1 + 0.3 * noise.abs()
        elif len(shape) == 1 and name.endswith("weight"):
            state[name] = 1 + 0.1 * noise
        else:
            state[name] = noise / max(noise[0].numel() if noise.dim() > 1 else 100, 16) ** 0.5
    return state


def sam_med3d(
    side: int = 128,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    global_blocks: tuple[int, ...] = (2, 5, 8, 11),
    channels: int = 384,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of SAM-Med3D's weights; patches of 16 voxels and windows of 14 tokens, as published."""
    grid, shapes = side // 16, dict[str, tuple[int, ...]]()

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0] if bias is None else bias,)

    shapes["image_encoder.pos_embed"] = (1, grid, grid, grid, width)
    layer("image_encoder.patch_embed.proj", width, 1, 16, 16, 16)
    for number in range(depth):
        block, reach = f"image_encoder.blocks.{number}", grid if number in global_blocks else 14
        for norm in ("norm1", "norm2"):
            layer(f"{block}.{norm}", width)
        layer(f"{block}.attn.qkv", 3 * width, width)
        layer(f"{block}.attn.proj", width, width)
        for axis in "dhw":
            shapes[f"{block}.attn.rel_pos_{axis}"] = (2 * reach - 1, width // heads)
        layer(f"{block}.mlp.lin1", 4 * width, width)
        layer(f"{block}.mlp.lin2", width, 4 * width)
    shapes["image_encoder.neck.0.weight"] = (channels, width, 1, 1, 1)
    shapes["image_encoder.neck.2.weight"] = (channels, channels, 3, 3, 3)
    for norm in (1, 3):
        layer(f"image_encoder.neck.{norm}", channels)
    _sam_med3d_prompts(shapes, channels)
    _sam_med3d_decoder(shapes, channels)
    return shapes


def _sam_med3d_prompts(shapes: dict[str, tuple[int, ...]], channels: int) -> None:
    shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (3, channels // 3)
    for name in ("point_embeddings.0", "point_embeddings.1", "not_a_point_embed", "no_mask_embed"):
        shapes[f"prompt_encoder.{name}.weight"] = (1, channels)
    for number, shape in (
        (0, (4, 1, 2, 2, 2)),
        (1, (4,)),
        (3, (16, 4, 2, 2, 2)),
        (4, (16,)),
        (6, (channels, 16, 1, 1, 1)),
    ):
        shapes[f"prompt_encoder.mask_downscaling.{number}.weight"] = shape
        shapes[f"prompt_encoder.mask_downscaling.{number}.bias"] = shape[:1]


def _sam_med3d_decoder(shapes: dict[str, tuple[int, ...]], channels: int) -> None:
    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        full = f"mask_decoder.{name}"
        shapes[f"{full}.weight"], shapes[f"{full}.bias"] = shape, (shape[0] if bias is None else bias,)

    def attention(name: str, inner: int) -> None:
        for part in "qkv":
            layer(f"{name}.{part}_proj", inner, channels)
        layer(f"{name}.out_proj", channels, inner)

    for number in range(2):
        block = f"transformer.layers.{number}"
        attention(f"{block}.self_attn", channels)
        attention(f"{block}.cross_attn_token_to_image", channels // 2)
        attention(f"{block}.cross_attn_image_to_token", channels // 2)
        for norm in range(1, 5):
            layer(f"{block}.norm{norm}", channels)
        layer(f"{block}.mlp.lin1", 2048, channels)
        layer(f"{block}.mlp.lin2", channels, 2048)
    attention("transformer.final_attn_token_to_image", channels // 2)
    layer("transformer.norm_final_attn", channels)
    shapes["mask_decoder.iou_token.weight"], shapes["mask_decoder.mask_tokens.weight"] = (1, channels), (4, channels)
    layer("output_upscaling.0", channels, channels // 4, 2, 2, 2, bias=channels // 4)
    layer("output_upscaling.1", channels // 4)
    layer("output_upscaling.3", channels // 4, channels // 8, 2, 2, 2, bias=channels // 8)
    heads = [(f"output_hypernetworks_mlps.{number}", channels, channels // 8) for number in range(4)]
    for name, hidden, out in (*heads, ("iou_prediction_head", 256, 4)):
        for number, (into, outof) in enumerate(((channels, hidden), (hidden, hidden), (hidden, out))):
            layer(f"{name}.layers.{number}", outof, into)
