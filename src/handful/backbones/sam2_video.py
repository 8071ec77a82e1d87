"""SAM 2 (video): transformers' Sam2VideoModel as a memory backbone, by public submodules alone, with no session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe

from handful.backbones.base import ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone, PromptEmbeddings
from handful.backbones.decoder import no_mask
from handful.backbones.families import FAMILIES, Family
from handful.backbones.framing import from_square, into_square
from handful.backbones.memory_attention import attend, computes_faster
from handful.backbones.sam2 import Sam2Backbone
from handful.errors import SettingsError
from handful.prompts.prompts import PADDING

if TYPE_CHECKING:
    from transformers import EdgeTamVideoModel, Sam2VideoModel

ABSENT = -1024.0
"""Mask logit of an object that is absent from the slice by its score, as in SAM 2."""


class Sam2VideoBackbone(Sam2Backbone, MemoryBackbone):
    """SAM 2 of any size with its memory, or handful-tiny."""

    def __init__(
        self,
        model: Sam2VideoModel | EdgeTamVideoModel,
        name: str,
        family: Family = FAMILIES["sam2"],
        usual_side: int | None = None,
    ) -> None:
        super().__init__(model, name, family, usual_side)

    def memorize(self, image: ImageEmbeddings, masks: Float[Tensor, "o h w"]) -> Memory:
        truth = (into_square((masks[:, None] > 0).float(), self.side) > 0.5).float()
        present = truth.flatten(1).amax(dim=1, keepdim=True)
        # The mask goes through the decoder once, as a dense prompt, to give the object its pointer. The authors make it
        # of the single-mask token (SAM2Base._use_mask_as_output), transformers of the best of the other tokens.
        hint = into_square(self.model.mask_downsample(truth), self.mask_side)
        prediction = self._decode_alone(
            replace(image, recalled=True), self.model.prompt_encoder.mask_embed(hint), multimask=False
        )
        assert prediction.object_score is not None
        own = self._pointer(prediction, (prediction.object_score > 0).to(prediction.tokens))
        pointer = present * own + (1 - present) * self.model.no_object_pointer
        return self._memory(image, truth, pointer, present, distance=0)

    def remember(
        self,
        image: ImageEmbeddings,
        prediction: MaskPrediction,
        distance: int,
        absent_below: Float[Tensor, " o"] | float = 0.0,
    ) -> Memory:
        if prediction.object_score is None:
            raise SettingsError("only predictions of a memory backbone can be remembered; decode_recalled gives them")
        threshold = torch.as_tensor(absent_below, device=self.device).reshape(-1, 1)
        present = (prediction.object_score > threshold).to(prediction.logits)
        logits = torch.where(present[..., None, None] > 0, prediction.logits, ABSENT)
        inside = from_square(logits, (self.side, self.side)).sigmoid()
        return self._memory(image, inside, self._pointer(prediction, present), present, distance)

    def recall(self, image: ImageEmbeddings, memory: Memory) -> ImageEmbeddings:
        position = self._sine_position(image.main)
        pointers, pointer_position = self._pointer_tokens(memory)
        spatial_position = memory.spatial_position + self._time(memory.distance)[:, None]
        attended = self._attention(image, memory)(
            current_vision_features=rearrange(image.main, "o c h w -> (h w) o c"),
            current_vision_position_embeddings=rearrange(position, "o c h w -> (h w) o c"),
            memory=torch.cat([rearrange(memory.spatial, "o m t c -> (m t) o c"), pointers]),
            memory_posision_embeddings=torch.cat(
                [rearrange(spatial_position, "o m t c -> (m t) o c"), pointer_position]
            ),
            num_object_pointer_tokens=pointers.shape[0],
        )
        main = rearrange(attended, "1 o (h w) c -> o c h w", h=self.feature_side)
        return replace(image, features=(*image.features[:-1], main), recalled=True)

    def decode_recalled(self, image: ImageEmbeddings) -> MaskPrediction:
        # The logits are those of the decoder even if the object score is negative, because training needs them.
        config = self.model.config
        multimask = config.multimask_output_in_sam and config.multimask_output_for_tracking
        return self._decode_alone(image, no_mask(self.model.prompt_encoder), bool(multimask))

    def _decode_alone(self, image: ImageEmbeddings, dense: Tensor, multimask: bool) -> MaskPrediction:
        """One object per row, without clicks: SAM 2 passes one padding point, and the prompt encoder adds another."""
        points = torch.zeros(len(image), 1, 1, 2, device=self.device)
        labels = torch.full((len(image), 1, 1), PADDING, device=self.device, dtype=torch.int)
        sparse, _ = self.model.prompt_encoder(points, labels, None, None)
        dense = dense.expand(len(image), -1, self.feature_side, self.feature_side)
        return self.decode_square(image, PromptEmbeddings(sparse, dense[:, None]), multimask)

    def _attention(self, image: ImageEmbeddings, memory: Memory) -> Callable[..., Tensor]:
        """The memory attention."""
        attention: Callable[..., Tensor] = self.model.memory_attention
        return partial(attend, attention) if computes_faster(attention, image.main) else attention

    def _memory(
        self, image: ImageEmbeddings, inside: Tensor, pointer: Tensor, present: Tensor, distance: int
    ) -> Memory:
        config = self.model.config
        masks = inside * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        spatial, position = self.model.memory_encoder(image.main, masks)
        occlusion = self.model.occlusion_spatial_embedding_parameter
        if occlusion is not None:
            spatial = spatial + ((1 - present) @ occlusion)[..., None, None]
        position = position.expand_as(spatial)
        return Memory(
            rearrange(spatial, "o c h w -> o 1 (h w) c"),
            rearrange(position, "o c h w -> o 1 (h w) c"),
            pointer[:, None],
            (distance,),
            (max(distance, 1),),
        )

    def _pointer(self, prediction: MaskPrediction, present: Float[Tensor, "o 1"]) -> Float[Tensor, "o c"]:
        """The object pointer where the object is present (1), the learned 'no object' one where it is not (0)."""
        pointer: Tensor = self.model.object_pointer_proj(prediction.tokens[:, 0])
        none: Tensor = self.model.no_object_pointer
        return present * pointer + (1 - present) * none

    def _pointer_tokens(self, memory: Memory) -> tuple[Float[Tensor, "t o 64"], Float[Tensor, "t o 64"]]:
        """Pointers cut into pieces of the memory's width, with the time that has passed as their position."""
        pieces = rearrange(memory.pointers, "o p (s c) -> (p s) o c", c=self.model.mem_dim)
        config = self.model.config
        if not config.enable_temporal_pos_encoding_for_object_pointers:
            return pieces, torch.zeros_like(pieces)
        passed = torch.tensor(memory.pointer_distance, device=self.device) / (config.max_object_pointers_in_encoder - 1)
        sine = get_1d_sine_pe(passed.float(), dim=self.channels)
        position = self.model.temporal_positional_encoding_projection_layer(sine)
        splits = self.channels // self.model.mem_dim
        return pieces, position.repeat_interleave(splits, dim=0)[:, None].expand_as(pieces)

    def _time(self, distance: tuple[int, ...]) -> Float[Tensor, "m 64"]:
        """Row d - 1 of the table for a neighbour d slices away, the last row for support slices."""
        rows = [d - 1 for d in distance]
        table: Tensor = self.model.memory_temporal_positional_encoding
        return table[rows, 0, 0]

    def _sine_position(self, features: Tensor) -> Tensor:
        encoding: Tensor = self.model.vision_encoder.neck.position_encoding(
            features.shape, features.device, features.dtype
        )
        return encoding.expand_as(features)
