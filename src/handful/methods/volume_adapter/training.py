"""How `volume-adapter` learns: stacks around labelled slices, another view of each at every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings
from handful.data.support import LabelledScan
from handful.jobs.digests import digest_of
from handful.methods.encoded_support import framed_labels
from handful.methods.volume_adapter.network import VolumeNetwork
from handful.prompts.heuristics import inside_points
from handful.tuning.augment import moved_and_relit
from handful.tuning.losses import dice_bce, dice_ce, whole_batch, with_scribbles
from handful.tuning.sampling import BalancedSampler


@dataclass(frozen=True, eq=False)
class StackedScan:
    """The labelled slices of one scan and their neighbours, in the order of the scan."""

    slices: Float[Tensor, "m c h w"]
    classes: Int[Tensor, "m h w"]
    """0 for the background, 1 + its index for a label."""
    valid_mask: Bool[Tensor, "m h w"]
    """False where nobody has labelled anything, as on all of a slice without labels."""
    scribbled: Bool[Tensor, " m"]
    """Which slices have scribbles, not whole masks."""
    labels: int
    present: Bool[Tensor, "r k"]
    """Which label is on which of the labelled slices."""
    stacks: tuple[range, ...]
    """Rows of the stack around each labelled slice; shorter at the ends of the scan."""

    @classmethod
    def of(cls, scan: LabelledScan, reach: int) -> StackedScan:
        """The slices of a scan up to `reach` slices away from a labelled one."""
        labelled, last = scan.labelled(), len(scan.view) - 1
        around = [range(max(0, i - reach), min(i + reach, last) + 1) for i in labelled.index]
        near = sorted({number for numbers in around for number in numbers})
        row_of = {number: row for row, number in enumerate(near)}
        rows = [row_of[number] for number in labelled.index]
        classes = torch.zeros(len(near), *labelled.classes.shape[1:], dtype=labelled.classes.dtype)
        valid_mask, scribbled = torch.zeros(classes.shape, dtype=torch.bool), torch.zeros(len(near), dtype=torch.bool)
        classes[rows], valid_mask[rows], scribbled[rows] = labelled.classes, labelled.valid_mask, labelled.scribbled
        stacks = tuple(range(row_of[numbers[0]], row_of[numbers[-1]] + 1) for numbers in around)
        slices = scan.view.take(near)
        return cls(slices, classes, valid_mask, scribbled, labelled.labels, labelled.present(), stacks)

    def view(
        self, rows: range, generator: Generator
    ) -> tuple[Float[Tensor, "d c h w"], Float[Tensor, "d k h w"], Bool[Tensor, "d h w"]]:
        """A random view of a stack, whose slices are all changed alike: slices, masks, and where labels are known."""
        part, depth = slice(rows.start, rows.stop), len(rows)
        numbers = torch.arange(1, self.labels + 1, dtype=self.classes.dtype)[:, None, None]
        masks = (self.classes[part][:, None] == numbers).float()
        everywhere = torch.ones(1, *masks.shape[-2:], dtype=torch.bool)
        shown, _, grid = moved_and_relit(_as_channels(self.slices[part]), everywhere, generator)
        moved = F.grid_sample(_as_channels(masks), grid, align_corners=False)
        known = F.grid_sample(self.valid_mask[None, part].float(), grid, mode="nearest", align_corners=False)[0] > 0
        shown, moved = (rearrange(one, "1 (d c) h w -> d c h w", d=depth) for one in (shown, moved))
        return shown, moved * known[:, None], known


class StackLoss:
    """The loss of one training step: Dice and cross entropy without prompts, and those of one click per label."""

    def __init__(self, network: VolumeNetwork, support: Sequence[StackedScan], batch: int, clicks: float) -> None:
        """`clicks` is the weight of the loss with clicks; 0 leaves it out."""
        self.network, self.support, self.clicks = network, support, clicks
        self.stacks = [(scan, rows) for scan in support for rows in scan.stacks]
        self.sampler = BalancedSampler(torch.cat([scan.present for scan in support]), batch)

    def __call__(self, step: int, generator: Generator) -> Tensor:
        encoder, parts, by_clicks = self.network.encoder, [], []
        for number in self.sampler.sample(generator).tolist():
            scan, rows = self.stacks[number]
            scribbled = scan.scribbled[rows.start : rows.stop]
            slices, masks, known = scan.view(rows, generator)
            framed, valid = framed_labels(encoder, masks, known[:, None].float(), encoder.mask_side, scribbled)
            target, valid = (framed >= 0.5).float().to(encoder.device), valid.to(encoder.device)
            image = encoder.encode_exact(slices.to(encoder.device))
            parts.append((self.network(self.network.prompted(image)), target, valid, scribbled))
            inside = (masks >= 0.5) & ~scribbled[:, None, None, None]
            if self.clicks and bool(inside.any()):
                by_clicks.append(self._click_loss(image, inside, target, valid, generator))
        loss = _automatic_loss(*(torch.cat(one) for one in zip(*parts, strict=True)))
        return loss + self.clicks * torch.stack(by_clicks).mean() if by_clicks else loss

    def _click_loss(
        self, image: ImageEmbeddings, masks: Tensor, target: Tensor, valid: Tensor, generator: Generator
    ) -> Float[Tensor, ""]:
        """Of the masks that one random click inside each label gives, on all slices with a label."""
        prompts = inside_points(masks, 1, generator)
        present = prompts.is_prompted()
        found = self.network.clicked(image, prompts)
        chosen = present.to(found.device)
        known = repeat(valid, "n h w -> n k h w", k=masks.shape[1])
        return dice_bce(found[chosen][:, None], target[chosen][:, None], known[chosen])


def _automatic_loss(
    logits: Float[Tensor, "n k s s"],
    target: Float[Tensor, "n k s s"],
    valid: Bool[Tensor, "n s s"],
    scribbled: Bool[Tensor, " n"],
) -> Float[Tensor, ""]:
    """Dice of the batch and cross entropy, and partial cross entropy of scribbles, on the slices that have labels."""
    labelled = valid.flatten(1).any(dim=1)
    rows = labelled if bool(labelled.any()) else torch.ones_like(labelled)
    return with_scribbles(
        lambda *whole: dice_ce(*whole_batch(*whole)), logits[rows], target[rows], valid[rows], scribbled[rows.cpu()]
    )


def digest(support: Iterable[StackedScan]) -> str:
    """SHA-256 of all that training uses."""
    return digest_of(*(part for scan in support for part in (scan.slices, scan.classes, scan.valid_mask)))


def _as_channels(maps: Float[Tensor, "d c h w"]) -> Float[Tensor, "1 m h w"]:
    return rearrange(maps, "d c h w -> 1 (d c) h w")
