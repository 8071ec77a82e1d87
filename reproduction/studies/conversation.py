"""Conversations about one case: people ask for regions in many ways, and correct the answers click by click.

First prompts are the same for all configurations. A correction is clicked in the largest error, by the same person with
the same random numbers, and goes in with the answer before as mask prompt; where it falls depends on that answer.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Generator, Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.methods.base import CHUNK
from handful.prompts.heuristics import append_points
from handful.prompts.prompt_mix import BEHAVIOURS, SLOTS, PromptMix, packed, simulate_prompts
from handful.prompts.prompts import PADDING, Prompts
from handful.prompts.simulation import Annotator, correct, hard_dice
from reproduction.scoring import reference_of

WAYS = {name: PromptMix.only(name) for name in BEHAVIOURS} | {
    "confusion": dataclasses.replace(PromptMix.only("centre"), confusion=1.0)
}
"""How regions are asked for; 'confusion' is a click in the middle and a negative one on the neighbour, if any."""
ANNOTATORS = {
    "mixed": Annotator(),
    "careful": Annotator(careful=1.0, quick=0.0, sloppy=0.0),
}
AFTER = (1, 3, 5)
"""Prompts after which the Dice is recorded."""
LEVELS = (0.85, 0.90)
SMALLEST = 4
"""Pixels that a region must have to be asked for."""
ROWS = 32
"""Regions that go through the decoder at once."""

Ask = Callable[[ImageEmbeddings, Prompts, tuple[int, int]], Float[Tensor, "n k h w"]]


@dataclass(frozen=True)
class Manner:
    """How long people go on, and where they click."""

    people: int
    """Who ask for a region in each way."""
    most: int
    """Prompts a region, at most."""
    annotator: str
    """Name of who corrects, in ANNOTATORS."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is asked about one case: some of its slices, encoded, and the regions on them."""

    case: str
    image: ImageEmbeddings
    masks: Bool[Tensor, "n k h w"]
    numbers: tuple[int, ...]
    """Of the slices in their case."""
    regions: tuple[tuple[int, int], ...]
    """Slice (a row of `masks`) and label (a column) of each region."""


@dataclass(frozen=True, eq=False)
class Seat:
    """One person with one region to ask for, in one way."""

    region: int
    way: str
    person: int


def scene_of(case: Case, labels: Sequence[int], slices: int, slicer: Slicer, backbone: Backbone) -> Scene:
    """Each label is asked for on at most so many slices, evenly spaced among those that hold it."""
    view = slicer.view(case.read_image())
    classes = view.of(reference_of(case).array)
    regions: list[tuple[int, int]] = []
    for column, value in enumerate(labels):
        holding = np.flatnonzero((classes == value).sum(axis=(1, 2)) >= SMALLEST)
        count = min(slices, len(holding))
        chosen = ((np.arange(count) + 0.5) * len(holding) / max(1, count)).astype(int)
        regions += [(int(number), column) for number in holding[chosen]]
    numbers = sorted({number for number, _ in regions})
    masks = np.stack([classes[numbers] == value for value in labels], axis=1)
    images = [backbone.encode(view.take(numbers[start : start + CHUNK])) for start in range(0, len(numbers), CHUNK)]
    places = tuple((numbers.index(number), column) for number, column in regions)
    return Scene(case.name, ImageEmbeddings.cat(images), torch.from_numpy(masks), tuple(numbers), places)


def converse(manner: Manner, scene: Scene, ask: Ask) -> NDArray[np.float64]:
    """Dice (region, way, person, prompts given) of one case.

    Whoever has the highest of LEVELS, and has given as many prompts as Dice is recorded after, stops there, and the
    last Dice stands for the rest.
    """
    seats = [Seat(r, way, p) for r in range(len(scene.regions)) for way in WAYS for p in range(manner.people)]
    dice = np.full((len(seats), manner.most), np.nan)
    live = list(range(len(seats)))
    prompts = _joined([_first(scene, seat) for seat in seats])
    for number in range(manner.most):
        logits = _answers(scene, [seats[row] for row in live], prompts, ask)
        truth = _truth(scene, [seats[row] for row in live])
        dice[live, number:] = hard_dice(logits > 0, truth)[:, :1].numpy()
        if number + 1 == manner.most:
            break
        reached = number + 1 >= min(max(AFTER), manner.most)
        on = [i for i, row in enumerate(live) if not (reached and dice[row].max() >= max(LEVELS))]
        if not on:
            break
        live, logits, truth = [live[i] for i in on], logits[on], truth[on]
        clicks = [
            correct(one[None] > 0, true[None], ANNOTATORS[manner.annotator], _generator(scene, seats[row], number + 1))
            for row, one, true in zip(live, logits, truth, strict=True)
        ]
        said = append_points(_some(prompts, torch.tensor(on)), _joined(clicks))
        prompts = dataclasses.replace(packed(said), masks=logits)
    return dice.reshape(len(scene.regions), len(WAYS), manner.people, manner.most)


