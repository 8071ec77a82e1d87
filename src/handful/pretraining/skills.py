"""What handful-tiny practises in a step: match structures, answer prompts, recall slices, read class embeddings.

All are asked of the same slices through the same modules that real SAM 2 weights use, so one encoding pays for all.
Objects are numbered subject by subject: row (slice n, target t) is n · t_count + t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone, PromptEmbeddings
from handful.prompts.heuristics import append_points, boxes, corrective_points, inside_points
from handful.prompts.prompts import Prompts


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices of several episodes, equally many of each, one episode after the other."""

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n h w"]
    """Every structure of the anatomy."""
    masks: Bool[Tensor, "n t h w"]
    """The targets to find."""
    group: Int[Tensor, "n"]
    """Which episode a slice is of."""


@dataclass(frozen=True)
class Skill:
    """One practised skill: what it cost, and the mean Dice where the target was there."""

    loss: Tensor
    dice: float


def practise(backbone: MemoryBackbone, batch: Batch, rng: Generator, only_match: bool = False) -> dict[str, Skill]:
    """Loss and Dice of each skill on one batch; `only_match` leaves all but the matching of structures for later."""
    image = backbone.encode(batch.images)
    matched = match(image, batch)
    if only_match:
        return {"match": matched}
    target = backbone.to_square(batch.masks.float(), backbone.mask_side)
    support = _supports(batch.group, int(torch.randint(1, 4, (1,), generator=rng)), rng)
    skills = {
        "memory": score(_recalled(backbone, image, batch, support), target),
        "tokens": score(_token_prompted(backbone, image, batch, support), target),
    }
    for name, prediction in _prompted(backbone, image, batch, rng).items():
        skills[name] = score(prediction, target)
    return skills | {"match": matched}


def match(image: ImageEmbeddings, batch: Batch) -> Skill:
    """Every cell of every feature level finds its structure among the mean embeddings of the other subjects.

    This asks the encoder for features that know a structure again in another individual, and does so for every pixel:
    long before any decoder has learnt to read them. In place of Dice stands the share of pure cells that are right.
    """
    groups = int(batch.group.max()) + 1
    count = int(batch.labels.max()) + 1
    structures = F.one_hot(batch.labels, count).movedim(-1, 1).float()
    losses, right = [], []
    for level in image.features:
        share = rearrange(F.adaptive_avg_pool2d(structures, level.shape[-1]), "(g s) l h w -> g s l (h w)", g=groups)
        cells = rearrange(F.normalize(level, dim=1), "(g s) c h w -> g s c (h w)", g=groups)
        sums, weight = share @ cells.transpose(-1, -2), share.sum(dim=-1)
        others, seen = sums.sum(dim=1, keepdim=True) - sums, weight.sum(dim=1, keepdim=True) - weight > 0.3
        logits = 10 * F.normalize(others, dim=-1) @ cells
        logits = logits.masked_fill(~seen[..., None], -1e4)
        # square roots of the areas as weights: neither do large regions drown organs nor specks rule
        wanted = share * seen[..., None] * (weight.sum(dim=1, keepdim=True) + 1).rsqrt()[..., None]
        losses.append(-(wanted * logits.log_softmax(dim=2)).sum() / wanted.sum().clamp_min(1e-6))
        pure = share.amax(dim=2) > 0.6
        right.append(float((logits.argmax(dim=2) == share.argmax(dim=2))[pure].float().mean()))
    return Skill(torch.stack(losses).mean(), sum(right) / len(right))


