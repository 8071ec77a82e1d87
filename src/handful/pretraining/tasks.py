"""Training tasks of the embedded models: matching of structures, prompts, memory of labelled slices, of neighbours.

All tasks of a step use the same slices, so the slices are encoded once. They go through the modules that SAM 2's own
weights use. Objects are numbered by slice: target t of slice n is row n · (number of targets) + t.
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
"""Largest number of support slices per query."""
ROUNDS = (1, 1, 1, 2, 4)
"""Numbers of corrective clicks; each step takes one of them at random. Only the last mask is trained."""

REPLAYED = ("box", "points", "correction", "mask")
"""Tasks of the decoder alone, which need no new encoding."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices of several episodes, ordered by episode, with the same number of slices in each."""

    images: Float[Tensor, "n c h w"]
    """In [0, 1]."""
    labels: Int[Tensor, "n h w"]
    """Number of the structure at each pixel, among all structures of the anatomy."""
    masks: Bool[Tensor, "n t h w"]
    """The target masks."""
    group: Int[Tensor, "n"]
    """Index of the episode of each slice."""
    subject: Int[Tensor, "n"]
    """Index of the subject of each slice within its episode; the slices of a subject are neighbours, in order."""


@dataclass(frozen=True)
class Task:
    """Loss and metrics of one training task."""

    loss: Tensor
    dice: float
    """Mean Dice over the targets that are present in their slice."""
    detected: float | None = None
    """Share of the present targets with a positive object score."""
    rejected: float | None = None
    """Share of the absent targets without a positive object score; None if no target is absent."""
    iou_error: float | None = None
    """Mean absolute error of the predicted IoU over the present targets."""


def train_step(backbone: MemoryBackbone, batch: Batch, rng: Generator, only_match: bool = False) -> dict[str, Task]:
    """Return the loss and the metrics of each task on one batch; `only_match` leaves out all tasks but the matching."""
    image = backbone.encode_exact(batch.images)
    matched = match(image, batch)
    if only_match:
        return {"match": matched}
    target = backbone.to_model_frame(batch.masks.float(), backbone.mask_side)
    support = choose_supports(batch, int(torch.randint(1, MOST_SUPPORTS + 1, (1,), generator=rng)), rng)
    bank = backbone.memorize(image.repeat_interleave(batch.masks.shape[1]), _as_logits(batch.masks.flatten(0, 1)))
    memory = _recalled(backbone, image, batch, bank, support)
    tasks = {
        "memory": score(memory, target),
        "tokens": score(_token_prompted(backbone, image, batch, support), target),
    }
    if int(torch.bincount(batch.subject[batch.group == 0]).max()) > 1:
        rows, prediction = _propagated(backbone, image, batch, bank, support, memory, rng)
        tasks["neighbour"] = score(prediction, target[rows])
    for name, (prediction, truth) in _prompted(backbone, image, batch, memory, rng).items():
        tasks[name] = score(prediction, backbone.to_model_frame(truth.float(), backbone.mask_side))
    return tasks | {"match": matched}


def replay(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, name: str, rng: Generator
) -> dict[str, Task]:
    """Return the loss and the metrics of one task of REPLAYED, computed from existing embeddings."""
    pieces = largest_pieces(batch.masks)
    if name == "correction":
        first = _box(pieces, rng) if _chance(0.5, rng) else _points(pieces, rng)
        with torch.no_grad():
            prediction = _predict(backbone, image, first, pieces)
        prediction = _correct(backbone, image, first, prediction, pieces, rng)
    else:
        prompts = {"box": _box, "points": _points, "mask": _rough}[name](pieces, rng)
        prediction = _predict(backbone, image, prompts, pieces)
    return {name: score(prediction, backbone.to_model_frame(pieces.float(), backbone.mask_side))}


