"""SAM and the medical models made from it: transformers' SamModel behind the backbone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import SamModel

from handful.backbones.base import ImageEmbeddings
from handful.backbones.families import FAMILIES, PADDED, Family
from handful.backbones.prompted import PromptedBackbone

DECODER_EPS = 1e-5
"""Of the mask decoder's layer norms when SAM was trained; transformers builds them with 1e-6."""


class SamBackbone(PromptedBackbone):
    """SAM (ViT) of any size, and models that share its prompt encoder and mask decoder."""

    def __init__(
        self, model: SamModel, name: str, family: Family = FAMILIES["sam"], usual_side: int | None = None
    ) -> None:
        """`usual_side` is the input side of these weights where nobody names one; by default that of the model."""
        vision = model.config.vision_config
        side = int(vision.image_size)
        sides = (side, side // int(vision.patch_size))
        super().__init__(model, name, family, sides, int(vision.output_channels), (PADDED, usual_side or side))
        for layer in self.model.mask_decoder.transformer.layers:
            for norm in (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4):
                norm.eps = DECODER_EPS
        for module in (model.shared_image_embedding, self.model.prompt_encoder.shared_embedding):
            _fix(module, "positional_embedding")

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """One level."""
        pixels = self.family.pixels.encoder_input(slices, self.side)
        return ImageEmbeddings(
            (self.model.vision_encoder(pixels).last_hidden_state,), (slices.shape[-2], slices.shape[-1])
        )


def _fix(module: nn.Module, name: str) -> None:
    """Makes a parameter a buffer: SAM's random projection is a parameter in transformers, but must never train."""
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
