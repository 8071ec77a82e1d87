"""The network that `Interactive` trains: a copy of the backbone, and a head that predicts errors of its masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.prompts.prompt_mix import packed
from handful.prompts.prompts import Prompts
from handful.tuning.lora import add_lora
from handful.tuning.seeds import seeded
from handful.tuning.trainable import freeze_all_but


class InteractiveNetwork(nn.Module):
    """A copy of the backbone with trainable prompt encoder and mask decoder.

    Optionally, low-rank updates of the image encoder and a head that predicts errors are trained, too. The encoder's
    own weights stay shared with the backbone.
    """

    def __init__(self, backbone: Backbone, encoder_rank: int = 0, error_head: bool = False, seed: int = 0) -> None:
        super().__init__()
        copied = [backbone.mask_decoder, backbone.prompt_encoder]
        self.fork = backbone.fork_sharing_weights(copied) if encoder_rank else backbone.fork()
        decoder: Any = self.fork.mask_decoder
        self.trained = nn.ModuleDict({"mask_decoder": decoder, "prompt_encoder": self.fork.prompt_encoder})
        if error_head:
            with seeded(seed):
                self.trained["error_head"] = ErrorHead(backbone.channels).to(backbone.device)
        if encoder_rank:
            generator = torch.Generator().manual_seed(seed)
            self.trained["encoder"] = nn.ModuleList(add_lora(self.fork.image_encoder, encoder_rank, generator))
        trained_parts = [part for name, part in self.trained.items() if name != "mask_decoder"]
        freeze_all_but(self.trained, *single_mask_parts(decoder, iou=True), *trained_parts)
        prompt_encoder: Any = self.fork.prompt_encoder
        prompt_encoder.shared_embedding.requires_grad_(False)  # the image uses this positional encoding, too
        without_multimask(decoder)

    def forward(self, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]) -> MaskPrediction:
        """Masks in the model frame, for prompts in pixels of slices of `size` (h, w); one call for all labels."""
        return self.fork.decode_square(image, self.fork.embed(packed(prompts), size))

    def errors(self, image: ImageEmbeddings, prediction: MaskPrediction) -> Float[Tensor, "n k s s"] | None:
        """Logits that each pixel of a predicted mask is wrong; None without the error head."""
        if "error_head" not in self.trained:
            return None
        errors: Tensor = self.trained["error_head"](image.main.detach(), prediction.logits.detach())
        return errors


class ErrorHead(nn.Module):
    """A small CNN from image features and mask logits to the logits that a pixel of the mask is wrong."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.mix = nn.Conv2d(width + 2, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, -2.0)  # most pixels are right

    def forward(self, features: Float[Tensor, "n c f f"], logits: Float[Tensor, "n k s s"]) -> Float[Tensor, "n k s s"]:
        n, k, s, _ = logits.shape
        reduced = F.interpolate(self.reduce(features), (s, s), mode="bilinear", align_corners=False)
        inside = logits.flatten(0, 1)[:, None].sigmoid()
        uncertainty = 4 * inside * (1 - inside)
        joined = torch.cat([reduced.repeat_interleave(k, dim=0), inside, uncertainty], dim=1)
        errors: Tensor = self.out(F.gelu(self.mix(joined)))
        return errors.reshape(n, k, s, s)