def part_step(backbone: MemoryBackbone, batch: Batch, rng: Generator) -> dict[str, Task]:
    """Return the loss and the metrics of some tasks on one batch, at about half the cost of `train_step`.

    These are the matching on the two coarsest levels, the memory, either neighbours or class tokens, and two tasks of
    prompts, which are chosen at random.
    """
    image = backbone.encode_exact(batch.images)
    target = backbone.to_model_frame(batch.masks.float(), backbone.mask_side)
    support = choose_supports(batch, int(torch.randint(1, MOST_SUPPORTS + 1, (1,), generator=rng)), rng)
    bank = backbone.memorize(image.repeat_interleave(batch.masks.shape[1]), _as_logits(batch.masks.flatten(0, 1)))
    memory = _recalled(backbone, image, batch, bank, support)
    tasks = {"match": match(image, batch, levels=2), "memory": score(memory, target)}
    if int(torch.bincount(batch.subject[batch.group == 0]).max()) > 1 and _chance(0.7, rng):
        rows, prediction = _propagated(backbone, image, batch, bank, support, memory, rng)
        tasks["neighbour"] = score(prediction, target[rows])
    else:
        tasks["tokens"] = score(_token_prompted(backbone, image, batch, support), target)
    names = (*REPLAYED, "repair")
    for place in torch.randperm(len(names), generator=rng)[:2].tolist():
        if names[place] == "repair":
            tasks["repair"] = score(_repaired(backbone, image, memory, batch.masks, rng), target)
        else:
            tasks |= replay(backbone, image, batch, names[place], rng)
    return tasks


def match(image: ImageEmbeddings, batch: Batch, levels: int = 3) -> Task:
    """Classify every cell of some feature levels by its similarity to the structures' mean embeddings elsewhere.

    These are the `levels` coarsest ones.

    The mean embeddings come from the other subjects of the episode. This trains the encoder to give a structure the
    same features in every subject before any decoder can use them. `dice` of the result is the share of cells inside
    one structure (more than 60 % of their area) that are classified correctly.
    """
    groups = int(batch.group.max()) + 1
    count = int(batch.labels.max()) + 1
    structures = F.one_hot(batch.labels.long(), count).movedim(-1, 1).float()
    subject = rearrange(batch.subject, "(g s) -> g s", g=groups)
    same = (subject[:, :, None] == subject[:, None]).float()
    losses, right = [], []
    for level in image.features[-levels:]:
        share = rearrange(F.adaptive_avg_pool2d(structures, level.shape[-1]), "(g s) l h w -> g s l (h w)", g=groups)
        cells = rearrange(F.normalize(level.float(), dim=1), "(g s) c h w -> g s c (h w)", g=groups)
        sums, weight = share @ cells.transpose(-1, -2), share.sum(dim=-1)
        others = sums.sum(dim=1, keepdim=True) - torch.einsum("gsr,grlc->gslc", same, sums)
        present = weight.sum(dim=1, keepdim=True) - torch.einsum("gsr,grl->gsl", same, weight) > 0.3
        logits = 10 * F.normalize(others, dim=-1) @ cells
        logits = logits.masked_fill(~present[..., None], -1e4)
        # each structure weighs as much as the square root of its area: a balance of large regions and small organs
        target = share * present[..., None] * (weight.sum(dim=1, keepdim=True) + 1).rsqrt()[..., None]
        losses.append(-(target * logits.log_softmax(dim=2)).sum() / target.sum().clamp_min(1e-6))
        pure = share.amax(dim=2) > 0.6
        right.append(float((logits.argmax(dim=2) == share.argmax(dim=2))[pure].float().mean()))
    return Task(torch.stack(losses).mean(), sum(right) / len(right))


