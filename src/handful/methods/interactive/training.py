"""How `Interactive` trains: simulated annotators prompt for regions of the labelled slices and correct the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings, MaskPrediction
from handful.errors import LabelError
from handful.methods.encoded_support import EncodedSupport
from handful.methods.interactive.network import InteractiveNetwork
from handful.prompts.heuristics import append_points
from handful.prompts.prompt_mix import PromptMix, confusion_negatives, packed, simulate_prompts
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import Annotator, correct
from handful.tuning.pruning import Draw, Sampler
from handful.tuning.sampling import integer

SMALLEST = 4
"""Pixels of the square of the labels that a region must have to be prompted for in training."""


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnotators:
    """How prompts are given in training; see the settings of the same names in `Interactive`."""

    prompt_mix: PromptMix
    annotator: Annotator
    rounds: int
    mask_prompts: float
    at_once: int
    """Regions of a slice in one step, at most: the setting `regions`."""


@dataclass(frozen=True, eq=False)
class Regions:
    """What annotators may prompt for."""

    rows: Int[Tensor, " r"]
    """Rows of the support that hold a region which is large enough."""
    held: Bool[Tensor, "r k"]
    """Which labels have such a region in each of these rows."""

    @classmethod
    def of(cls, encoded: EncodedSupport) -> Regions:
        """The regions of SMALLEST pixels and more; LabelError where there are none."""
        held = encoded.target.sum(dim=(2, 3)) >= SMALLEST
        rows = torch.nonzero(held.any(dim=1))[:, 0]
        if not len(rows):
            raise LabelError(
                f"no labelled region covers {SMALLEST} pixels of a square of {encoded.target.shape[-1]}; "
                "label slices where the organs are larger"
            )
        return cls(rows, held[rows])


class CorrectionLoss:
    """The loss of one training step: annotators prompt for the regions of a few slices and correct the answers."""

    def __init__(
        self,
        network: InteractiveNetwork,
        encoded: EncodedSupport,
        regions: Regions,
        annotators: SimulatedAnnotators,
        sampler: Sampler,
    ) -> None:
        self.network, self.encoded, self.regions = network, encoded, regions
        self.annotators, self.sampler = annotators, sampler
        self.parameters = [p for p in network.trained.parameters() if p.requires_grad]

    def __call__(self, step: int, generator: Generator) -> Tensor:
        draw = self.sampler.draw(step)
        labels = self._choose(draw.rows, generator)
        image = self.encoded.rows(self.regions.rows[draw.rows])
        scene = self._scene(draw, labels, _detached(image))
        prompts = simulate_prompts(scene.truth, self.annotators.prompt_mix, generator)
        corrections = 0 if self.annotators.rounds == 0 else 1 + integer(self.annotators.rounds, generator)
        total = _SummedGradients([*self.parameters, *_learning(scene.image)])
        for number in range(corrections + 1):
            answer = self.network(scene.image, prompts, scene.size)
            losses = scene.losses(answer)
            error = self.network.errors(scene.image, answer)
            value = scene.mean(losses)
            if error is not None:
                value = value + 0.1 * scene.mean(scene.error_losses(error, answer))
            total.add(value / (corrections + 1))
            if number < corrections:
                prompts = self._corrected(prompts, answer, error, scene, generator)
        self.sampler.observe(_by_label(losses, labels, self.regions.held.shape[1]))
        return total.surrogate_loss([*self.parameters, *_learning(image)])

    def _choose(self, rows: Int[Tensor, " b"], generator: Generator) -> Int[Tensor, "b r"]:
        """The labels asked for on each slice, rare ones drawn first; -1 where a slice has fewer than another."""
        held = self.regions.held[rows]
        rarity = held / self.regions.held.sum(dim=0).clamp_min(1)
        keys = torch.where(held, rarity.log() + _gumbel(held.shape, generator), -torch.inf)
        order = keys.argsort(dim=1, descending=True)[:, : min(self.annotators.at_once, int(held.sum(dim=1).max()))]
        return torch.where(held.gather(1, order), order, -1)

    def _scene(self, draw: Draw, labels: Int[Tensor, "b r"], image: ImageEmbeddings) -> _Scene:
        rows = self.regions.rows[draw.rows]
        place = labels.clamp_min(0)[..., None, None].expand(-1, -1, *self.encoded.target.shape[-2:])
        truth = self.encoded.target[rows].gather(1, place) & (labels >= 0)[..., None, None]
        return _Scene(image, truth, self.encoded.valid_mask[rows], draw.weights, self.network.fork.mask_side)

    def _corrected(
        self, prompts: Prompts, answer: MaskPrediction, error: Tensor | None, scene: _Scene, generator: Generator
    ) -> Prompts:
        """The prompts and one correction more a region, now and then with the answer itself as a mask prompt."""
        logits = scene.framed(answer.logits.detach())
        shown, valid_mask = (logits > 0).cpu(), scene.valid_mask[:, None]
        weight = None if error is None else scene.framed(error.detach().sigmoid()).cpu()
        click = correct(shown & valid_mask, scene.truth & valid_mask, self.annotators.annotator, generator, weight)
        prompts = append_points(prompts, click)
        chance = self.annotators.prompt_mix.confusion
        if chance:
            prompts = append_points(prompts, confusion_negatives(scene.truth, shown & valid_mask, chance, generator))
        given = float(torch.rand((), generator=generator)) < self.annotators.mask_prompts
        return packed(dataclasses.replace(prompts, masks=logits if given else None))


@dataclass(frozen=True, eq=False)
class _Scene:
    """The slices of a step and the regions asked for on each; regions that pad a row are empty."""

    image: ImageEmbeddings
    truth: Bool[Tensor, "b r f f"]
    valid_mask: Bool[Tensor, "b f f"]
    weights: Float[Tensor, " b"]
    mask_side: int

    @property
    def size(self) -> tuple[int, int]:
        """Prompts are in pixels of the square itself, so that slices of all sizes go together."""
        return (self.truth.shape[-2], self.truth.shape[-1])

    @property
    def there(self) -> Bool[Tensor, "b r"]:
        return self.truth.flatten(2).any(dim=2)

    def framed(self, maps: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r f f"]:
        """Maps of the decoder in the square in which annotators look at them."""
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)

    def losses(self, answer: MaskPrediction) -> Float[Tensor, "b r"]:
        """20 focal + Dice + squared error of the predicted IoU, of every region; targets are area fractions."""
        target, valid_mask = self._target(answer.logits)
        logits = answer.logits
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        inside = logits.sigmoid()
        doubt = inside * (1 - target) + (1 - inside) * target
        focal = (entropy * doubt**2 * valid_mask).sum(dim=(2, 3)) / valid_mask.sum(dim=(2, 3)).clamp_min(1)
        shared, total = (inside * target * valid_mask).sum(dim=(2, 3)), ((inside + target) * valid_mask).sum(dim=(2, 3))
        dice = 1 - (2 * shared + 1) / (total + 1)
        return 20 * focal + dice + (answer.iou - self._iou(logits.detach())) ** 2

    def error_losses(self, error: Float[Tensor, "b r s s"], answer: MaskPrediction) -> Float[Tensor, "b r"]:
        """Cross-entropy between where an answer was predicted to be wrong and where it is."""
        target, valid_mask = self._target(error)
        wrong = ((answer.logits.detach() > 0).to(target) - target).abs()
        entropy = F.binary_cross_entropy_with_logits(error, wrong, reduction="none")
        return (entropy * valid_mask).sum(dim=(2, 3)) / valid_mask.sum(dim=(2, 3)).clamp_min(1)

    def mean(self, losses: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        """Over the regions of each slice, then over the slices by weight."""
        there = self.there.to(losses)
        per_slice = (losses * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
        return (per_slice * self.weights.to(losses)).mean()

    def _target(self, like: Tensor) -> tuple[Float[Tensor, "b r s s"], Float[Tensor, "b 1 s s"]]:
        side = (self.mask_side, self.mask_side)
        valid_mask = (F.adaptive_avg_pool2d(self.valid_mask[:, None].float(), side) >= 0.5).to(like)
        return F.adaptive_avg_pool2d(self.truth.float(), side).to(like), valid_mask

    def _iou(self, logits: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r"]:
        valid_mask = self.valid_mask[:, None].to(logits.device)
        shown, truth = (self.framed(logits) > 0) & valid_mask, self.truth.to(logits.device) & valid_mask
        shared, either = (shown & truth).sum(dim=(2, 3)).float(), (shown | truth).sum(dim=(2, 3)).float()
        return shared / either.clamp_min(1)


class _SummedGradients:
    """The gradients of several losses, added up one by one, so that no two of their graphs are in memory at once."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.gradients: list[Tensor | None] = [None] * len(inputs)
        self.loss = 0.0

    def add(self, value: Tensor) -> None:
        new = torch.autograd.grad(value, self.inputs, allow_unused=True)
        self.gradients = [
            old if more is None else more if old is None else old + more
            for old, more in zip(self.gradients, new, strict=True)
        ]
        self.loss += float(value.detach())

    def surrogate_loss(self, inputs: Sequence[Tensor]) -> Tensor:
        """A scalar that equals the summed losses, and whose gradient at `inputs` is the sum of their gradients.

        It is to be back-propagated in their place, also into what `inputs` were computed from.
        """
        terms = [
            (one * gradient).sum() for one, gradient in zip(inputs, self.gradients, strict=True) if gradient is not None
        ]
        linear = torch.stack(terms).sum()  # its gradient at each input is the stored one; its value means nothing
        return linear - linear.detach() + self.loss


def _detached(image: ImageEmbeddings) -> ImageEmbeddings:
    """The same without the way back into the encoder, so that the rounds share one; they still ask for gradients."""
    features = tuple(level.detach().requires_grad_(level.requires_grad) for level in image.features)
    return dataclasses.replace(image, features=features)


def _learning(image: ImageEmbeddings) -> list[Tensor]:
    """The levels that ask for gradients."""
    return [level for level in image.features if level.requires_grad]


def _by_label(losses: Float[Tensor, "b r"], labels: Int[Tensor, "b r"], count: int) -> Float[Tensor, "b d"]:
    """Losses a column a label and one for slices without any, as a sampler takes them; nan where nothing was asked."""
    table = torch.full((len(labels), count + 2), torch.nan)  # the last column takes what pads
    table.scatter_(1, torch.where(labels >= 0, labels, count + 1), losses.detach().cpu().float())
    return table[:, :-1]


def _gumbel(shape: torch.Size, generator: Generator) -> Tensor:
    return -torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-6)))
