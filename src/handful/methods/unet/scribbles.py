"""What a U-Net learns from scribbled slices: the strokes, masks of the backbone that cover them, and two scales.

After Zhao et al., "Segment Anything Model-guided collaborative learning network for scribble-supervised polyp
segmentation" (SAM-CLNet, arXiv 2312.00312), a reconstruction from its description. Strokes are learned from by partial
cross entropy at every exit of the net. The net is to predict the same at a smaller scale. The backbone is prompted with
the strokes, and its masks are learned from where they cover the strokes. Its second rule is ours: a mask must also
leave the strokes of other classes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import Backbone
from handful.backbones.names import BackboneName
from handful.data.slicing import Slicer
from handful.data.support import LabelledSlices, SupportSet
from handful.jobs.plain_text import counted
from handful.methods.stacks import UNKNOWN, StackedSupport, classes_in_square
from handful.methods.unet.network import Net, NetPlan
from handful.methods.unet.training import NetLoss, Views, exits_loss
from handful.prompts.prompts import PADDING, Prompts
from handful.tuning.losses import fading

COVERED = 0.5
"""Share of a stroke that a mask of the backbone must cover; that of SAM-CLNet."""
SPILLED = 0.1
"""Share of the strokes of other classes that it may cover at most."""
POINTS = 8
"""Points along a stroke that the backbone is prompted with."""
MASKS_WEIGHT = 0.5
"""Of the accepted masks in the loss; that of strokes is 1."""
SMALLER = 0.5
"""The second scale, or a little less; SAM-CLNet has 0.3, of a larger picture."""
SMALLEST = 64
"""Pixels along the square at the second scale, below which it is left out."""
CONSISTENCY_WEIGHT = 0.5
STRUCTURE = 0.85
"""Share of structural similarity in the consistency; the rest is the absolute difference."""
RAMP = 0.2
"""Share of the training over which the weight of the consistency grows to its full value."""


@dataclass(frozen=True, eq=False)
class AcceptedMasks:
    """Masks of a backbone for scribbled slices."""

    classes: Int[Tensor, "v s s"]
    """Class numbers in the square by accepted masks and strokes, UNKNOWN elsewhere; all of it without a mask.

    One row per row of the support.
    """
    offered: int
    """Masks, one per label and scribbled slice."""
    accepted: int

    @classmethod
    def of(cls, support: SupportSet, slicer: Slicer, stacked: StackedSupport, backbone: Backbone) -> AcceptedMasks:
        """The backbone is prompted with points along each stroke; reads the support once more."""
        side, every = stacked.slices.shape[-1], torch.full_like(stacked.classes, UNKNOWN)
        offered = accepted = start = 0
        for scan in support.scans(slicer):
            labelled = scan.labelled()
            whole_stack = int(stacked.last[start]) - start + 1 == labelled.count
            for row in torch.nonzero(labelled.scribbled)[:, 0].tolist():
                classes, count, taken = _accepted_on(labelled, row, backbone)
                place = start + (labelled.index[row] if whole_stack else row)
                if taken:
                    square, strokes = classes_in_square(classes[None], labelled.labels, side)[0], stacked.classes[place]
                    every[place] = torch.where(strokes == UNKNOWN, square.to(strokes), strokes)
                offered, accepted = offered + count, accepted + taken
            start = int(stacked.last[start]) + 1
        return cls(every, offered, accepted)

    def described(self, backbone: Backbone) -> str:
        """One sentence for the user."""
        name = BackboneName.of(backbone.name).without_folders
        masks = f"{self.accepted} of {counted(self.offered, 'mask')} that {name} made from them and that cover them"
        return f"learned from scribbles, and from {masks}"


def accepted_masks(
    support: SupportSet, slicer: Slicer, stacked: StackedSupport, backbone: Backbone
) -> AcceptedMasks | None:
    """None where no slice is scribbled."""
    return AcceptedMasks.of(support, slicer, stacked, backbone) if stacked.scribbled.any() else None


def covering(
    masks: Bool[Tensor, "k h w"], strokes: Bool[Tensor, "k h w"], others: Bool[Tensor, "k h w"]
) -> Bool[Tensor, " k"]:
    """The coverage rule: masks that cover COVERED of their stroke and at most SPILLED of the strokes of others."""
    covered = (masks & strokes).flatten(1).sum(dim=1) / strokes.flatten(1).sum(dim=1).clamp_min(1)
    spilled = (masks & others).flatten(1).sum(dim=1) / others.flatten(1).sum(dim=1).clamp_min(1)
    return (covered >= COVERED) & (spilled <= SPILLED)


class ScribbleLoss(NetLoss):
    """The loss of one training step on labelled slices of which some are scribbled."""

    def __init__(
        self,
        net: Net,
        stacked: StackedSupport,
        labels: int,
        views: Views,
        batch: int,
        rare_class_weight: float,
        steps: int,
        masks: Int[Tensor, "v s s"],
    ) -> None:
        """As of `NetLoss`; `masks` are the classes of the accepted masks."""
        super().__init__(net, stacked, labels, views, batch, rare_class_weight, steps)
        self.masks = StackedSupport(stacked.slices, masks, stacked.first, stacked.last, stacked.scribbled)

    def __call__(self, step: int, generator: Generator) -> Tensor:
        self.net.train()
        rows, depth = self.sampler.sample(generator), self.net.plan.depth
        scribbled = self.stacked.scribbled[rows]
        stacks, classes = self.stacked.around(rows, depth)
        both = torch.cat([classes, self.masks.around(rows, depth)[1]], dim=1)
        device = next(self.net.parameters()).device
        views = self.views.of(stacks, both, self.labels, generator)
        shown, masks, valid_mask = (part.to(device) for part in views)
        exits, scribbled = self.net.exits(shown), scribbled.to(device)
        weight = fading(self.rare_class_weight, step, self.steps)
        loss = exits_loss(exits, masks[:, :, :depth], valid_mask[:, :depth], weight, scribbled)
        accepted = valid_mask[:, depth:]
        if accepted.any():
            loss = loss + MASKS_WEIGHT * exits_loss(exits, masks[:, :, depth:], accepted, weight)
        side = second_side(self.net.plan)
        if scribbled.any() and side >= SMALLEST:
            ramp = min(1.0, (step + 1) / (RAMP * self.steps))
            smaller = F.interpolate(shown[scribbled].flatten(1, 2), (side, side), mode="area")
            other = self.net.exits(rearrange(smaller, "b (c d) h w -> b c d h w", d=depth))[0]
            loss = loss + CONSISTENCY_WEIGHT * ramp * inconsistency(exits[0][scribbled], other)
        return loss


def second_side(plan: NetPlan) -> int:
    """Pixels along the square at the second scale: as many as the stages of the net can halve."""
    granule = 1 << (len(plan.strides) - 1)
    return int(SMALLER * plan.side) // granule * granule


def inconsistency(large: Float[Tensor, "b k d h w"], small: Float[Tensor, "b k d m n"]) -> Float[Tensor, ""]:
    """How far logits at two scales predict differently, from 0 on: structural dissimilarity and absolute difference."""
    size = (small.shape[-2], small.shape[-1])
    first = F.interpolate(_probabilities(large), size=size, mode="area")
    second = _probabilities(small)
    return STRUCTURE * _dissimilarity(first, second) + (1 - STRUCTURE) * (first - second).abs().mean()


def _probabilities(logits: Float[Tensor, "b k d h w"]) -> Float[Tensor, "n k h w"]:
    """Of the labels, by a softmax over them and background, slice by slice."""
    found = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1).float().softmax(dim=1)[:, 1:]
    return rearrange(found, "b k d h w -> (b d) k h w")


def _dissimilarity(first: Float[Tensor, "n k h w"], second: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """Half of 1 - SSIM in windows of 3 × 3 pixels (Wang et al., IEEE TIP 2004)."""

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 3, 1)

    one, two = mean(first), mean(second)
    spread = mean(first**2) - one**2 + mean(second**2) - two**2
    common = mean(first * second) - one * two
    small, smaller = 0.01**2, 0.03**2
    similar = (2 * one * two + small) * (2 * common + smaller) / ((one**2 + two**2 + small) * (spread + smaller))
    return ((1 - similar) / 2).clamp(0, 1).mean()


@torch.no_grad()
def _accepted_on(labelled: LabelledSlices, row: int, backbone: Backbone) -> tuple[Int[Tensor, "h w"], int, int]:
    """Class numbers of one slice by the accepted masks, UNKNOWN elsewhere; how many masks there are, and accepted ones.

    Pixels outside of all masks are background if every stroke on the slice has an accepted mask.
    """
    classes, known = labelled.classes[row].long(), labelled.valid_mask[row]
    numbers = [number for number in range(1, labelled.labels + 1) if (classes == number).any()]
    found = torch.full(classes.shape, UNKNOWN)
    if not numbers:
        return found, 0, 0
    strokes = torch.stack([classes == number for number in numbers])
    image = backbone.encode(labelled.slices[row : row + 1].to(backbone.device))
    prompts = points_along(strokes).to(backbone.device)
    logits = backbone.decode(image, backbone.embed(prompts, (classes.shape[0], classes.shape[1])))[0].cpu()
    good = covering(logits > 0, strokes, known & ~strokes)
    if good.all():
        found[:] = 0
    highest, place = logits.masked_fill(~good[:, None, None], -torch.inf).max(dim=0)
    found = torch.where(highest > 0, torch.tensor(numbers)[place], found)
    return found, len(numbers), int(good.sum())


def points_along(strokes: Bool[Tensor, "k h w"]) -> Prompts:
    """POINTS positive points of each stroke, evenly spaced in the order of its pixels, for one slice."""
    points, labels = torch.zeros(1, len(strokes), POINTS, 2), torch.full((1, len(strokes), POINTS), PADDING)
    for label, stroke in enumerate(strokes):
        pixels = torch.nonzero(stroke).flip(1).float()
        chosen = torch.linspace(0, len(pixels) - 1, min(POINTS, len(pixels))).round().long()
        points[0, label, : len(chosen)], labels[0, label, : len(chosen)] = pixels[chosen], 1
    return Prompts(points, labels)
