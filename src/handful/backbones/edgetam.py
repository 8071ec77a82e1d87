"""EdgeTAM: a small SAM 2 that compresses each memory to a few hundred tokens; transformers' model without a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor
from transformers import EdgeTamVideoModel

from handful.backbones.base import ImageEmbeddings, Memory
from handful.backbones.families import FAMILIES, Family
from handful.backbones.sam2_video import Sam2VideoBackbone


class EdgeTamBackbone(Sam2VideoBackbone):
    """EdgeTAM with its memory: 512 tokens per slice instead of the 4,096 of SAM 2, so that recalling is faster.

    After Zhou et al., "EdgeTAM: on-device track anything model" (arXiv 2501.07256). Half of the tokens tell of the
    slice as a whole and have no place in it; the other half tell of a window each. The published image encoder,
    RepViT, comes from timm; any other that transformers can put into an EdgeTamVideoModel does as well.
    """

    def __init__(
        self,
        model: EdgeTamVideoModel,
        name: str,
        family: Family = FAMILIES["sam2"],
        usual_side: int | None = None,
    ) -> None:
        super().__init__(model, name, family, usual_side)

    def _attention(self, image: ImageEmbeddings, memory: Memory) -> Callable[..., Tensor]:
        # It needs the length of one memory, because only the second half of each gets rotary position encoding.
        return partial(self.model.memory_attention, num_spatial_memory_tokens=memory.spatial.shape[1])

    def _memory(
        self, image: ImageEmbeddings, inside: Tensor, pointer: Tensor, present: Tensor, distance: int
    ) -> Memory:
        whole = super()._memory(image, inside, pointer, present, distance)
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
