"""EdgeTAM: a small SAM 2 that squeezes each memory into a few hundred tokens; transformers' model, with no session."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor
from transformers import EdgeTamVideoModel

from handful.backbones.base import Backbone, ImageEmbeddings, Memory
from handful.backbones.sam2 import KeptPosition
from handful.backbones.sam2_video import Sam2VideoBackbone


class EdgeTamBackbone(Sam2VideoBackbone):
    """EdgeTAM with its memory: 512 tokens a slice where SAM 2 keeps 4,096, so that a slice is recalled sooner.

    After Zhou et al., "EdgeTAM: on-device track anything model" (arXiv 2501.07256). Half of the tokens tell of the
    slice as a whole and have no place in it; the other half tell of a window each. The published image encoder,
    RepViT, comes from timm; any other that transformers can put into an EdgeTamVideoModel does as well.
    """

    model: EdgeTamVideoModel

    def __init__(self, model: EdgeTamVideoModel, name: str) -> None:
        Backbone.__init__(self)  # an EdgeTamVideoModel has the parts of a Sam2VideoModel without being one
        vision = model.config.vision_config
        for part in (model.vision_encoder.neck, model.memory_encoder):
            part.position_encoding = KeptPosition(part.position_encoding)
        self.model = model.requires_grad_(False)
        self.name = name
        self.side = int(model.prompt_encoder.input_image_size)
        self.feature_side = int(vision.backbone_feature_sizes[-1][0])
        self.mask_side = 4 * self.feature_side
        self.channels = int(vision.fpn_hidden_size)
        self.eval()

    def recall(self, image: ImageEmbeddings, memory: Memory) -> ImageEmbeddings:
        pointers, pointer_position = self._pointer_tokens(memory)
        spatial_position = memory.spatial_position + self._time(memory.distance)[:, None]
        seen = self.model.memory_attention(
            current_vision_features=rearrange(image.main, "o c h w -> (h w) o c"),
            current_vision_position_embeddings=rearrange(self._sine_position(image.main), "o c h w -> (h w) o c"),
            memory=torch.cat([rearrange(memory.spatial, "o m t c -> (m t) o c"), pointers]),
            memory_posision_embeddings=torch.cat(
                [rearrange(spatial_position, "o m t c -> (m t) o c"), pointer_position]
            ),
            num_object_pointer_tokens=pointers.shape[0],
            # Where one memory ends and the next begins: only the second half of each is turned by its place.
            num_spatial_memory_tokens=memory.spatial.shape[1],
        )
        main = rearrange(seen, "1 o (h w) c -> o c h w", h=self.feature_side)
        return replace(image, features=(*image.features[:-1], main), recalled=True)

    def _memory(self, image: ImageEmbeddings, inside: Tensor, pointer: Tensor, shown: Tensor, distance: int) -> Memory:
        whole = super()._memory(image, inside, pointer, shown, distance)
        maps, places = (
            rearrange(tokens, "o 1 (h w) c -> o c h w", h=self.feature_side)
            for tokens in (whole.spatial, whole.spatial_position)
        )
        # Object by object: transformers' resampler views its expanded latents, which fails for more than one.
        squeezed = [
            self.model.spatial_perceiver(one[None], place[None]) for one, place in zip(maps, places, strict=True)
        ]
        return replace(
            whole,
            spatial=torch.stack([tokens for tokens, _ in squeezed]),
            spatial_position=torch.stack([position for _, position in squeezed]),
        )
