"""What a training step of AutoSAM's ViT head costs, as its authors run it and as handful does.

    python benchmarks/auto_sam_speed.py [--threads 2] [--side 1024] [--batch 4] [--classes 4] [--rounds 3] [--out FILE]

The model is SAM ViT-B with random weights; a step is forward, Dice with cross entropy, backward and AdamW on slices
of 224 × 224 pixels; the background is one of the classes. In the reference the frozen encoder sees every slice at every
step, and each class gets a copy of the image tokens. Cached means that embeddings were kept; shared pass, that all
classes meet one copy of the image. The last two lines ask one head for all classes at once, and heads of one class each
one after the other. Every figure is the least of all rounds, in which the variants take turns: what else the machine
does can only add to it. A small --side tries the script; its ratios say nothing about 1024. --out
keeps every round, a line a variant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from handful.backbones.base import ImageEmbeddings
from handful.backbones.sam import SamBackbone
from handful.jobs.allocator import tune_allocator
from handful.methods.auto_sam.heads import Head, against_background
from handful.methods.auto_sam.method import AutoSam
from handful.tuning.losses import dice_ce
from material import sam_vit_b
from measure import Timing, interleaved, short

PIXELS = 224
REFERENCE = "encoder each step, faithful head"
FAITHFUL = "cached, faithful head"
SHARED = "cached, shared pass"
TOGETHER, ALONE = "all classes in one pass", "one pass a class"


def main() -> None:
    arguments = _arguments()
    tune_allocator()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    backbone = sam_vit_b(arguments.side)
    batch = Batch.random(backbone, arguments.batch, arguments.classes)
    times = interleaved(variants(backbone, batch, arguments.classes), arguments.rounds)
    print(
        f"SAM ViT-B, random weights, {arguments.side} px, batch {arguments.batch}, {arguments.classes} classes, "
        f"{arguments.threads} threads, least of {arguments.rounds}, torch {torch.__version__}\n"
    )
    print("\n".join(table(times, (REFERENCE, FAITHFUL, SHARED))) + "\n")
    print("\n".join(table(times, (ALONE, TOGETHER))))
    if arguments.out:
        about = {key: getattr(arguments, key) for key in ("side", "batch", "classes", "threads")}
        about["torch"] = torch.__version__
        lines = [{**about, "variant": name, "core_s": time.core, "wall_s": time.wall} for name, time in times.items()]
        arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices, what the encoder says of them, and their truth in the model's square."""

    slices: Tensor
    image: ImageEmbeddings
    target: Tensor
    known: Tensor

    @classmethod
    def random(cls, backbone: SamBackbone, count: int, classes: int) -> Batch:
        slices = torch.rand(count, 1, PIXELS, PIXELS)
        side = backbone.mask_side
        drawn = torch.randint(classes, (count, 1, side, side))
        target = (drawn == torch.arange(1, classes)[:, None, None]).float()
        return cls(slices, seen(backbone, slices), target, torch.ones(count, side, side, dtype=torch.bool))


def variants(backbone: SamBackbone, batch: Batch, classes: int) -> dict[str, Callable[[], object]]:
    """Each takes one training step; heads and optimisers are made beforehand."""
    faithful = Stepper([AutoSam(head="vit", as_published=True).new_head(backbone, classes)])
    cached = Stepper([AutoSam(head="vit", as_published=True).new_head(backbone, classes)])
    shared = Stepper([AutoSam(head="vit").new_head(backbone, classes)])
    together = Stepper([AutoSam(head="vit").new_head(backbone, classes)])
    alone = Stepper([AutoSam(head="vit").new_head(backbone, 1) for _ in range(classes)])
    return {
        REFERENCE: lambda: faithful.step(seen(backbone, batch.slices), batch),
        FAITHFUL: lambda: cached.step(batch.image, batch),
        SHARED: lambda: shared.step(batch.image, batch),
        TOGETHER: lambda: together.step(batch.image, batch),
        ALONE: lambda: alone.step(batch.image, batch),
    }


@torch.no_grad()
def seen(backbone: SamBackbone, slices: Tensor) -> ImageEmbeddings:
    return backbone.encode(slices)


class Stepper:
    """Heads that each say some of the classes, trained together."""

    def __init__(self, heads: Iterable[Head]) -> None:
        self.heads = list(heads)
        trained = [p for head in self.heads for p in head.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self, image: ImageEmbeddings, batch: Batch) -> None:
        logits = torch.cat([head(image) for head in self.heads], dim=1)
        self.optimizer.zero_grad(set_to_none=True)
        dice_ce(against_background(logits), batch.target, batch.known).backward()
        self.optimizer.step()


def table(times: dict[str, Timing], names: tuple[str, ...]) -> list[str]:
    """The first of the names is what the others are compared with, in core-seconds."""
    base = min(times[names[0]].core)
    rows = [
        f"| {name} | {short(min(times[name].core))} | {short(min(times[name].wall))} "
        f"| {short(base / min(times[name].core))} |"
        for name in names
    ]
    return ["| a training step | core-s | wall s | times faster |", "|---|---|---|---|", *rows]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the model's square, a multiple of 16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=4, help="with the background")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file of JSON lines, written anew")
    return parser.parse_args()


if __name__ == "__main__":
    main()
