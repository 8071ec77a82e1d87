"""The parts of KnowSAM: two networks, a fusion of both, and a SAM prompted by learned tokens and the fused masks."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from handful.backbones.base import Backbone, PromptEmbeddings
from handful.backbones.decoder import single_mask_parts, without_multimask
from handful.methods.unet.network import Net, NetPlan, PlainNet
from handful.prompts.prompts import Prompts
from handful.tuning.adapters import add_adapters
from handful.tuning.seeds import seeded
from handful.tuning.trainable import freeze_all_but

TOKENS = 2
"""Learned tokens per class, as many as a box has corners."""
WIDEST_ODDS = 10.0
"""Largest logit of a mask prompt, either way."""


class KnowSamNetworks(nn.Module):
    """All that is trained; the SAM is None where only the fused prediction is wanted."""

    def __init__(self, first: Net, labels: int, seed: int, sam: SamBranch | None) -> None:
        super().__init__()
        plain = dataclasses.replace(first.plan, encoder="none")
        self.first = first
        self.second: Net = PlainNet(plain, labels, deep_supervision=False, seed=seed + 1)
        self.fusion = Fusion(labels, seed)
        self.sam = sam

    @property
    def plan(self) -> NetPlan:
        return self.first.plan

    def forward(self, slices: Float[Tensor, "n c s s"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, k, s, s) of the first network, the second, and both fused; the background has logit 0."""
        first, second = (net(slices[:, :, None])[:, :, 0].float() for net in (self.first, self.second))
        return first, second, self.fusion(first, second)

    def train(self, mode: bool = True) -> KnowSamNetworks:
        """As of each module; the SAM's own layers always compute as in a prediction."""
        super().train(mode)
        if self.sam is not None:
            self.sam.eval()
        return self

    def drop_training_state(self, keep_sam: bool) -> None:
        """Drops what no prediction needs."""
        self.first.drop_training_state()
        self.second.drop_training_state()
        self.sam = self.sam if keep_sam else None


class Fusion(nn.Module):
    """The mean of two predictions, and what a few convolutions add to it where they are unsure or differ.

    At the start it is the mean alone. The paper has batch norm; instance norm does not depend on the batch.
    """

    def __init__(self, labels: int, seed: int, width: int = 16) -> None:
        super().__init__()
        with seeded(seed):
            self.layers = nn.Sequential(
                nn.Conv2d(2 * (labels + 1) + 3, width, 3, padding=1),
                nn.InstanceNorm2d(width, affine=True),
                nn.LeakyReLU(0.01),
                nn.Conv2d(width, width, 3, padding=1),
                nn.InstanceNorm2d(width, affine=True),
                nn.LeakyReLU(0.01),
                nn.Conv2d(width, labels, 1),
            )
        last = self.layers[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, one: Float[Tensor, "n k s s"], other: Float[Tensor, "n k s s"]) -> Float[Tensor, "n k s s"]:
        both = [with_background(logits) for logits in (one, other)]
        entropies = [entropy(logits)[:, None] for logits in both]
        differ = (both[0].argmax(dim=1) != both[1].argmax(dim=1)).to(one)[:, None]
        added: Tensor = self.layers(torch.cat([*both, *entropies, differ], dim=1))
        return (one + other) / 2 + added.float()


class SamBranch(nn.Module):
    """A SAM or SAM 2 with adapters in its encoder; each class is decoded with tokens and a mask of its own.

    The paper also has adapters inside the decoder; here the decoder's parts for a single mask are trained instead.
    """

    def __init__(self, backbone: Backbone, labels: int, width: int, seed: int) -> None:
        super().__init__()
        self.own = backbone.fork_sharing_weights([backbone.mask_decoder])
        generator = Generator().manual_seed(seed)
        adapters = nn.ModuleList(add_adapters(self.own.image_encoder, width, generator)).to(backbone.device)
        with seeded(seed):
            self.prompts = LearnedPrompts(backbone.channels, labels + 1).to(backbone.device)
        decoder = self.own.mask_decoder
        freeze_all_but(self, *single_mask_parts(decoder, finer_levels=True), adapters, self.prompts)
        without_multimask(decoder)

    def forward(self, slices: Float[Tensor, "n c h w"], fused: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h w"]:
        """Logits less those of the background; `fused` are logits of the labels, which get no gradient."""
        image = self.own.encode_exact(slices)
        masks = Prompts(masks=odds(with_background(fused.detach())))
        dense = self.own.embed(masks, image.size).dense
        logits = self.own.decode_square(image, PromptEmbeddings(self.prompts(image.main), dense)).logits
        shown = self.own.to_image_frame(logits, image.size).float()
        return shown[:, 1:] - shown[:, :1]


class LearnedPrompts(nn.Module):
    """Prompt tokens of each class, computed from the embedding of a slice by two convolutions and a small network."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        width = max(8, channels // 4)
        self.of_class = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, TOKENS * channels),
            )
            for _ in range(classes)
        )

    def forward(self, main: Float[Tensor, "n c f f"]) -> Float[Tensor, "n l t c"]:
        return torch.stack([layers(main).unflatten(1, (TOKENS, -1)) for layers in self.of_class], dim=1)


def with_background(logits: Float[Tensor, "n k *s"]) -> Float[Tensor, "n l *s"]:
    """The same with a first class of logit 0."""
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)


def entropy(logits: Float[Tensor, "n l *s"]) -> Float[Tensor, "n *s"]:
    """Entropy of the softmax over the classes, as a share of its largest value."""
    logs = logits.log_softmax(dim=1)
    largest = torch.tensor(float(logits.shape[1])).log().to(logits)
    found: Tensor = -(logs.exp() * logs).sum(dim=1) / largest
    return found


def odds(logits: Float[Tensor, "n l h w"]) -> Float[Tensor, "n l h w"]:
    """The logit of each class against all others together."""
    logs = logits.log_softmax(dim=1)
    others = torch.log1p(-logs.exp().clamp(max=1 - 1e-6))
    return (logs - others).clamp(-WIDEST_ODDS, WIDEST_ODDS)


def distance(student: Float[Tensor, "n k s s"], teacher: Float[Tensor, "n k s s"], temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened predictions over all classes, times the temperature squared."""
    softened, aim = (with_background(logits) / temperature for logits in (student, teacher.detach()))
    divergence = F.kl_div(softened.log_softmax(1), aim.log_softmax(1), reduction="none", log_target=True)
    return divergence.sum(dim=1).mean() * temperature**2
