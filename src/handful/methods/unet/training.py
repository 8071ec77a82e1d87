"""How a U-Net learns from labelled slices: another view of each at every step, judged by Dice and cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.methods.stacks import StackedSupport
from handful.methods.unet.network import Net
from handful.tuning.augment import augmented
from handful.tuning.losses import dice_ce, fading, partial_ce
from handful.tuning.sampling import BalancedSampler
from handful.tuning.views import UNKNOWN, Moves, moved, moved_classes, random_grids, relit

Augmentation = Literal["nnunet", "always"]
"""How training slices are changed: each way with a probability as in nnU-Net, or all of them at every step."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The views of slices that a training makes."""

    augmentation: Augmentation
    elastic: float
    """Strongest bending, as a share of the side."""
    mirror: bool
    inverted: float = 0.0
    """Share of the slices that become negatives."""
    black_is_background: bool = False
    """Whether the black around a moved slice is learned as background, if the slice is labelled everywhere."""

    def of(
        self, stacks: Float[Tensor, "b c d s s"], classes: Int[Tensor, "b m s s"], labels: int, generator: Generator
    ) -> tuple[Float[Tensor, "b c d s s"], Float[Tensor, "b k m s s"], Bool[Tensor, "b m s s"]]:
        """Another view of stacks, all slices of one moved alike; the masks of the labels, and where they are known.

        `classes` are one map per slice, or several.
        """
        if self.augmentation == "always":
            return self._fully_augmented(stacks, classes, labels, generator)
        size, depth = (stacks.shape[-2], stacks.shape[-1]), stacks.shape[2]
        grids = random_grids(len(stacks), size, Moves(elastic=self.elastic, mirror=self.mirror), generator)
        shown = relit(moved(stacks.flatten(1, 2), grids), generator, inverted=self.inverted)
        classes = moved_classes(classes, grids, self.black_is_background)
        return rearrange(shown, "b (c d) h w -> b c d h w", d=depth), masks_of(classes, labels), classes != UNKNOWN

    def _fully_augmented(
        self, stacks: Float[Tensor, "b c d s s"], classes: Int[Tensor, "b m s s"], labels: int, generator: Generator
    ) -> tuple[Float[Tensor, "b c d s s"], Float[Tensor, "b k m s s"], Bool[Tensor, "b m s s"]]:
        depth = stacks.shape[2]
        maps = torch.cat([masks_of(classes, labels), (classes != UNKNOWN).float()[:, None]], dim=1)
        everywhere = torch.ones(len(stacks), *stacks.shape[-2:], dtype=torch.bool)
        shown, maps, _ = augmented(stacks.flatten(1, 2), maps.flatten(1, 2), everywhere, generator)
        if self.elastic:
            shown, maps = _deformed(shown, maps, self.elastic, generator)
        if self.mirror:
            turned = (torch.rand(len(stacks), generator=generator) < 0.5)[:, None, None, None]
            shown, maps = (torch.where(turned, part.flip(-1), part) for part in (shown, maps))
        maps = rearrange(maps, "b (m d) h w -> b m d h w", d=classes.shape[1])
        # a pixel is known where nothing unknown was mixed into it; outside of the slice all is unknown
        known = maps[:, -1] >= 0.999
        if self.black_is_background:
            known |= (classes != UNKNOWN).all(dim=(-2, -1))[..., None, None]
        return rearrange(shown, "b (c d) h w -> b c d h w", d=depth), maps[:, :-1], known


class LabelledViews:
    """Moved and relit views of labelled slices, for trainings that also use unlabelled ones."""

    def __init__(self, stacked: StackedSupport, views: Views, device: torch.device) -> None:
        self.stacked, self.views, self.device = stacked, views, device

    def of(
        self, sampler: BalancedSampler, generator: Generator
    ) -> tuple[Float[Tensor, "b c s s"], Int[Tensor, "b s s"], Bool[Tensor, " b"]]:
        """Another view of the slices that the sampler chooses, their class numbers, and which are scribbled.

        All are on the device.
        """
        rows = sampler.sample(generator)
        stacks, classes = self.stacked.around(rows, 1)
        grids = self.grids(len(stacks), stacks.shape[-1], generator)
        shown = self.relit(moved(stacks[:, :, 0], grids), generator)
        found = moved_classes(classes, grids, self.views.black_is_background)[:, 0].long().to(self.device)
        return shown.to(self.device), found, self.stacked.scribbled[rows].to(self.device)

    def relit(
        self, slices: Float[Tensor, "n c s s"], generator: Generator, strength: float = 1.0
    ) -> Float[Tensor, "n c s s"]:
        """Slices with other grey values, as many of them negatives as the views have; also unlabelled ones."""
        return relit(slices, generator, strength, self.views.inverted)

    def grids(self, n: int, side: int, generator: Generator) -> Float[Tensor, "n s s 2"]:
        """Where each pixel of n views comes from."""
        return random_grids(n, (side, side), Moves(elastic=self.views.elastic, mirror=self.views.mirror), generator)


