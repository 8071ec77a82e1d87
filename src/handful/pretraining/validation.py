"""How well a backbone solves new synthetic episodes: by memory, box and clicks, by shape of target, and if absent."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings, MemoryBackbone
from handful.pretraining.pretrain import batch_of
from handful.pretraining.tasks import largest_pieces, recalled_from_others
from handful.prompts.heuristics import append_points, boxes, corrective_points
from handful.prompts.prompts import Prompts
from handful.synthesis.episodes import Episode, random_episode
from handful.synthesis.worlds import World

FIRST_SEED = 900_000_000
"""Seed of the first episode; no training uses seeds from here on."""
CLICKS = 5
TINY = 0.004
"""Area of a tiny target, as a share of the slice."""


@torch.inference_mode()
def validate(backbone: MemoryBackbone, world: World, episodes: int) -> dict[str, float]:
    """Return mean Dice of `episodes` fixed episodes of four subjects, each with one slice and two targets.

    "memory" takes the slices of the three other subjects as labelled ones; "box", "click_1" and "click_5" take prompts
    for the largest piece of a target. "memory_ring" and the like are means over targets of one shape, "detected" and
    "rejected" the shares of present and absent targets whose object score says so.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for number in range(episodes):
        rng = torch.Generator().manual_seed(FIRST_SEED + number)
        episode = random_episode(4, 1, 2, backbone.side, rng, world)
        image = backbone.encode(batch_of([episode]).images)
        _add_memory(values, backbone, image, episode)
        _add_prompts(values, backbone, image, episode, rng)
    return {name: round(sum(some) / len(some), 4) for name, some in sorted(values.items())}


def _add_memory(
    values: dict[str, list[float]], backbone: MemoryBackbone, image: ImageEmbeddings, episode: Episode
) -> None:
    found = recalled_from_others(backbone, image, batch_of([episode]))
    assert found.object_score is not None
    masks = backbone.to_image_frame(found.logits, image.size) > 0
    _add(values, "memory", dice(masks, episode.masks), episode)
    present = episode.masks.any(dim=(2, 3))
    values["detected"] += (found.object_score > 0)[present].float().tolist()
    values["rejected"] += (found.object_score <= 0)[~present].float().tolist()


def _add_prompts(
    values: dict[str, list[float]], backbone: MemoryBackbone, image: ImageEmbeddings, episode: Episode, rng: Generator
) -> None:
    pieces = largest_pieces(episode.masks)
    n, t = pieces.shape[:2]
    none = Prompts(torch.zeros(n, t, 0, 2), torch.zeros(n, t, 0, dtype=torch.long))
    box = replace(none, boxes=boxes(pieces, 0.0, rng))
    _add(values, "box", dice(backbone.decode(image, backbone.embed(box, image.size)) > 0, pieces), episode)
    prompts, masks = none, torch.zeros_like(pieces)
    for number in range(1, CLICKS + 1):
        prompts = append_points(prompts, corrective_points(masks, pieces, rng))
        logits = backbone.decode(image, backbone.embed(prompts, image.size))
        prompts, masks = replace(prompts, masks=logits), logits > 0
        if number in (1, CLICKS):
            _add(values, f"click_{number}", dice(masks, pieces), episode)


def _add(values: dict[str, list[float]], name: str, scores: Float[Tensor, "n t"], episode: Episode) -> None:
    """Append the scores of all targets that are present, and again by shape, size and colour."""
    area = episode.masks.float().mean(dim=(2, 3))
    colour = "colour" if episode.images.shape[1] == 3 else "grey"
    for row, column in (area > 0).nonzero().tolist():
        score = float(scores[row, column])
        groups = ["", f"_{episode.shapes[column].name.lower()}", f"_{colour}"]
        groups += ["_tiny"] if area[row, column] < TINY else []
        for group in groups:
            values[name + group].append(score)


def dice(masks: Bool[Tensor, "n t h w"], truth: Bool[Tensor, "n t h w"]) -> Float[Tensor, "n t"]:
    """Return the Dice of each mask; 1 where both are empty."""
    both, total = (masks & truth).sum(dim=(2, 3)), masks.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
