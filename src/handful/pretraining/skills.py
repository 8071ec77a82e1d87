"""What handful-tiny practises in a step: answer prompts, recall support slices, and read class embeddings.

All three are asked of the same slices through the same modules that real SAM 2 weights use, so one encoding pays
for all.
Objects are numbered subject by subject: row (slice n, target t) is n · t_count + t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone, PromptEmbeddings
from handful.prompts.heuristics import append_points, boxes, corrective_points, inside_points
from handful.prompts.prompts import Prompts


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices of several episodes with the targets to find in them; `group` tells which episode a slice is of."""

    images: Float[Tensor, "n c h w"]
    masks: Bool[Tensor, "n t h w"]
    group: Int[Tensor, "n"]


@dataclass(frozen=True)
class Skill:
    """One practised skill: what it cost, and the mean Dice where the target was there."""

    loss: Tensor
    dice: float


def practise(backbone: MemoryBackbone, batch: Batch, rng: Generator) -> dict[str, Skill]:
    """Loss and Dice of each skill on one batch."""
    image = backbone.encode(batch.images)
    target = backbone.to_square(batch.masks.float(), backbone.mask_side)
    support = _supports(batch.group, int(torch.randint(1, 4, (1,), generator=rng)), rng)
    skills = {
        "memory": score(_recalled(backbone, image, batch, support), target),
        "tokens": score(_token_prompted(backbone, image, batch, support), target),
    }
    for name, prediction in _prompted(backbone, image, batch, rng).items():
        skills[name] = score(prediction, target)
    return skills


def score(prediction: MaskPrediction, target: Float[Tensor, "n t s s"]) -> Skill:
    """Focal and Dice loss of the mask, squared error of the predicted IoU, cross-entropy of the object score.

    Targets are area fractions: a border cell is half a target, so borders are learnt finer than the grid of the logits.
    Where a target is absent, only the focal loss asks for an empty mask.
    """
    logits = prediction.logits
    inside = logits.sigmoid()
    there = (target.amax(dim=(2, 3)) > 0.5).float()
    focal = (inside - target).abs() ** 2 * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    overlap, total = (inside * target).sum(dim=(2, 3)), (inside + target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        shown, truth = logits > 0, target > 0.5
        shared, either = (shown & truth).sum(dim=(2, 3)).float(), (shown | truth).sum(dim=(2, 3)).float()
        iou = shared / either.clamp_min(1)
        hard = 2 * shared / (shown.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).clamp_min(1)
    present = there.sum().clamp_min(1)
    loss = 20 * focal.mean() + (dice * there).sum() / present
    loss = loss + ((prediction.iou - iou) ** 2 * there).sum() / present
    if prediction.object_score is not None:
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(prediction.object_score, there)
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
        seen.logits.unflatten(0, (n, t))[:, :, 0],
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
