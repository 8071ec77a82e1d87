"""One training step of self-training: labelled slices, and mixed ones whose unlabelled part has the teacher's labels.

The teacher is the moving average of the student's weights (Tarvainen and Valpola, NeurIPS 2017). It labels the moved
slice; the student sees the same view relit strongly, with a box of a labelled slice pasted in, or pasted into one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from handful.methods.base import CHUNK
from handful.methods.self_training.gate import Classes, Gate, combined_probabilities
from handful.methods.self_training.mixing import labelled_parts
from handful.methods.self_training.pool import Pool, largest_pieces
from handful.methods.stacks import with_equal_channels
from handful.methods.unet.network import Net
from handful.methods.unet.training import LabelledViews, NetLoss, exits_loss, masks_of
from handful.tuning.losses import fading
from handful.tuning.sampling import BalancedSampler
from handful.tuning.views import UNKNOWN, moved, moved_classes, relit


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How labelled and unlabelled slices come together."""

    first: int
    """Step from which on unlabelled slices are learned from."""
    full: int
    """Step from which on they have their whole weight."""
    weight: float
    """Of the unlabelled part of a mixed slice; the labelled part has 1."""
    strength: float
    """Of the grey-value changes that the student sees in unlabelled slices; labelled ones have 1."""
    confidence: float
    """Probability from which on the teacher's label of a pixel counts, where there is no first label."""

    def weight_at(self, step: int) -> float:
        return self.weight * min(1.0, (step + 1 - self.first) / max(1, self.full - self.first))


class SelfTrainingLoss:
    """The loss of student and teacher at a step."""

    def __init__(
        self,
        supervised: NetLoss,
        teacher: Net,
        pool: Pool,
        mixture: Mixture,
        gate: Gate,
        one_piece: tuple[int, ...],
        initial: Classes | None,
    ) -> None:
        """`one_piece` are the class numbers of which the teacher's largest piece counts; `initial` the first labels."""
        self.supervised, self.teacher, self.pool, self.mixture, self.gate = supervised, teacher, pool, mixture, gate
        self.one_piece, self.initial = one_piece, initial
        stacked, half = supervised.stacked, supervised.sampler.batch // 2
        self.views = LabelledViews(stacked, supervised.views, next(supervised.net.parameters()).device)
        self.mixed = max(2, half)
        self.clean = BalancedSampler(stacked.holds(supervised.labels), max(1, half), stacked.labelled)
        self.partners = BalancedSampler(stacked.holds(supervised.labels), self.mixed, stacked.labelled)

    @property
    def student(self) -> Net:
        return self.supervised.net

    def __call__(self, step: int, generator: Generator) -> Tensor:
        self.gate.check(step, lambda slices: self._student_classes(slices, step), lambda slices: self._classes(slices))
        rows = torch.nonzero(self.gate.reliable(step))[:, 0]
        if step < self.mixture.first or not len(rows):
            return self.supervised(step, generator)
        self.student.train()
        clean, clean_classes, scribbled = self.views.of(self.clean, generator)
        mixed, mixed_classes, labelled, partly = self._mixed(rows, step, generator)
        slices = with_equal_channels([clean, mixed])
        classes = torch.cat([clean_classes, mixed_classes])
        known = classes != UNKNOWN
        own = torch.cat([torch.ones_like(clean_classes, dtype=torch.bool), labelled])
        exits = self.student.exits(slices[:, :, None])
        masks = masks_of(classes[:, None], self.supervised.labels)
        strokes = torch.cat([scribbled, partly])
        rare = fading(self.supervised.rare_class_weight, step, self.supervised.steps)
        loss = exits_loss(exits, masks, (known & own)[:, None], rare, strokes)
        return loss + self.mixture.weight_at(step) * exits_loss(exits, masks, (known & ~own)[:, None])

    def _mixed(
        self, rows: Int[Tensor, " r"], step: int, generator: Generator
    ) -> tuple[Float[Tensor, "b c s s"], Int[Tensor, "b s s"], Tensor, Tensor]:
        """Mixed slices, their classes, where they are of the labelled slice, and for which this one is scribbled."""
        chosen = rows[torch.randint(len(rows), (self.mixed,), generator=generator)]
        slices = self.pool.slices[chosen].float()
        grids = self.views.grids(self.mixed, slices.shape[-1], generator)
        plain = moved(slices, grids)
        inside = self._on_device(moved(torch.ones_like(slices[:, :1]), grids)[:, 0] >= 0.999)
        classes = self.pseudo_labels(self._on_device(plain), chosen, grids, inside, step)
        shown = self.views.relit(plain, generator, self.mixture.strength)
        partners, partner_classes, scribbled = self.views.of(self.partners, generator)
        shown, partners = with_equal_channels([self._on_device(shown), partners]).chunk(2)
        labelled = self._on_device(labelled_parts(self.mixed, slices.shape[-1], generator))
        return (
            torch.where(labelled[:, None], partners, shown),
            torch.where(labelled, partner_classes, classes),
            labelled,
            scribbled,
        )

    def pseudo_labels(
        self, slices: Float[Tensor, "b c s s"], rows: Int[Tensor, " b"], grids: Tensor, inside: Tensor, step: int
    ) -> Int[Tensor, "b s s"]:
        """Classes of moved slices; UNKNOWN outside of them.

        The teacher alone counts where no first label is known, if it is sure of the pixel; else this is UNKNOWN, too.
        """
        shares = self._shares(self.teacher, slices)
        unsure, found = shares.amax(dim=1) < self.mixture.confidence, self.gate.at(step)
        if self.initial is not None and found is not None:
            initial = self._on_device(moved_classes(self.initial[rows][:, None], grids)[:, 0])
            initial = torch.where(inside, initial, initial.clamp_min(0))
            reliability = torch.tensor(found.of_case)[self.pool.case[rows]]
            shares = combined_probabilities(shares, initial, reliability)
            unsure &= initial == UNKNOWN
        return largest_pieces(shares.argmax(dim=1), self.one_piece).masked_fill(unsure | ~inside, UNKNOWN)

    def _classes(self, slices: Float[Tensor, "b c s s"]) -> Classes:
        """The teacher's labels of slices as they are, on the CPU."""
        classes = self._shares(self.teacher, self._on_device(slices)).argmax(dim=1)
        return largest_pieces(classes, self.one_piece).cpu()

    def _student_classes(self, slices: Float[Tensor, "b c s s"], step: int) -> Classes:
        """The student's labels of the same slices, strongly relit."""
        shown = relit(slices, Generator().manual_seed(step), self.mixture.strength)
        return self._shares(self.student, self._on_device(shown)).argmax(dim=1).cpu()

    @torch.no_grad()
    def _shares(self, net: Net, slices: Float[Tensor, "b c s s"]) -> Float[Tensor, "b l s s"]:
        """Probabilities of background and labels, by a net as it predicts."""
        net.eval()
        logits = torch.cat([net(part[:, :, None])[:, :, 0] for part in torch.split(slices, CHUNK)]).float()
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).softmax(dim=1)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.student.parameters()).device)
