"""What handful-tiny practises in a step: match structures, answer prompts, recall slices, follow them through a stack.

All are asked of the same slices through the same modules that real SAM 2 weights use, so one encoding pays for all.
Objects are numbered slice by slice: row (slice n, target t) is n · t_count + t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings, MaskPrediction, Memory, MemoryBackbone, PromptEmbeddings
from handful.prompts.heuristics import append_points, boxes, corrective_points, ellipses, inside_points
from handful.prompts.prompts import Prompts

MOST_SUPPORTS = 8
"""Support slices a query may have."""
ROUNDS = (1, 1, 1, 2, 4)
"""How many corrective clicks are practised, one of these a step; only the last answer is learnt from."""

REPLAYED = ("box", "points", "correction", "mask")
"""Skills of the decoder alone, which can be practised again on embeddings that are there."""


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
    subject: Int[Tensor, "n"]
    """Which individual of its episode a slice is of; an individual's slices are neighbours, in order."""


@dataclass(frozen=True)
class Task:
    """One practised task: what it cost, the mean Dice where the target was there, and how honest its scores were."""

    loss: Tensor
    dice: float
    seen: float | None = None
    """Share of the targets in a slice whose object score says so."""
    rejected: float | None = None
    """Share of the targets missing from a slice whose object score says so; None where none was missing."""
    iou_error: float | None = None
    """Mean distance between the predicted and the true IoU where the target was there."""


def train_step(backbone: MemoryBackbone, batch: Batch, rng: Generator, only_match: bool = False) -> dict[str, Task]:
    """Loss and Dice of each task on one batch; `only_match` leaves all but the matching of structures for later."""
    image = backbone.encode_exact(batch.images)
    matched = match(image, batch)
    if only_match:
        return {"match": matched}
    target = backbone.to_model_frame(batch.masks.float(), backbone.mask_side)
    support = choose_supports(batch, int(torch.randint(1, MOST_SUPPORTS + 1, (1,), generator=rng)), rng)
    bank = backbone.memorize(image.repeat_interleave(batch.masks.shape[1]), _certain(batch.masks.flatten(0, 1)))
    memory = _recalled(backbone, image, batch, bank, support)
    tasks = {
        "memory": score(memory, target),
        "tokens": score(_token_prompted(backbone, image, batch, support), target),
    }
    if int(torch.bincount(batch.subject[batch.group == 0]).max()) > 1:
        rows, prediction = _followed(backbone, image, batch, bank, support, memory, rng)
        tasks["neighbour"] = score(prediction, target[rows])
    for name, (answer, truth) in _prompted(backbone, image, batch, memory, rng).items():
        tasks[name] = score(answer, backbone.to_model_frame(truth.float(), backbone.mask_side))
    return tasks | {"match": matched}


def replay(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, name: str, rng: Generator
) -> dict[str, Task]:
    """One of REPLAYED on embeddings that are there already, at a small part of a whole step's cost."""
    pieces = largest_pieces(batch.masks)
    if name == "correction":
        first = _box(pieces, rng) if _chance(0.5, rng) else _points(pieces, rng)
        with torch.no_grad():
            answer = _ask(backbone, image, first, pieces)
        answer = _correct(backbone, image, first, answer, pieces, rng)
    else:
        asked = {"box": _box, "points": _points, "mask": _rough}[name]
        answer = _ask(backbone, image, asked(pieces, rng), pieces)
    return {name: score(answer, backbone.to_model_frame(pieces.float(), backbone.mask_side))}