def score(prediction: MaskPrediction, target: Float[Tensor, "n t s s"]) -> Task:
    """Return cross-entropy and Dice loss of the mask, squared error of the IoU and cross-entropy of the object score.

    Targets (n slices, t targets, s × s cells) are area fractions: the border of a mask may cross a cell, so borders are
    learnt more finely than the grid of the logits. A target with any area is present, however thin. For an absent one,
    only the cross-entropy trains an empty mask. In the object score, absent targets together weigh as much as the
    present ones, however few they are.

    The IoU and the Dice of the metrics compare cells: those of the target are more than half full, or more than half as
    full as its fullest one, if that is not half full.
    """
    logits = prediction.logits.float()
    inside = logits.sigmoid()
    fullest = target.amax(dim=(2, 3), keepdim=True)
    present = (fullest[..., 0, 0] > 0).float()
    overlap, total = (inside * target).sum(dim=(2, 3)), (inside + target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        mask, truth = logits > 0, target > 0.5 * torch.where(fullest > 0.5, 1.0, fullest)
        intersection, union = (mask & truth).sum(dim=(2, 3)).float(), (mask | truth).sum(dim=(2, 3)).float()
        iou = intersection / union.clamp_min(1)
        hard_dice = 2 * intersection / (mask.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))).clamp_min(1)
    count = present.sum().clamp_min(1)
    loss = F.binary_cross_entropy_with_logits(logits, target) + (dice * present).sum() / count
    loss = loss + ((prediction.iou.float() - iou) ** 2 * present).sum() / count
    iou_error = float(((prediction.iou.detach().float() - iou).abs() * present).sum() / count)
    mean_dice = float((hard_dice * present).sum() / count)
    if prediction.object_score is None:
        return Task(loss, mean_dice, iou_error=iou_error)
    object_score = prediction.object_score.float()
    absent = 1 - present
    error = F.binary_cross_entropy_with_logits(object_score, present, reduction="none")
    loss = loss + 0.2 * ((error * present).sum() / count + (error * absent).sum() / absent.sum().clamp_min(1))
    rejected = float(((object_score <= 0) * absent).sum() / absent.sum()) if absent.any() else None
    return Task(loss, mean_dice, float(((object_score > 0) * present).sum() / count), rejected, iou_error)


def choose_supports(batch: Batch, count: int, rng: Generator) -> Int[Tensor, "n t m"]:
    """Return, for every slice and target, the rows of up to `count` support slices (m of them).

    Supports are slices of other subjects of the episode, slices with the target first. With probability 0.2, the other
    slices of the same subject are allowed too, as when one slice of a scan is labelled. All rows have the same number
    of supports, so the last ones may lack the target.
    """
    episode = batch.group[:, None] == batch.group
    same = episode & (batch.subject[:, None] == batch.subject)
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    allowed = episode & ~(itself if _chance(0.2, rng) else same)
    count = min(count, int(allowed.sum(dim=1).min()))
    present = batch.masks.flatten(2).any(dim=2)  # (n, t)
    order = torch.rand(len(same), batch.masks.shape[1], len(same), generator=rng).to(same.device)
    order = order + 2.0 * allowed[:, None] + 1.0 * (present.T[None] & allowed[:, None])
    return order.argsort(dim=2, descending=True)[:, :, :count]


def recalled_from_others(backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch) -> MaskPrediction:
    """Return the masks of all targets in slices of different subjects, each from all other slices of its episode."""
    bank = backbone.memorize(image.repeat_interleave(batch.masks.shape[1]), _as_logits(batch.masks.flatten(0, 1)))
    others = (~torch.eye(len(batch.masks), dtype=torch.bool)).nonzero()[:, 1].reshape(len(batch.masks), 1, -1)
    support = others.expand(-1, batch.masks.shape[1], -1).to(batch.masks.device)
    return _recalled(backbone, image, batch, bank, support)


def _as_logits(masks: Bool[Tensor, "o h w"]) -> Tensor:
    return torch.where(masks, 10.0, -10.0)


def _recalled(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, bank: Memory, support: Tensor
) -> MaskPrediction:
    n, t = batch.masks.shape[:2]
    objects = image.repeat_interleave(t)
    return _by_slice(backbone.decode_recalled(backbone.recall(objects, _remembered(bank, support))), n)


def _remembered(bank: Memory, support: Int[Tensor, "n t m"]) -> Memory:
    """Return the memories of every object's supports; `bank` holds one memory per slice and target."""
    t = support.shape[1]
    rows = support * t + torch.arange(t, device=support.device)[:, None]
    return Memory.cat([bank[rows[:, :, m].flatten()] for m in range(support.shape[2])])


