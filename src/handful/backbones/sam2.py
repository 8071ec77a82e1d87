"""SAM 2 for single images: transformers' Sam2Model behind the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import ImageEmbeddings
from handful.backbones.families import FAMILIES, STRETCHED, Family
from handful.backbones.hiera import without_waste
from handful.backbones.prompted import PromptedBackbone

if TYPE_CHECKING:
    from transformers import EdgeTamVideoModel, Sam2Model, Sam2VideoModel


class Sam2Backbone(PromptedBackbone):
    """SAM 2 without its memory.

    The 'no memory' embedding is added when decoding, not when encoding, so that memories can use the same embeddings.
    """

    def __init__(
        self,
        model: Sam2Model | Sam2VideoModel | EdgeTamVideoModel,
        name: str,
        family: Family = FAMILIES["sam2"],
        usual_side: int | None = None,
    ) -> None:
        """`usual_side` is the input side of these weights where nobody names one; by default that of the model."""
        side = int(model.prompt_encoder.input_image_size)
        vision = model.config.vision_config
        sides = (side, int(vision.backbone_feature_sizes[-1][0]))
        _keep_positions(model)
        without_waste(model)
        super().__init__(model, name, family, sides, int(vision.fpn_hidden_size), (STRETCHED, usual_side or side))

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        pixels = self.family.pixels.encoder_input(slices, self.side)
        levels = list(self.model.vision_encoder(pixels).fpn_hidden_states)
        levels[0] = self.model.mask_decoder.conv_s0(levels[0])
        levels[1] = self.model.mask_decoder.conv_s1(levels[1])
        return ImageEmbeddings(tuple(levels), (slices.shape[-2], slices.shape[-1]))

    @property
    def embedding_size(self) -> int:
        """Three levels: the finest has the side of masks, the next twice that of the main level."""
        decoder, cells = self.model.mask_decoder, self.feature_side**2
        finest, finer = int(decoder.conv_s0.out_channels), int(decoder.conv_s1.out_channels)
        return finest * self.mask_side**2 + (4 * finer + self.channels) * cells

    def encoding_parts(self) -> tuple[nn.Module, ...]:
        return (self.image_encoder, self.model.mask_decoder.conv_s0, self.model.mask_decoder.conv_s1)

    def no_memory(self) -> Float[Tensor, "1 c 1 1"]:
        embedding: Tensor = self.model.no_memory_embedding
        return rearrange(embedding, "1 1 c -> 1 c 1 1")


class KeptPosition(nn.Module):
    """Sine position codes, computed once per shape: transformers keeps the last shape only, an encode needs three."""

    def __init__(self, sine: nn.Module) -> None:
        super().__init__()
        self.sine = sine
        self.kept: dict[tuple[object, ...], Tensor] = {}

    def forward(
        self, shape: torch.Size, device: torch.device | str, dtype: torch.dtype, mask: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        if mask is not None:
            masked: Tensor = self.sine(shape, device, dtype, mask)
            return masked
        key = (*shape[-2:], str(device), dtype)
        if key not in self.kept:
            with torch.inference_mode(False):
                self.kept[key] = self.sine(torch.Size((1, *shape[1:])), device, dtype)
        return self.kept[key].expand(shape[0], -1, -1, -1)


def _keep_positions(model: nn.Module) -> None:
    for module in model.modules():
        sine = getattr(module, "position_encoding", None)
        if isinstance(sine, nn.Module) and not isinstance(sine, KeptPosition):
            module.position_encoding = KeptPosition(sine)
