"""What SAM and SAM 2 have in common: one prompt encoder, all labels in one decoder call, the best candidate chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings, MaskPrediction, PromptEmbeddings
from handful.backbones.decoder import decode_with_tokens, no_mask, score_tokens
from handful.backbones.families import Family
from handful.backbones.framing import PixelPolicy, points_in_square
from handful.prompts.prompts import Prompts

if TYPE_CHECKING:  # only the one that is loaded is imported
    from transformers import EdgeTamVideoModel, Sam2Model, Sam2VideoModel, SamModel


class PromptedBackbone(Backbone):
    """A transformers model with the submodules `vision_encoder`, `prompt_encoder` and `mask_decoder`, frozen."""

    model: SamModel | Sam2Model | Sam2VideoModel | EdgeTamVideoModel

    def __init__(
        self,
        model: SamModel | Sam2Model | Sam2VideoModel | EdgeTamVideoModel,
        name: str,
        family: Family,
        sides: tuple[int, int],
        channels: int,
        usual_input: tuple[PixelPolicy, int],
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.name, self.family, self.usual_input = name, family, usual_input
        self.side, self.feature_side = sides
        self.mask_side = 4 * self.feature_side
        self.channels = channels
        self.eval()

    @property
    def image_encoder(self) -> nn.Module:  # type: ignore[override]
        module: nn.Module = self.model.vision_encoder
        return module

    @property
    def prompt_encoder(self) -> nn.Module:  # type: ignore[override]
        module: nn.Module = self.model.prompt_encoder
        return module

    @property
    def mask_decoder(self) -> nn.Module:  # type: ignore[override]
        module: nn.Module = self.model.mask_decoder
        return module

    def embed(self, prompts: Prompts, size: tuple[int, int]) -> PromptEmbeddings:
        """Tokens of points and boxes (unused slots are SAM's own 'not a point'); of masks, a dense map a label."""
        prompts = prompts.to(self.device)
        n, sparse = prompts.shape[0], self._tokens(prompts, size)
        if prompts.masks is None:
            return PromptEmbeddings(sparse)
        # Padding is no part of any object: it takes the mask's lowest logit.
        lowest = prompts.masks.amin(dim=(2, 3), keepdim=True).clamp(max=0)
        masks = self.to_model_frame(prompts.masks - lowest, self.mask_side) + lowest
        dense = self.model.prompt_encoder.mask_embed(rearrange(masks, "n k h w -> (n k) 1 h w"))
        return PromptEmbeddings(sparse, rearrange(dense, "(n k) c h w -> n k c h w", n=n))

    def _tokens(self, prompts: Prompts, size: tuple[int, int]) -> Float[Tensor, "n k t c"]:
        """Tokens of points, then those of boxes."""
        content = self.family.pixels.content(size, self.side)
        sparse: Tensor | None
        sparse, _ = self.model.prompt_encoder(*points_in_square(prompts, size, content), None)
        if sparse is None:
            return torch.zeros(*prompts.shape, 0, self.channels, device=self.device)
        if prompts.boxes is None:
            return sparse
        points = 0 if prompts.points is None else prompts.points.shape[2]
        boxed = (prompts.boxes != 0).any(dim=2)[..., None, None]
        corners = torch.where(boxed, sparse[:, :, points:], self.model.prompt_encoder.not_a_point_embed.weight)
        return torch.cat([sparse[:, :, :points], corners], dim=2)

    def decode_square(
        self, image: ImageEmbeddings, prompt: PromptEmbeddings, multimask: bool = False
    ) -> MaskPrediction:
        n, k = prompt.sparse.shape[:2]
        sparse, dense = prompt.sparse, prompt.dense
        if dense is not None:  # one dense map a label: fold the labels into the batch
            image = image.repeat_interleave(k)
            sparse, dense = rearrange(sparse, "n k t c -> (n k) 1 t c"), rearrange(dense, "n k c h w -> (n k) c h w")
        else:
            dense = no_mask(self.model.prompt_encoder)
        masks, iou, tokens, score = self._candidates(image, sparse, dense, multimask)
        best = iou.argmax(dim=2, keepdim=True)
        side = masks.shape[-1]
        masks = masks.gather(2, best[..., None, None].expand(-1, -1, -1, side, side))
        tokens = tokens.gather(2, best[..., None].expand(-1, -1, -1, tokens.shape[-1]))
        return MaskPrediction(
            masks.reshape(n, k, side, side),
            iou.gather(2, best).reshape(n, k),
            None if score is None else score.reshape(n, k),
            tokens.reshape(n, k, -1),
        )

    def to_model_frame(self, masks: Float[Tensor, "n k h w"], side: int) -> Float[Tensor, "n k side side"]:
        return self.family.pixels.into_frame(masks, self.side, side)

    def to_image_frame(self, logits: Float[Tensor, "n k s s"], size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
        return self.family.pixels.from_frame(logits, self.side, size)

    def position_encoding(self) -> Float[Tensor, "1 c f f"]:
        encoding: Tensor = self.model.get_image_wide_positional_embeddings()
        return encoding.detach()

    def _candidates(
        self, image: ImageEmbeddings, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Masks (n, k, m, s, s), their IoUs (n, k, m) and tokens (n, k, m, c), object scores where there are any.

        As transformers' mask decoder, but only the masks that are wanted, in less time, and with their tokens.
        """
        decoder: Any = self.model.mask_decoder
        before = score_tokens(decoder)
        own = torch.cat([before, decoder.mask_tokens.weight]).expand(*sparse.shape[:2], -1, -1)
        added = dense if image.recalled else dense + self.no_memory()
        answers, pixels = decode_with_tokens(
            decoder, image.main + added, self.position_encoding(), torch.cat([own, sparse], dim=2), image.features[:-1]
        )
        stable = not multimask and getattr(decoder, "dynamic_multimask_via_stability", False) and not decoder.training
        last = decoder.num_mask_tokens if multimask or stable else 1
        wanted = range(1 if multimask else 0, last)
        tokens = answers[:, :, len(before) :][:, :, wanted.start : wanted.stop]
        weights = [decoder.output_hypernetworks_mlps[i](tokens[:, :, j]) for j, i in enumerate(wanted)]
        masks = pixels.masks(torch.stack(weights, dim=2))
        iou = decoder.iou_prediction_head(answers[:, :, len(before) - 1])[:, :, wanted.start : wanted.stop]
        score = decoder.pred_obj_score_head(answers[:, :, 0]) if len(before) > 1 else None
        if stable:
            masks, iou = decoder._dynamic_multimask_via_stability(masks, iou)
            tokens = tokens[:, :, :1]
        return masks, iou, tokens, score