def match(image: ImageEmbeddings, batch: Batch) -> Task:
    """Every cell of every feature level finds its structure among the mean embeddings of the other subjects.

    This asks the encoder for features that know a structure again in another individual, and does so for every pixel:
    long before any decoder has learnt to read them. In place of Dice stands the share of pure cells that are right.
    """
    groups = int(batch.group.max()) + 1
    count = int(batch.labels.max()) + 1
    structures = F.one_hot(batch.labels.long(), count).movedim(-1, 1).float()
    subject = rearrange(batch.subject, "(g s) -> g s", g=groups)
    same = (subject[:, :, None] == subject[:, None]).float()
    losses, right = [], []
    for level in image.features:
        share = rearrange(F.adaptive_avg_pool2d(structures, level.shape[-1]), "(g s) l h w -> g s l (h w)", g=groups)
        cells = rearrange(F.normalize(level.float(), dim=1), "(g s) c h w -> g s c (h w)", g=groups)
        sums, weight = share @ cells.transpose(-1, -2), share.sum(dim=-1)
        others = sums.sum(dim=1, keepdim=True) - torch.einsum("gsr,grlc->gslc", same, sums)
        seen = weight.sum(dim=1, keepdim=True) - torch.einsum("gsr,grl->gsl", same, weight) > 0.3
        logits = 10 * F.normalize(others, dim=-1) @ cells
        logits = logits.masked_fill(~seen[..., None], -1e4)
        # square roots of the areas as weights: neither do large regions drown organs nor specks rule
        wanted = share * seen[..., None] * (weight.sum(dim=1, keepdim=True) + 1).rsqrt()[..., None]
        losses.append(-(wanted * logits.log_softmax(dim=2)).sum() / wanted.sum().clamp_min(1e-6))
        pure = share.amax(dim=2) > 0.6
        right.append(float((logits.argmax(dim=2) == share.argmax(dim=2))[pure].float().mean()))
    return Task(torch.stack(losses).mean(), sum(right) / len(right))


def score(prediction: MaskPrediction, target: Float[Tensor, "n t s s"]) -> Task:
    """Cross-entropy and Dice loss of the mask, squared error of the predicted IoU, cross-entropy of the object score.

    Targets are area fractions: a border cell is half a target, so borders are learnt finer than the grid of the logits.
    Where a target is absent, only the cross-entropy asks for an empty mask. Absent targets, however few, weigh as much
    in the object score as those that are there: an organ that is not in the slice must be called absent.
    """
    logits = prediction.logits.float()
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
    loss = loss + ((prediction.iou.float() - iou) ** 2 * there).sum() / present
    iou_error = float(((prediction.iou.detach().float() - iou).abs() * there).sum() / present)
    dice_there = float((hard * there).sum() / present)
    if prediction.object_score is None:
        return Task(loss, dice_there, iou_error=iou_error)
    said = prediction.object_score.float()
    absent = 1 - there
    doubt = F.binary_cross_entropy_with_logits(said, there, reduction="none")
    loss = loss + 0.2 * ((doubt * there).sum() / present + (doubt * absent).sum() / absent.sum().clamp_min(1))
    rejected = float(((said <= 0) * absent).sum() / absent.sum()) if absent.any() else None
    return Task(loss, dice_there, float(((said > 0) * there).sum() / present), rejected, iou_error)


def choose_supports(batch: Batch, count: int, rng: Generator) -> Int[Tensor, "n t m"]:
    """For every slice and target at most `count` supports: slices of other individuals, those with the target first.

    Once in five times the individual's own other slices may be among them, as when one slice of a stack is labelled.
    Every row has equally many, so the last ones may lack the target.
    """
    own = batch.group[:, None] == batch.group
    same = own & (batch.subject[:, None] == batch.subject)
    allowed = own & ~(torch.eye(len(own), dtype=torch.bool, device=own.device) if _chance(0.2, rng) else same)
    count = min(count, int(allowed.sum(dim=1).min()))
    held = batch.masks.flatten(2).any(dim=2)  # (n, t)
    order = torch.rand(len(own), batch.masks.shape[1], len(own), generator=rng).to(own.device)
    order = order + 2.0 * allowed[:, None] + 1.0 * (held.T[None] & allowed[:, None])
    return order.argsort(dim=2, descending=True)[:, :, :count]


def _certain(masks: Bool[Tensor, "o h w"]) -> Tensor:
    return torch.where(masks, 10.0, -10.0)


def _recalled(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, bank: Memory, support: Tensor
) -> MaskPrediction:
    n, t = batch.masks.shape[:2]
    objects = image.repeat_interleave(t)
    return _by_slice(backbone.decode_recalled(backbone.recall(objects, _remembered(bank, support))), n)