def _propagated(
    backbone: MemoryBackbone,
    image: ImageEmbeddings,
    batch: Batch,
    bank: Memory,
    support: Tensor,
    memory: MaskPrediction,
    rng: Generator,
) -> tuple[Tensor, MaskPrediction]:
    """Segment one random slice of each subject from the predictions in its other slices; return its rows too.

    With probability 0.6, the memory also holds the labelled support slices.
    """
    t = batch.masks.shape[1]
    stacks = [torch.stack(rows) for rows in _stacks(batch)]
    size = min(len(stack) for stack in stacks)
    query = int(torch.randint(0, size, (1,), generator=rng))
    neighbours = [place for place in range(size) if place != query]
    rows = torch.stack([stack[query] for stack in stacks])
    objects = image[rows].repeat_interleave(t)
    parts = [_remembered(bank, support[rows])] if _chance(0.6, rng) else []
    for place in neighbours:
        near = torch.stack([stack[place] for stack in stacks])
        predicted = MaskPrediction(
            memory.logits[near].detach().flatten(0, 1)[:, None],
            memory.iou[near].detach().flatten()[:, None],
            None if memory.object_score is None else memory.object_score[near].detach().flatten()[:, None],
            memory.tokens[near].detach().flatten(0, 1)[:, None],
        )
        parts.append(backbone.remember(image[near].repeat_interleave(t), predicted, abs(place - query)))
    return rows, _by_slice(backbone.decode_recalled(backbone.recall(objects, Memory.cat(parts))), len(rows))


def _stacks(batch: Batch) -> list[list[Tensor]]:
    """Return the rows of each subject of each episode, in order."""
    rows: dict[tuple[int, int], list[Tensor]] = {}
    keys = zip(batch.group.tolist(), batch.subject.tolist(), strict=True)
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(torch.tensor(row, device=batch.group.device))
    return list(rows.values())


def _by_slice(predicted: MaskPrediction, n: int) -> MaskPrediction:
    """Reshape the prediction of n · t objects, one per row, to n slices × t targets."""
    assert predicted.object_score is not None
    return MaskPrediction(
        rearrange(predicted.logits, "(n t) 1 h w -> n t h w", n=n),
        predicted.iou.reshape(n, -1),
        predicted.object_score.reshape(n, -1),
        rearrange(predicted.tokens, "(n t) 1 c -> n t c", n=n),
    )


def _token_prompted(backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, support: Tensor) -> MaskPrediction:
    """Predict with the targets' mean embeddings in the support slices as sparse prompts.

    A support slice without the target gets the mean embedding of those that have it.
    """
    share = backbone.to_model_frame(batch.masks.float(), backbone.feature_side)
    weight = share.sum(dim=(2, 3))
    sums = torch.einsum("nthw,nchw->ntc", share, image.main)
    present = (weight > 1 / 256).float()[..., None]
    tokens = present * sums / weight.clamp_min(1 / 256)[..., None]
    target = torch.arange(support.shape[1], device=support.device)[None, :, None]
    support_tokens, in_support = tokens[support, target], present[support, target]
    mean = support_tokens.sum(dim=2, keepdim=True) / in_support.sum(dim=2, keepdim=True).clamp_min(1)
    return backbone.decode_square(image, PromptEmbeddings(torch.where(in_support > 0, support_tokens, mean)))


def _prompted(
    backbone: MemoryBackbone, image: ImageEmbeddings, batch: Batch, memory: MaskPrediction, rng: Generator
) -> dict[str, tuple[MaskPrediction, Tensor]]:
    """Return the prediction and the true mask for points, a box, a rough mask, and corrective clicks.

    The clicks correct the prediction from the points, from the box or from the memory. Points, box and rough mask
    stand for the largest connected piece of a target, as an annotator would place them; the memory for all of it.
    """
    pieces = largest_pieces(batch.masks)
    points, box = _points(pieces, rng), _box(pieces, rng)
    from_points, from_box = _predict(backbone, image, points, pieces), _predict(backbone, image, box, pieces)
    start = int(torch.randint(0, 3, (1,), generator=rng))
    prompts, first = ((points, from_points), (box, from_box), (replace(box, boxes=None), memory))[start]
    truth = batch.masks if start == 2 else pieces
    return {
        "points": (from_points, pieces),
        "box": (from_box, pieces),
        "mask": (_predict(backbone, image, _rough(pieces, rng), pieces), pieces),
        "correction": (_correct(backbone, image, prompts, first, truth, rng), truth),
    }


def _repaired(
    backbone: MemoryBackbone,
    image: ImageEmbeddings,
    memory: MaskPrediction,
    masks: Bool[Tensor, "n t h w"],
    rng: Generator,
) -> MaskPrediction:
    """Return the masks that the memory gave, after corrective clicks."""
    return _correct(backbone, image, replace(_box(masks, rng), boxes=None), memory, masks, rng)


