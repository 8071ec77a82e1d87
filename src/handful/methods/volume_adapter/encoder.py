"""The encoder of a stack of neighbouring slices, with the parts that use several of its depths."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction, PromptEmbeddings
from handful.prompts.prompts import Prompts
from handful.tuning.adapters import transformer_blocks

DEPTHS = 4
"""Blocks of the encoder whose outputs the multi-layer head uses, at even distances."""


class StackBackbone(Backbone):
    """A backbone with depth adapters: the slices of one call are one stack, in their order.

    With `layers`, outputs of several blocks of the encoder are added to the finest feature level.
    """

    def __init__(self, own: Backbone, reach: int, layers: MultiLayer | None) -> None:
        super().__init__()
        self.own, self.reach, self.layers = own, reach, layers
        self.name, self.family, self.usual_input = own.name, own.family, own.usual_input
        self.side, self.mask_side, self.feature_side = own.side, own.mask_side, own.feature_side
        self.channels, self.most_at_once = own.channels, own.most_at_once
        self.eval()

    @property
    def image_encoder(self) -> nn.Module:  # type: ignore[override]
        return self.own.image_encoder

    @property
    def prompt_encoder(self) -> nn.Module:  # type: ignore[override]
        return self.own.prompt_encoder

    @property
    def mask_decoder(self) -> nn.Module:  # type: ignore[override]
        return self.own.mask_decoder

    @property
    def embedding_size(self) -> int:
        return self.own.embedding_size if self.layers is None else self.layers.embedding_size

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        if self.layers is None:
            return self.own._encode(slices)
        with _outputs(tapped_blocks(self.image_encoder)) as outputs:
            image = self.own._encode(slices)
        return self.layers(image, outputs)  # type: ignore[no-any-return]

    def embed(self, prompts: Prompts, size: tuple[int, int]) -> PromptEmbeddings:
        return self.own.embed(prompts, size)

    def decode_square(
        self, image: ImageEmbeddings, prompt: PromptEmbeddings, multimask: bool = False
    ) -> MaskPrediction:
        return self.own.decode_square(image, prompt, multimask)

    def to_model_frame(self, masks: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
        return self.own.to_model_frame(masks, side)

    def to_image_frame(self, logits: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        return self.own.to_image_frame(logits, size)

    def position_encoding(self) -> Float[Tensor, "1 c f f"]:
        return self.own.position_encoding()

    def no_memory(self) -> Float[Tensor, "1 c 1 1"]:
        return self.own.no_memory()

    def encoding_parts(self) -> tuple[nn.Module, ...]:
        parts = self.own.encoding_parts()
        return parts if self.layers is None else (*parts, self.layers)


class MultiLayer(nn.Module):
    """Outputs of several blocks, joined by convolutions over rows, columns and slices; zero at the start.

    After the mask decoder of 3DSAM-adapter (Gong et al., arXiv 2306.13465), which joins the outputs of four depths.
    Here the result is added to the finest feature level, which SAM's mask decoder reads where there is one. For SAM,
    which has one level, the finer levels are zeros plus this result.
    """

    def __init__(self, own: Backbone) -> None:
        super().__init__()
        self.narrowest, self.side = own.channels // 8, own.mask_side
        self.main_size = own.channels * own.feature_side**2
        widths = [block.layer_norm2.normalized_shape[0] for block in tapped_blocks(own.image_encoder)]
        self.reduce = nn.ModuleList(nn.Linear(width, self.narrowest) for width in widths)
        self.mix = nn.Conv3d(self.narrowest, self.narrowest, 3, padding=1, padding_mode="replicate")
        self.out = nn.Conv2d(self.narrowest, self.narrowest, 1)
        _to_zero(self.out)

    @property
    def embedding_size(self) -> int:
        """Numbers in the embeddings of one slice, those of the two levels that SAM lacks included."""
        return self.main_size + (4 * self.narrowest + 2 * self.narrowest) * (self.side // 2) ** 2

    def forward(self, image: ImageEmbeddings, outputs: Sequence[Float[Tensor, "n _ _ _"]]) -> ImageEmbeddings:
        size = (self.side, self.side)
        parts = [rearrange(reduce(one), "n r s d -> n d r s") for reduce, one in zip(self.reduce, outputs, strict=True)]
        joined = torch.stack([F.interpolate(part, size, mode="bilinear", align_corners=False) for part in parts]).sum(0)
        mixed = _as_slices(self.mix(_as_stack(F.gelu(joined))))
        added: Tensor = self.out(F.gelu(mixed))
        if len(image.features) == 1:
            half = added.new_zeros(len(added), 2 * self.narrowest, self.side // 2, self.side // 2)
            return dataclasses.replace(image, features=(added, half, image.main))
        return dataclasses.replace(image, features=(image.features[0] + added, *image.features[1:]))


class PromptGenerator(nn.Module):
    """A small 3D U-Net on the main feature level, whose output takes the place of clicks; zero at the start.

    After Li et al., "AutoProSAM" (arXiv 2308.14936).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(8, channels // 8)
        self.reduce = nn.Conv3d(channels, narrow, 1)
        self.fine = nn.Conv3d(narrow, narrow, 3, padding=1, padding_mode="replicate")
        self.coarse = nn.Conv3d(narrow, 2 * narrow, 3, padding=1, padding_mode="replicate")
        self.join = nn.Conv3d(3 * narrow, narrow, 3, padding=1, padding_mode="replicate")
        self.out = nn.Conv3d(narrow, channels, 1)
        _to_zero(self.out)

    def forward(self, main: Float[Tensor, "n c f f"]) -> Float[Tensor, "n c f f"]:
        fine = F.gelu(self.fine(F.gelu(self.reduce(F.instance_norm(_as_stack(main))))))
        coarse = F.gelu(self.coarse(F.avg_pool3d(fine, (1, 2, 2))))
        coarse = F.interpolate(coarse, fine.shape[2:], mode="nearest")
        return _as_slices(self.out(F.gelu(self.join(torch.cat([fine, coarse], dim=1)))))


def tapped_blocks(encoder: nn.Module) -> list[Any]:
    """Up to DEPTHS transformer blocks at even distances, the last one included."""
    blocks = transformer_blocks(encoder)
    places = {round((part + 1) * len(blocks) / DEPTHS) - 1 for part in range(DEPTHS)}
    return [blocks[place] for place in sorted(places) if place >= 0]


@contextmanager
def _outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of the blocks, in their order, as far as this thread computes them."""
    found: list[Tensor] = []
    thread = threading.get_ident()

    def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
        if threading.get_ident() == thread:
            found.append(output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _as_stack(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "1 c n h w"]:
    return rearrange(maps, "n c h w -> 1 c n h w")


def _as_slices(stack: Float[Tensor, "1 c n h w"]) -> Float[Tensor, "n c h w"]:
    return rearrange(stack, "1 c n h w -> n c h w")


def _to_zero(layer: nn.Conv2d | nn.Conv3d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