def _remembered(bank: Memory, support: Int[Tensor, "n t m"]) -> Memory:
    """The memories of every object's supports; `bank` has one of each (slice, target)."""
    t = support.shape[1]
    rows = support * t + torch.arange(t, device=support.device)[:, None]
    return Memory.cat([bank[rows[:, :, m].flatten()] for m in range(support.shape[2])])


def _followed(
    backbone: MemoryBackbone,
    image: ImageEmbeddings,
    batch: Batch,
    bank: Memory,
    support: Tensor,
    memory: MaskPrediction,
    rng: Generator,
) -> tuple[Tensor, MaskPrediction]:
    """One slice of each individual, seen with what was predicted in its neighbours, with and without the supports."""
    t = batch.masks.shape[1]
    stacks = [torch.stack(rows) for rows in _stacks(batch)]
    size = min(len(stack) for stack in stacks)
    asked = int(torch.randint(0, size, (1,), generator=rng))
    others = [place for place in range(size) if place != asked]
    rows = torch.stack([stack[asked] for stack in stacks])
    objects = image[rows].repeat_interleave(t)
    parts = [_remembered(bank, support[rows])] if _chance(0.6, rng) else []
    for place in others:
        near = torch.stack([stack[place] for stack in stacks])
        seen = MaskPrediction(
            memory.logits[near].detach().flatten(0, 1)[:, None],
            memory.iou[near].detach().flatten()[:, None],
            None if memory.object_score is None else memory.object_score[near].detach().flatten()[:, None],
            memory.tokens[near].detach().flatten(0, 1)[:, None],
        )
        parts.append(backbone.remember(image[near].repeat_interleave(t), seen, abs(place - asked)))
    return rows, _by_slice(backbone.decode_recalled(backbone.recall(objects, Memory.cat(parts))), len(rows))


