"""Training of `Interactive`: simulated annotators prompt for regions of the labelled slices and correct the masks."""

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
"""Minimum size of a region to be prompted for in training, in pixels of the frame of the annotators."""


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnotators:
    """Settings of the prompts in training; see the settings of the same names in `Interactive`."""

    prompt_mix: PromptMix
    annotator: Annotator
    rounds: int
    mask_prompts: float
    at_once: int
    """Maximum number of regions per slice in one step: the setting `regions`."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions that are large enough to be prompted for."""

    rows: Int[Tensor, " r"]
    """Rows of the encoded support that contain such a region."""
    held: Bool[Tensor, "r k"]
    """Whether each of these rows contains such a region of each label."""

    @classmethod
    def of(cls, encoded: EncodedSupport) -> Regions:
        """The regions of at least SMALLEST pixels. Raises LabelError if there are none."""
        held = encoded.target.sums >= SMALLEST
        rows = torch.nonzero(held.any(dim=1))[:, 0]
        if not len(rows):
            raise LabelError(
                f"no labelled region covers {SMALLEST} pixels of a {encoded.target.shape[-1]} pixels wide model "
                "frame; label slices where the organs are larger"
            )
        return cls(rows, held[rows])


class CorrectionLoss:
    """The loss of one training step: annotators prompt for the regions of a few slices and correct the masks."""

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
        batch = self._batch(draw, labels, _detached(image))
        prompts = simulate_prompts(batch.truth, self.annotators.prompt_mix, generator)
        corrections = 0 if self.annotators.rounds == 0 else 1 + integer(self.annotators.rounds, generator)
        total = _SummedGradients([*self.parameters, *_with_gradient(batch.image)])
        for number in range(corrections + 1):
            prediction = _in_float32(self.network(batch.image, prompts, batch.size))
            losses = batch.losses(prediction)
            error = self.network.errors(batch.image, prediction)
            error = None if error is None else error.float()
            value = batch.mean(losses)
            if error is not None:
                value = value + 0.1 * batch.mean(batch.error_losses(error, prediction))
            total.add(value / (corrections + 1))
            if number < corrections:
                prompts = self._corrected(prompts, prediction, error, batch, generator)
        self.sampler.observe(_by_label(losses, labels, self.regions.held.shape[1]))
        return total.surrogate_loss([*self.parameters, *_with_gradient(image)])

    def _choose(self, rows: Int[Tensor, " b"], generator: Generator) -> Int[Tensor, "b r"]:
        """Random labels of each slice, with a preference for rare ones; padded with -1."""
        held = self.regions.held[rows]
        rarity = held / self.regions.held.sum(dim=0).clamp_min(1)
        keys = torch.where(held, rarity.log() + _gumbel(held.shape, generator), -torch.inf)
        order = keys.argsort(dim=1, descending=True)[:, : min(self.annotators.at_once, int(held.sum(dim=1).max()))]
        return torch.where(held.gather(1, order), order, -1)

    def _batch(self, draw: Draw, labels: Int[Tensor, "b r"], image: ImageEmbeddings) -> _Batch:
        rows = self.regions.rows[draw.rows]
        place = labels.clamp_min(0)[..., None, None].expand(-1, -1, *self.encoded.target.shape[-2:])
        truth = self.encoded.target[rows].gather(1, place) & (labels >= 0)[..., None, None]
        return _Batch(image, truth, self.encoded.valid_mask[rows], draw.weights, self.network.fork.mask_side)

    def _corrected(
        self,
        prompts: Prompts,
        prediction: MaskPrediction,
        error: Tensor | None,
        batch: _Batch,
        generator: Generator,
    ) -> Prompts:
        """The prompts with one more correction per region, sometimes with the predicted mask as a mask prompt."""
        logits = batch.framed(prediction.logits.detach())
        predicted, valid_mask = (logits > 0).cpu(), batch.valid_mask[:, None]
        weight = None if error is None else batch.framed(error.detach().sigmoid()).cpu()
        click = correct(predicted & valid_mask, batch.truth & valid_mask, self.annotators.annotator, generator, weight)
        prompts = append_points(prompts, click)
        chance = self.annotators.prompt_mix.confusion
        if chance:
            negatives = confusion_negatives(batch.truth, predicted & valid_mask, chance, generator)
            prompts = append_points(prompts, negatives)
        with_mask = float(torch.rand((), generator=generator)) < self.annotators.mask_prompts
        return packed(dataclasses.replace(prompts, masks=logits if with_mask else None))