def score(prediction: MaskPrediction, target: Float[Tensor, "n t s s"]) -> Skill:
    """Cross-entropy and Dice loss of the mask, squared error of the predicted IoU, cross-entropy of the object score.

    Targets are area fractions: a border cell is half a target, so borders are learnt finer than the grid of the logits.
    Where a target is absent, only the cross-entropy asks for an empty mask.
    """
    logits = prediction.logits
    inside = logits.sigmoid()
    there = (target.amax(dim=(2, 3)) > 0.5).float()
    overlap, total = (inside * target).sum(dim=(2, 3)), (inside + target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        shown, truth = logits > 0, target > 0.5
        shared, either = (shown & truth).sum(dim=(2, 3)).float(), (shown | truth).sum(dim=(2, 3)).float()
        iou = shared / either.clamp_min(1)
        hard = 2 * shared / (shown.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).clamp_min(1)
    present = there.sum().clamp_min(1)
    loss = F.binary_cross_entropy_with_logits(logits, target) + (dice * there).sum() / present
    loss = loss + ((prediction.iou - iou) ** 2 * there).sum() / present
    if prediction.object_score is not None:
        loss = loss + 0.2 * F.binary_cross_entropy_with_logits(prediction.object_score, there)
    return Skill(loss, float((hard * there).sum() / present))


def _supports(group: Int[Tensor, "n"], count: int, rng: Generator) -> Int[Tensor, "n m"]:
    """For every slice, `count` other slices of its episode, in random order."""
    rows = []
    for n, own in enumerate(group.tolist()):
        others = ((group == own) & (torch.arange(len(group)) != n)).nonzero()[:, 0]
        rows.append(others[torch.randperm(len(others), generator=rng)[:count]])
    return torch.stack(rows)


def _recalled(backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, support: Tensor) -> MaskPrediction:
    n, t = batch.masks.shape[:2]
    objects = image.repeat_interleave(t)
    truth = torch.where(batch.masks.flatten(0, 1), 10.0, -10.0)
    bank = backbone.memorize(objects, truth)
    rows = support[:, None] * t + torch.arange(t, device=support.device)[:, None]  # (n, t, m)
    parts = [bank[rows[:, :, m].flatten()] for m in range(support.shape[1])]
    seen = backbone.decode_recalled(backbone.recall(objects, Memory.cat(parts)))
    assert seen.object_score is not None
    return MaskPrediction(
        rearrange(seen.logits, "(n t) 1 h w -> n t h w", n=n),
        seen.iou.view(n, t),
        seen.object_score.view(n, t),
        seen.tokens.view(n, t, -1),
    )


def _token_prompted(backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, support: Tensor) -> MaskPrediction:
    """Class embeddings of the support as sparse prompts; a slice without the target lends the mean of those with it."""
    share = backbone.to_square(batch.masks.float(), backbone.feature_side)
    weight = share.sum(dim=(2, 3))
    sums = torch.einsum("nthw,nchw->ntc", share, image.main)
    present = (weight > 1 / 256).float()[..., None]
    tokens = present * sums / weight.clamp_min(1 / 256)[..., None]
    chosen, held = tokens[support].transpose(1, 2), present[support].transpose(1, 2)
    mean = chosen.sum(dim=2, keepdim=True) / held.sum(dim=2, keepdim=True).clamp_min(1)
    return backbone.decode_square(image, PromptEmbeddings(torch.where(held > 0, chosen, mean)))


def _prompted(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, rng: Generator
) -> dict[str, MaskPrediction]:
    """A first answer to points or a box, and a second one to a corrective click on the first."""
    size, device = (batch.masks.shape[-2], batch.masks.shape[-1]), batch.images.device
    masks = batch.masks.cpu()
    first = inside_points(masks, int(torch.randint(1, 4, (1,), generator=rng)), rng)
    name = "points"
    if float(torch.rand(1, generator=rng)) < 0.5:
        name = "box"
        assert first.points is not None
        assert first.point_labels is not None
        first = Prompts(first.points[:, :, :0], first.point_labels[:, :, :0], boxes(masks, 0.08, rng))
    answer = backbone.decode_square(image, backbone.embed(first.to(device), size))
    logits = answer.logits.detach()
    shown = backbone.to_slice(logits, size) > 0
    second = append_points(first, corrective_points(shown.cpu(), masks, rng)).to(device)
    second = replace(second, masks=backbone.to_slice(logits, size))
    return {name: answer, "correction": backbone.decode_square(image, backbone.embed(second, size))}