def _stacks(batch: Batch) -> list[list[Tensor]]:
    """The rows of each individual of each episode, in order."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    keys = zip(batch.group.tolist(), batch.subject.tolist(), strict=True)
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(torch.tensor(row, device=batch.group.device))
    return list(found.values())


def _by_slice(seen: MaskPrediction, n: int) -> MaskPrediction:
    """Answers of n · t objects, one a row, as those of n slices × t targets."""
    assert seen.object_score is not None
    return MaskPrediction(
        rearrange(seen.logits, "(n t) 1 h w -> n t h w", n=n),
        seen.iou.reshape(n, -1),
        seen.object_score.reshape(n, -1),
        rearrange(seen.tokens, "(n t) 1 c -> n t c", n=n),
    )


def _token_prompted(backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, support: Tensor) -> MaskPrediction:
    """Class embeddings of the support as sparse prompts; a slice without the target lends the mean of those with it."""
    share = backbone.to_model_frame(batch.masks.float(), backbone.feature_side)
    weight = share.sum(dim=(2, 3))
    sums = torch.einsum("nthw,nchw->ntc", share, image.main)
    present = (weight > 1 / 256).float()[..., None]
    tokens = present * sums / weight.clamp_min(1 / 256)[..., None]
    target = torch.arange(support.shape[1], device=support.device)[None, :, None]
    chosen, held = tokens[support, target], present[support, target]
    mean = chosen.sum(dim=2, keepdim=True) / held.sum(dim=2, keepdim=True).clamp_min(1)
    return backbone.decode_square(image, PromptEmbeddings(torch.where(held > 0, chosen, mean)))


def _prompted(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, memory: MaskPrediction, rng: Generator
) -> dict[str, tuple[MaskPrediction, Tensor]]:
    """Answers to points, a box, a rough mask, and to corrective clicks on what points, box or memory said; the truth.

    Points and boxes ask for one piece of a target, as people do, and the memory for all of it.
    """
    pieces = largest_pieces(batch.masks)
    points, box = _points(pieces, rng), _box(pieces, rng)
    pointed, boxed = _ask(backbone, image, points, pieces), _ask(backbone, image, box, pieces)
    start = int(torch.randint(0, 3, (1,), generator=rng))
    prompts, answer = ((points, pointed), (box, boxed), (replace(box, boxes=None), memory))[start]
    truth = batch.masks if start == 2 else pieces
    return {
        "points": (pointed, pieces),
        "box": (boxed, pieces),
        "mask": (_ask(backbone, image, _rough(pieces, rng), pieces), pieces),
        "correction": (_correct(backbone, image, prompts, answer, truth, rng), truth),
    }


def _ask(backbone: MemoryBackbone, image: ImageEmbeddings, prompts: Prompts, masks: Tensor) -> MaskPrediction:
    size = (masks.shape[-2], masks.shape[-1])
    return backbone.decode_square(image, backbone.embed(prompts.to(masks.device), size))


def _correct(
    backbone: MemoryBackbone,
    image: ImageEmbeddings,
    prompts: Prompts,
    answer: MaskPrediction,
    masks: Bool[Tensor, "n t h w"],
    rng: Generator,
) -> MaskPrediction:
    """The answer after one to four corrective clicks, each with the mask before it as a prompt."""
    size = (masks.shape[-2], masks.shape[-1])
    rounds = ROUNDS[int(torch.randint(0, len(ROUNDS), (1,), generator=rng))]
    for last in [False] * (rounds - 1) + [True]:
        logits = backbone.to_image_frame(answer.logits.detach().float(), size)
        prompts = append_points(prompts, corrective_points(logits.cpu() > 0, masks.cpu(), rng))
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            answer = _ask(backbone, image, replace(prompts, masks=logits), masks)
    return answer


def largest_pieces(masks: Bool[Tensor, "n t h w"]) -> Bool[Tensor, "n t h w"]:
    """The largest connected piece of every mask."""
    pieces = np.zeros(masks.shape, dtype=bool)
    for place, mask in zip(np.ndindex(*masks.shape[:2]), masks.flatten(0, 1).cpu().numpy(), strict=True):
        numbered, count = ndimage.label(mask)
        pieces[place] = mask if count < 2 else numbered == 1 + np.bincount(numbered.ravel())[1:].argmax()
    return torch.from_numpy(pieces).to(masks.device)


def _box(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """A box round each target, tight or loose, and no points."""
    n, t = masks.shape[:2]
    jitter = (0.02, 0.05, 0.1)[int(torch.randint(0, 3, (1,), generator=rng))]
    none = torch.zeros(n, t, 0, 2), torch.zeros(n, t, 0, dtype=torch.long)
    return Prompts(*none, boxes(masks.cpu(), jitter, rng))


def _rough(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """A rough mask to be refined: the ellipse in a box, with the box; or the target shifted, swollen or shrunk."""
    box = _box(masks, rng)
    h, w = masks.shape[-2:]
    assert box.boxes is not None
    if _chance(0.5, rng):
        rough = ellipses(box.boxes, (h, w))
    else:
        box = replace(box, boxes=None)
        reach = max(1, h // int(torch.randint(16, 65, (1,), generator=rng)))
        blurred = F.avg_pool2d(masks.float().cpu(), 2 * reach + 1, stride=1, padding=reach)
        shift = torch.randint(-reach, reach + 1, (2,), generator=rng).tolist()
        rough = blurred.roll(shift, dims=(2, 3)) > 0.2 + 0.6 * torch.rand(1, generator=rng)
    return replace(box, masks=torch.where(rough, 6.0, -6.0))


def _points(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """1 to 3 clicks in each target: half of the times the first is in its middle, where a person would put it."""
    masks = masks.cpu()
    drawn = inside_points(masks, int(torch.randint(1, 4, (1,), generator=rng)), rng)
    if _chance(0.5, rng):
        return drawn
    assert drawn.points is not None
    h, w = masks.shape[-2:]
    deep = F.avg_pool2d(masks.float(), h // 8 + 1, stride=1, padding=h // 16) * masks
    place = deep.flatten(2).argmax(dim=2)
    middle = torch.stack([place % w, place // w], dim=-1).float()[:, :, None]
    return Prompts(torch.cat([middle, drawn.points[:, :, 1:]], dim=2), drawn.point_labels)


def _chance(probability: float, rng: Generator) -> bool:
    return float(torch.rand(1, generator=rng)) < probability