@dataclass(frozen=True, eq=False)
class _Batch:
    """The slices of a step and the regions to segment on each; padding regions are empty."""

    image: ImageEmbeddings
    truth: Bool[Tensor, "b r f f"]
    valid_mask: Bool[Tensor, "b f f"]
    weights: Float[Tensor, " b"]
    mask_side: int

    @property
    def size(self) -> tuple[int, int]:
        """Size of the frame of the annotators; prompts are in its pixels, whatever the size of the slices."""
        return (self.truth.shape[-2], self.truth.shape[-1])

    @property
    def present(self) -> Bool[Tensor, "b r"]:
        """Whether a region is not padding."""
        return self.truth.flatten(2).any(dim=2)

    def framed(self, maps: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r f f"]:
        """Maps of the decoder, resized to the frame of the annotators."""
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)

    def losses(self, prediction: MaskPrediction) -> Float[Tensor, "b r"]:
        """20 focal + Dice + squared error of the predicted IoU, for every region; targets are area fractions."""
        target, valid_mask = self._target(prediction.logits)
        logits = prediction.logits
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        inside = logits.sigmoid()
        wrong = inside * (1 - target) + (1 - inside) * target
        focal = (entropy * wrong**2 * valid_mask).sum(dim=(2, 3)) / valid_mask.sum(dim=(2, 3)).clamp_min(1)
        shared, total = (inside * target * valid_mask).sum(dim=(2, 3)), ((inside + target) * valid_mask).sum(dim=(2, 3))
        dice = 1 - (2 * shared + 1) / (total + 1)
        return 20 * focal + dice + (prediction.iou - self._iou(logits.detach())) ** 2

    def error_losses(self, error: Float[Tensor, "b r s s"], prediction: MaskPrediction) -> Float[Tensor, "b r"]:
        """Cross-entropy between predicted and actual errors of the masks, for every region."""
        target, valid_mask = self._target(error)
        wrong = ((prediction.logits.detach() > 0).to(target) - target).abs()
        entropy = F.binary_cross_entropy_with_logits(error, wrong, reduction="none")
        return (entropy * valid_mask).sum(dim=(2, 3)) / valid_mask.sum(dim=(2, 3)).clamp_min(1)

    def mean(self, losses: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        """The mean over the regions of each slice, then the weighted mean over the slices."""
        present = self.present.to(losses)
        per_slice = (losses * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)
        return (per_slice * self.weights.to(losses)).mean()

    def _target(self, like: Tensor) -> tuple[Float[Tensor, "b r s s"], Float[Tensor, "b 1 s s"]]:
        side = (self.mask_side, self.mask_side)
        valid_mask = (F.adaptive_avg_pool2d(self.valid_mask[:, None].float(), side) >= 0.5).to(like)
        return F.adaptive_avg_pool2d(self.truth.float(), side).to(like), valid_mask

    def _iou(self, logits: Float[Tensor, "b r s s"]) -> Float[Tensor, "b r"]:
        valid_mask = self.valid_mask[:, None].to(logits.device)
        predicted, truth = (self.framed(logits) > 0) & valid_mask, self.truth.to(logits.device) & valid_mask
        shared, either = (predicted & truth).sum(dim=(2, 3)).float(), (predicted | truth).sum(dim=(2, 3)).float()
        return shared / either.clamp_min(1)


class _SummedGradients:
    """The sum of the gradients of several losses, computed one by one so that only one graph is in memory."""

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
        """A surrogate scalar: its value is the sum of the losses, its gradient at `inputs` the sum of their gradients.

        It is back-propagated in place of the losses, also into the tensors that `inputs` were computed from.
        """
        terms = [
            (tensor * gradient).sum()
            for tensor, gradient in zip(inputs, self.gradients, strict=True)
            if gradient is not None
        ]
        linear = torch.stack(terms).sum()  # only its gradient is used, which is the stored one at each input
        return linear - linear.detach() + self.loss


def _in_float32(prediction: MaskPrediction) -> MaskPrediction:
    """The prediction, which may have been computed in bfloat16, for losses and simulated annotators."""
    return dataclasses.replace(prediction, logits=prediction.logits.float(), iou=prediction.iou.float())


def _detached(image: ImageEmbeddings) -> ImageEmbeddings:
    """The embeddings as new leaves of the graph, so that the encoder is back-propagated once for all rounds."""
    features = tuple(level.detach().requires_grad_(level.requires_grad) for level in image.features)
    return dataclasses.replace(image, features=features)


def _with_gradient(image: ImageEmbeddings) -> list[Tensor]:
    """The feature levels that need gradients."""
    return [level for level in image.features if level.requires_grad]


def _by_label(losses: Float[Tensor, "b r"], labels: Int[Tensor, "b r"], count: int) -> Float[Tensor, "b d"]:
    """The losses in one column per label and one for slices without labels, for a `Sampler`; nan if not measured."""
    table = torch.full((len(labels), count + 2), torch.nan)  # the last column is for padding
    table.scatter_(1, torch.where(labels >= 0, labels, count + 1), losses.detach().cpu().float())
    return table[:, :-1]


def _gumbel(shape: torch.Size, generator: Generator) -> Tensor:
    return -torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-6)))