def _first(scene: Scene, seat: Seat) -> Prompts:
    """What a person says first; the neighbours matter only for a negative click on one of them."""
    row, column = scene.regions[seat.region]
    prompt_mix, generator = WAYS[seat.way], _generator(scene, seat, 0)
    if not prompt_mix.confusion:
        return simulate_prompts(scene.masks[row : row + 1, column : column + 1], prompt_mix, generator)
    return _column(simulate_prompts(scene.masks[row : row + 1], prompt_mix, generator), column)


def _generator(scene: Scene, seat: Seat, number: int) -> Generator:
    """The random numbers of one click of one person: the same whatever the configuration."""
    row, column = scene.regions[seat.region]
    text = f"{scene.case}/{scene.numbers[row]}/{column}/{seat.way}/{seat.person}/{number}"
    return Generator().manual_seed(zlib.crc32(text.encode()))


def _answers(scene: Scene, seats: Sequence[Seat], prompts: Prompts, ask: Ask) -> Float[Tensor, "m 1 h w"]:
    """Those with as many slots of points go together, so that nobody's padding depends on the others."""
    assert prompts.point_labels is not None
    h, w = scene.masks.shape[-2:]
    slots = torch.div((prompts.point_labels[:, 0] != PADDING).sum(dim=1) + SLOTS - 1, SLOTS, rounding_mode="floor")
    logits = torch.zeros(len(seats), 1, h, w)
    for count in sorted(set(slots.tolist())):
        for rows in torch.split(torch.nonzero(slots == count)[:, 0], ROWS):
            slices = [scene.regions[seats[row].region][0] for row in rows.tolist()]
            logits[rows] = ask(scene.image[slices], packed(_some(prompts, rows)), (h, w))
    return logits


def _truth(scene: Scene, seats: Sequence[Seat]) -> Bool[Tensor, "m 1 h w"]:
    row, column = torch.tensor([scene.regions[seat.region] for seat in seats]).unbind(1)
    return scene.masks[row, column][:, None]


def _parts(prompts: Prompts) -> tuple[Tensor | None, ...]:
    return (prompts.points, prompts.point_labels, prompts.boxes, prompts.masks)


def _some(prompts: Prompts, rows: Tensor) -> Prompts:
    return Prompts(*[None if part is None else part[rows] for part in _parts(prompts)])


def _column(prompts: Prompts, column: int) -> Prompts:
    return Prompts(*[None if part is None else part[:, column : column + 1] for part in _parts(prompts)])


def _joined(prompts: Sequence[Prompts]) -> Prompts:
    """One after the other; each with as many points as any, unused slots last."""
    most = max(one.points.shape[2] for one in prompts if one.points is not None)
    full = [packed(one, most) for one in prompts]
    return Prompts(
        *[torch.cat(parts) if parts[0] is not None else None for parts in zip(*map(_parts, full), strict=True)]
    )


@torch.no_grad()
def ask_plainly(
    backbone: Backbone, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]
) -> Float[Tensor, "n 1 h w"]:
    """The backbone's answer as it wants to be asked: prompts of one kind together, no slots of padding."""
    full = packed(prompts)
    assert full.points is not None
    assert full.point_labels is not None
    assert full.boxes is not None
    counts, boxed = (full.point_labels[:, 0] != PADDING).sum(dim=1), full.boxes[:, 0].any(dim=1)
    logits = torch.zeros(len(counts), 1, *size)
    for count, box in sorted(set(zip(counts.tolist(), boxed.tolist(), strict=True))):
        rows = torch.nonzero((counts == count) & (boxed == box))[:, 0]
        some = Prompts(
            full.points[rows, :, :count] if count else None,
            full.point_labels[rows, :, :count] if count else None,
            full.boxes[rows] if box else None,
            None if full.masks is None else full.masks[rows],
        )
        answer = backbone.decode_square(image[rows], backbone.embed(some, size))
        logits[rows] = backbone.to_image_frame(answer.logits, size)
    return logits