class NetLoss:
    """The loss of one training step on labelled slices."""

    def __init__(
        self,
        net: Net,
        stacked: StackedSupport,
        labels: int,
        views: Views,
        batch: int,
        rare_class_weight: float,
        steps: int,
    ) -> None:
        """Over all `steps` the `rare_class_weight` falls to nothing."""
        self.net, self.stacked, self.labels, self.views = net, stacked, labels, views
        self.rare_class_weight, self.steps = rare_class_weight, steps
        self.sampler = BalancedSampler(stacked.holds(labels), batch, stacked.labelled)

    def __call__(self, step: int, generator: Generator) -> Tensor:
        self.net.train()
        stacks, classes = self.stacked.around(self.sampler.sample(generator), self.net.plan.depth)
        shown, masks, valid_mask = self.views.of(stacks, classes, self.labels, generator)
        device = next(self.net.parameters()).device
        weight = fading(self.rare_class_weight, step, self.steps)
        return exits_loss(self.net.exits(shown.to(device)), masks.to(device), valid_mask.to(device), weight)


def masks_of(classes: Int[Tensor, "b d s s"], labels: int) -> Float[Tensor, "b k d s s"]:
    """One map a label, 1 inside of it."""
    return (classes[:, None] == torch.arange(1, labels + 1)[:, None, None, None].to(classes)).float()


def exits_loss(
    exits: Sequence[Float[Tensor, "b k _ _ _"]],
    masks: Float[Tensor, "b k d s s"],
    valid_mask: Bool[Tensor, "b d s s"],
    rare_class_weight: float = 0.0,
    scribbled: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Dice and cross entropy of each exit, finest first, each with half the weight of the one before.

    Scribbled slices have the partial cross entropy of each exit, enlarged to the size of the strokes. The Dice of the
    others is that of the whole batch, as nnU-Net has it for slices: many hold but a sliver of a label, or none. A
    coarser exit learns the share of each of its pixels that a label covers, where all of the pixel is known.
    """
    if scribbled is not None and (share := float(scribbled.float().mean())):
        strokes = _strokes_loss([logits[scribbled] for logits in exits], masks[scribbled], valid_mask[scribbled])
        if share == 1:
            return strokes
        whole = [logits[~scribbled] for logits in exits], masks[~scribbled], valid_mask[~scribbled]
        return share * strokes + (1 - share) * exits_loss(*whole, rare_class_weight)
    losses = []
    for logits in exits:
        target, shown = coarser_target(masks, valid_mask, (logits.shape[-3], logits.shape[-2], logits.shape[-1]))
        found = rearrange(logits, "b k d h w -> 1 k (b d h) w")
        target = rearrange(target, "b k d h w -> 1 k (b d h) w")
        losses.append(dice_ce(found, target, rearrange(shown, "b d h w -> 1 (b d h) w"), rare_class_weight))
    return _of_exits(losses)


def _strokes_loss(
    exits: Sequence[Float[Tensor, "b k _ _ _"]], masks: Float[Tensor, "b k d s s"], valid_mask: Bool[Tensor, "b d s s"]
) -> Float[Tensor, ""]:
    target, known = rearrange(masks, "b k d h w -> b k (d h) w"), rearrange(valid_mask, "b d h w -> b (d h) w")
    losses = []
    for logits in exits:
        enlarged = F.interpolate(logits.float(), masks.shape[-3:], mode="trilinear", align_corners=False)
        losses.append(partial_ce(rearrange(enlarged, "b k d h w -> b k (d h) w"), target, known))
    return _of_exits(losses)


def _of_exits(losses: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The weighted mean of the losses of all exits."""
    weights = [0.5**place for place in range(len(losses))]
    return (torch.stack(list(losses)) * losses[0].new_tensor(weights)).sum() / sum(weights)


def coarser_target(
    masks: Float[Tensor, "b k d s s"], valid_mask: Bool[Tensor, "b d s s"], size: tuple[int, int, int]
) -> tuple[Float[Tensor, "b k slices rows columns"], Bool[Tensor, "b slices rows columns"]]:
    """Both on fewer slices, rows and columns: the share that a mask covers, and whether all of a pixel is known."""
    if size == masks.shape[-3:]:
        return masks, valid_mask
    extent = [whole // part for whole, part in zip(masks.shape[-3:], size, strict=True)]
    return F.avg_pool3d(masks, extent), -F.max_pool3d(-valid_mask.float(), extent) > 0.5


def _deformed(
    slices: Float[Tensor, "n c h w"], maps: Float[Tensor, "n m h w"], strongest: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Both moved by a smooth random field: shifts at 6 × 6 knots, of a deviation of up to `strongest` sides."""
    n, _, h, w = slices.shape
    strength = 2 * strongest * torch.rand(n, 1, 1, 1, generator=generator)  # grid_sample's frame is 2 wide
    knots = strength * torch.randn(n, 2, 6, 6, generator=generator)
    shifts = F.interpolate(knots, (h, w), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), [n, 1, h, w], align_corners=False) + shifts
    return F.grid_sample(slices, grid, align_corners=False), F.grid_sample(maps, grid, align_corners=False)
