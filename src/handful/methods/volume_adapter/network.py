"""The network of `volume-adapter`: a copy of a backbone with depth adapters, and what predicts masks from it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.methods.class_tokens import ClassTokens
from handful.methods.volume_adapter.encoder import MultiLayer, PromptGenerator, StackBackbone
from handful.prompts.prompts import Prompts
from handful.tuning.adapters import add_adapters
from handful.tuning.depth import add_depth_attention, add_depth_convolutions
from handful.tuning.lora import add_lora
from handful.tuning.seeds import seeded
from handful.tuning.trainable import freeze_all_but

HeadKind = Literal["mask-decoder", "multi-layer", "prompt-generator"]
AdapterKind = Literal["convolution", "attention"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What the trained parts of the network are."""

    head: HeadKind
    adapter: AdapterKind
    rank: int
    width: int
    reach: int
    """Slices on either side that a slice is encoded with."""
    seed: int


class VolumeNetwork(nn.Module):
    """A copy of a backbone with adapters and a trainable decoder; all frozen weights are shared with the backbone."""

    def __init__(self, backbone: Backbone, classes: int, shape: NetworkShape) -> None:
        super().__init__()
        own = backbone.fork_sharing_weights([backbone.mask_decoder])
        decoder: Any = own.mask_decoder
        generator = torch.Generator().manual_seed(shape.seed)
        parts = nn.ModuleList(_adapted(own.image_encoder, shape, generator))
        self.tokens = ClassTokens(classes, decoder, generator)
        added: dict[str, nn.Module] = {}
        with seeded(shape.seed):
            if shape.head != "mask-decoder":
                added["layers"] = MultiLayer(own).to(backbone.device)
            if shape.head == "prompt-generator":
                added["generator"] = PromptGenerator(own.channels).to(backbone.device)
        layers: Any = added.get("layers")
        self.generator = added.get("generator")
        self.encoder = StackBackbone(own, shape.reach, layers)
        """The backbone whose embeddings `clicked` and `forward` take."""
        self.trained = nn.ModuleDict({"encoder": parts, "mask_decoder": decoder, "tokens": self.tokens, **added})
        """The modules to be trained; all others belong to the original backbone."""
        trained = single_mask_parts(decoder, finer_levels=True)
        freeze_all_but(self.trained, *trained, parts, self.tokens, *added.values())
        without_multimask(decoder)

    def prompted(self, image: ImageEmbeddings) -> ImageEmbeddings:
        """The embeddings of a whole stack with the generated prompt; unchanged without a prompt generator."""
        if self.generator is None:
            return image
        main = image.main + self.generator(image.main)
        return dataclasses.replace(image, features=(*image.features[:-1], main))

    def forward(self, image: ImageEmbeddings) -> Float[Tensor, "n l s s"]:
        """Logits of each label in the model frame, minus those of the background, for the output of `prompted`."""
        logits = self.encoder.decode_square(image, self.tokens(len(image))).logits
        return logits[:, :-1] - logits[:, -1:]

    def clicked(self, image: ImageEmbeddings, prompts: Prompts) -> Float[Tensor, "n k s s"]:
        """Logits in the model frame for prompts in slice pixels; `image` is the output of `encoder`."""
        return self.encoder.decode_square(image, self.encoder.embed(prompts, image.size)).logits


def _adapted(encoder: nn.Module, shape: NetworkShape, generator: Generator) -> list[nn.Module]:
    """Put the adapters into the encoder; return what is to be trained."""
    if shape.adapter == "attention":
        # the depth branch first, which uses the plain projection of each attention
        depth = add_depth_attention(encoder, shape.width, generator)
        return depth + add_adapters(encoder, shape.width, generator)
    depth = add_depth_convolutions(encoder, shape.width, generator)
    return depth + add_lora(encoder, shape.rank, generator)
