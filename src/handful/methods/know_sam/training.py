"""One training step of KnowSAM: labels, SAM's distilled predictions, certainty, agreement, and mixed slices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.methods.know_sam.mixing import exchanged, most_certain
from handful.methods.know_sam.networks import KnowSamNetworks, distance, entropy, with_background
from handful.methods.self_training.pool import Pool
from handful.methods.stacks import StackedSupport, with_equal_channels
from handful.methods.unet.training import LabelledViews, Views, masks_of
from handful.tuning.losses import dice_ce, whole_batch, with_scribbles
from handful.tuning.sampling import BalancedSampler
from handful.tuning.views import UNKNOWN, moved


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the terms of the loss; labels have 1."""

    distillation: float
    temperature: float
    certainty: float
    strength: float
    """Of the grey-value changes of unlabelled slices; labelled ones have 1."""
    mixing_from: int
    """Step from which on slices are mixed."""
    steps: int

    def agreement_at(self, step: int) -> float:
        """That of the agreement between the two networks: it grows to 1 over the training."""
        return math.exp(-5 * (1 - step / self.steps) ** 2)


class KnowSamLoss:
    """The loss of all networks at a step."""

    def __init__(
        self,
        networks: KnowSamNetworks,
        stacked: StackedSupport,
        pool: Pool,
        labels: int,
        views: Views,
        batch: int,
        weights: Weights,
    ) -> None:
        assert networks.sam is not None
        self.networks, self.sam = networks, networks.sam
        self.pool, self.labels, self.weights = pool, labels, weights
        self.views = LabelledViews(stacked, views, next(networks.first.parameters()).device)
        self.half = max(1, batch // 2)
        self.sampler = BalancedSampler(stacked.holds(labels), self.half, stacked.labelled)

    def __call__(self, step: int, generator: Generator) -> Tensor:
        self.networks.train()
        slices, classes, scribbled = self.views.of(self.sampler, generator)
        if len(self.pool):
            slices = with_equal_channels([slices, self._unlabelled(generator)])
        first, second, fused = self.networks(slices)
        sam = self.sam(slices, fused)
        agreement = self.weights.agreement_at(step)
        loss = self._supervised(sam, classes, scribbled) + self._supervised(fused, classes, scribbled)
        for own, other in ((first, second), (second, first)):
            loss = loss + 0.5 * self._of_network(own, other, sam, classes, scribbled, agreement)
        if len(self.pool) and step >= self.weights.mixing_from:
            loss = loss + self._mixed(slices, classes, scribbled, fused, sam, agreement)
        return loss

    def _of_network(
        self,
        own: Tensor,
        other: Tensor,
        sam: Tensor,
        classes: Int[Tensor, "h s s"],
        scribbled: Bool[Tensor, " h"],
        agreement: float,
    ) -> Tensor:
        """The loss of one of the two networks."""
        weights = self.weights
        loss = self._supervised(own, classes, scribbled) + weights.certainty * entropy(with_background(own)).mean()
        loss = loss + weights.distillation * distance(own, sam, weights.temperature)
        return loss + agreement * disagreement(own, other)

    def _mixed(
        self,
        slices: Float[Tensor, "b c s s"],
        classes: Int[Tensor, "h s s"],
        scribbled: Bool[Tensor, " h"],
        fused: Float[Tensor, "b k s s"],
        sam: Float[Tensor, "b k s s"],
        agreement: float,
    ) -> Tensor:
        """The loss of mixed slices; an unlabelled part has the labels of SAM."""
        certain = most_certain(entropy(with_background(fused.detach())))
        chosen = certain[: self.half], certain[self.half :]
        pseudo_labels = with_background(sam[self.half :].detach()).argmax(dim=1)
        shown = torch.cat(exchanged(slices[: self.half], slices[self.half :], *chosen))
        targets = torch.cat(exchanged(classes, pseudo_labels, *chosen))
        first, second, fused = self.networks(shown)
        agreed = with_background(fused[self.half :].detach()).argmax(dim=1)
        strokes = torch.cat([scribbled, torch.zeros_like(scribbled)])
        loss = self._supervised(fused, targets, strokes)
        for own, other in ((first, second), (second, first)):
            both = disagreement(own, other) + self._supervised(own[self.half :], agreed, strokes[self.half :])
            certainty = self.weights.certainty * entropy(with_background(own)).mean()
            loss = loss + 0.5 * (self._supervised(own, targets, strokes) + certainty + agreement * both)
        return loss

    def _supervised(
        self, logits: Float[Tensor, "b k s s"], classes: Int[Tensor, "h s s"], scribbled: Bool[Tensor, " h"]
    ) -> Tensor:
        """The loss of the first slices, as many as have classes, where these are known."""
        batch = logits[: len(classes)], masks_of(classes[:, None], self.labels)[:, :, 0], classes != UNKNOWN
        return with_scribbles(lambda *whole: dice_ce(*whole_batch(*whole)), *batch, scribbled)

    def _unlabelled(self, generator: Generator) -> Float[Tensor, "h c s s"]:
        """Views of unlabelled slices, more strongly changed."""
        rows = torch.randint(len(self.pool), (self.half,), generator=generator)
        slices = self.pool.slices[rows].float()
        grids = self.views.grids(self.half, slices.shape[-1], generator)
        return self.views.relit(moved(slices, grids), generator, self.weights.strength).to(self.views.device)


def disagreement(own: Float[Tensor, "b k s s"], other: Float[Tensor, "b k s s"]) -> Tensor:
    """Cross entropy with the other network's prediction, over all classes; the other gets no gradient."""
    aim = with_background(other.detach()).softmax(dim=1)
    found: Tensor = -(aim * with_background(own).log_softmax(dim=1)).sum(dim=1).mean()
    return found
