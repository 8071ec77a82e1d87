"""All labels in one decoder call, against chunks of four and against a loop, on embeddings that are there already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from handful.backbones.base import Backbone, ImageEmbeddings, PromptEmbeddings
from material import of_labels, prompt, slices, tiny
from measure import Cell, Check, Section, Table, interleaved

COUNTS = (1, 4, 13)
CHUNK = 4
SLICES = 2


@torch.inference_mode()
def measure(rounds: int) -> Section:
    backbone = tiny()
    image = backbone.encode(slices(SLICES, backbone.side))
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    for labels in COUNTS:
        asked = prompt(SLICES, labels, backbone.channels)
        for at_once in sorted({labels, min(CHUNK, labels), 1}, reverse=True):
            calls[f"{labels}/{at_once}"] = partial(decode, backbone, image, asked, at_once)
    times = interleaved(calls, rounds)
    rows: list[tuple[Cell, ...]] = []
    worst = 0.0
    for name, call in calls.items():
        labels, at_once = (int(part) for part in name.split("/"))
        together = f"{labels}/{labels}"
        core, wall = times[name].per(SLICES)
        rows.append((labels, at_once, core, wall, times[name].over(times[together]), core.median / labels))
        worst = max(worst, float((call() - calls[together]()).abs().max()))
    columns = ("labels", "at once", "core-s a slice", "wall s a slice", "× all at once", "core-s a label")
    return Section(
        (Table(f"Decoding with {backbone.name}, {SLICES} slices a call", columns, tuple(rows)),),
        (Check(f"the same logits however many labels at once (they differ by {worst:.1e} at most)", worst < 1e-3),),
    )


def decode(backbone: Backbone, image: ImageEmbeddings, asked: PromptEmbeddings, at_once: int) -> torch.Tensor:
    """Logits of all labels, so many of them a call."""
    labels = asked.sparse.shape[1]
    parts = [backbone.decode(image, of_labels(asked, k, k + at_once)) for k in range(0, labels, at_once)]
    return torch.cat(parts, dim=1)
