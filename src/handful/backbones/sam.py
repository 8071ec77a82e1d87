"""SAM and the medical models made from it: transformers' SamModel behind the backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SamModel

from handful.backbones.base import ImageEmbeddings
from handful.backbones.decoder import decode_with_tokens
from handful.backbones.framing import from_square, normalised, resized
from handful.backbones.prompted import PromptedBackbone

DECODER_EPS = 1e-5
"""Of the mask decoder's layer norms when SAM was trained; transformers builds them with 1e-6."""


class SamBackbone(PromptedBackbone):
    """SAM (ViT) of any size. A slice's longest side becomes the square's side; the rest is padded, right and below."""

    def __init__(self, model: SamModel, name: str) -> None:
        vision = model.config.vision_config
        side = int(vision.image_size)
        super().__init__(model, name, side, side // int(vision.patch_size), int(vision.output_channels))
        for layer in self.model.mask_decoder.transformer.layers:
            for norm in (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4):
                norm.eps = DECODER_EPS
        for module in (model.shared_image_embedding, self.model.prompt_encoder.shared_embedding):
            _fix(module, "positional_embedding")

    def _encode(self, slices: Float[Tensor, "n c h w"]) -> ImageEmbeddings:
        """One level. SAM pads after the colours are normalised, so padding is 0, ImageNet's mean."""
        h, w = slices.shape[-2:]
        pixels = self._padded(normalised(resized(slices, self._content((h, w)))))
        return ImageEmbeddings((self.model.vision_encoder(pixels).last_hidden_state,), (h, w))

    def to_model_frame(self, masks: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
        """Padding counts as outside. Slice by slice, for the way leads through the full square."""
        h, w = masks.shape[-2:]
        squares = (self._padded(resized(mask, self._content((h, w)))) for mask in torch.split(masks, 1))
        return torch.cat([F.interpolate(square, size=(side, side), mode="area") for square in squares])

    def to_image_frame(self, logits: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        h, w = self._content(size)
        squares = (from_square(logit, (self.side, self.side)) for logit in torch.split(logits, 1))
        return torch.cat([from_square(square[..., :h, :w], size) for square in squares])

    def _content(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.side / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def _padded(self, content: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c side side"]:
        return F.pad(content, (0, self.side - content.shape[-1], 0, self.side - content.shape[-2]))

    def _candidates(
        self, image: ImageEmbeddings, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As transformers' mask decoder, which keeps its tokens to itself and paints masks that nobody asked for."""
        decoder, (n, k) = self.model.mask_decoder, sparse.shape[:2]
        wanted = range(1, decoder.num_mask_tokens) if multimask else range(1)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(n, k, -1, -1)
        answers, fine = decode_with_tokens(
            decoder, image.main + dense, self.position_encoding(), torch.cat([own, sparse], dim=2), ()
        )
        tokens = torch.stack([answers[:, :, 1 + i] for i in wanted], dim=2)
        painters = [decoder.output_hypernetworks_mlps[i](tokens[:, :, j]) for j, i in enumerate(wanted)]
        masks = torch.einsum("nkmc,nkchw->nkmhw", torch.stack(painters, dim=2), fine)
        iou = decoder.iou_prediction_head(answers[:, :, 0])[:, :, wanted.start : wanted.stop]
        return masks, iou, tokens, None


def _fix(module: nn.Module, name: str) -> None:
    """Makes a parameter a buffer: transformers has SAM's random projection as one, which must never train."""
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