def _predict(backbone: MemoryBackbone, image: ImageEmbeddings, prompts: Prompts, masks: Tensor) -> MaskPrediction:
    """Predict from prompts in the pixels of `masks`."""
    size = (masks.shape[-2], masks.shape[-1])
    return backbone.decode_square(image, backbone.embed(prompts.to(masks.device), size))


def _correct(
    backbone: MemoryBackbone,
    image: ImageEmbeddings,
    prompts: Prompts,
    prediction: MaskPrediction,
    masks: Bool[Tensor, "n t h w"],
    rng: Generator,
) -> MaskPrediction:
    """Return the prediction after one, two or four corrective clicks, each with the mask before it as a prompt."""
    size = (masks.shape[-2], masks.shape[-1])
    rounds = ROUNDS[int(torch.randint(0, len(ROUNDS), (1,), generator=rng))]
    for last in [False] * (rounds - 1) + [True]:
        logits = backbone.to_image_frame(prediction.logits.detach().float(), size)
        prompts = append_points(prompts, corrective_points(logits.cpu() > 0, masks.cpu(), rng))
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            prediction = _predict(backbone, image, replace(prompts, masks=logits), masks)
    return prediction


def largest_pieces(masks: Bool[Tensor, "n t h w"]) -> Bool[Tensor, "n t h w"]:
    """Return the largest connected piece of every mask."""
    pieces = np.zeros(masks.shape, dtype=bool)
    for place, mask in zip(np.ndindex(*masks.shape[:2]), masks.flatten(0, 1).cpu().numpy(), strict=True):
        numbered, count = ndimage.label(mask)
        pieces[place] = mask if count < 2 else numbered == 1 + np.bincount(numbered.ravel())[1:].argmax()
    return torch.from_numpy(pieces).to(masks.device)


def _box(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """Return a tight or a loose box around each target, without points."""
    n, t = masks.shape[:2]
    jitter = (0.02, 0.05, 0.1)[int(torch.randint(0, 3, (1,), generator=rng))]
    none = torch.zeros(n, t, 0, 2), torch.zeros(n, t, 0, dtype=torch.long)
    return Prompts(*none, boxes(masks.cpu(), jitter, rng))


def _rough(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """Return a rough mask to refine: an ellipse with its box, or the target shifted and enlarged or shrunk."""
    box = _box(masks, rng)
    h, w = masks.shape[-2:]
    assert box.boxes is not None
    if _chance(0.5, rng):
        rough = ellipses(box.boxes, (h, w))
    else:
        box = replace(box, boxes=None)
        reach = max(1, h // int(torch.randint(16, 65, (1,), generator=rng)))
        blurred = _sums(masks.cpu(), 2 * reach + 1) / (2 * reach + 1) ** 2
        shift = torch.randint(-reach, reach + 1, (2,), generator=rng).tolist()
        rough = blurred.roll(shift, dims=(2, 3)) > 0.2 + 0.6 * torch.rand(1, generator=rng)
    return replace(box, masks=torch.where(rough, 6.0, -6.0))


def _points(masks: Bool[Tensor, "n t h w"], rng: Generator) -> Prompts:
    """Return 1 to 3 random clicks in each target; in half of the calls the first is in its middle, as a person's."""
    masks = masks.cpu()
    clicks = inside_points(masks, int(torch.randint(1, 4, (1,), generator=rng)), rng)
    if _chance(0.5, rng):
        return clicks
    assert clicks.points is not None
    h, w = masks.shape[-2:]
    deep = _sums(masks, h // 16 * 2 + 1) * masks
    place = deep.flatten(2).argmax(dim=2)
    middle = torch.stack([place % w, place // w], dim=-1).float()[:, :, None]
    return Prompts(torch.cat([middle, clicks.points[:, :, 1:]], dim=2), clicks.point_labels)


def _sums(masks: Bool[Tensor, "n t h w"], size: int) -> Float[Tensor, "n t h w"]:
    """Return the number of pixels inside within a square of `size` × `size` around each pixel; `size` is odd."""
    rows = F.avg_pool2d(masks.float(), (size, 1), stride=1, padding=(size // 2, 0), divisor_override=1)
    return F.avg_pool2d(rows, (1, size), stride=1, padding=(0, size // 2), divisor_override=1)


def _chance(probability: float, rng: Generator) -> bool:
    return float(torch.rand(1, generator=rng)) < probability
