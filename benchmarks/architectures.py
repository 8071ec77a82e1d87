"""Which small Hiera learns fastest: matching of structures against CPU seconds, and milliseconds a slice.

    python benchmarks/architectures.py --minutes 6

Every shape starts from noise and sees the same episodes in the same order, on one thread. What is compared is the
share of cells matched with the right structure of other individuals (the first stage of pre-training) after equal CPU
time; forward milliseconds are those of a 256 px slice on the same thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Generator
from transformers import Sam2VideoModel

from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.jobs.allocator import tune_allocator
from handful.pretraining.architecture import initialise, tiny_config
from handful.pretraining.pretrain import PretrainConfig, make_batch
from handful.pretraining.tasks import train_step

SHAPES = {
    "width 32, blocks 1-2-5-2": (32, (1, 2, 5, 2)),
    "width 48, blocks 1-2-5-2": (48, (1, 2, 5, 2)),
    "width 32, blocks 2-3-3-2": (32, (2, 3, 3, 2)),
    "width 32, blocks 1-1-3-1": (32, (1, 1, 3, 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6, help="CPU minutes a shape")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/architectures.jsonl"))
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    for shape in arguments.shapes:
        line = measure(shape, 60 * arguments.minutes)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def measure(shape: str, seconds: float) -> dict[str, object]:
    width, blocks = SHAPES[shape]
    torch.manual_seed(0)
    config = PretrainConfig()
    model = Sam2VideoModel(tiny_config(config.side, width, blocks=blocks))
    initialise(model)
    backbone = Sam2VideoBackbone(model, shape)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.vision_encoder.parameters(), lr=6e-4, weight_decay=0.02)
    began, step, right, curve = time.process_time(), 0, [], []
    while time.process_time() - began < seconds:
        rng = Generator().manual_seed(step)
        match = train_step(backbone, make_batch(config, rng), rng, only_match=True)["match"]
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1, (step + 1) / 50)
        optimizer.zero_grad()
        match.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right.append(match.dice)
        step += 1
        if step % 25 == 0:
            curve.append((round(time.process_time() - began, 1), round(sum(right[-25:]) / 25, 4)))
    last = right[-50:]
    return {
        "shape": shape,
        "million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "steps": step,
        "matched": round(sum(last) / len(last), 4),
        "encode_ms": round(encode_ms(width, blocks), 1),
        "curve": curve,
    }


def encode_ms(width: int, blocks: tuple[int, int, int, int]) -> float:
    backbone = Sam2VideoBackbone(Sam2VideoModel(tiny_config(256, width, blocks=blocks)).eval(), "timed")
    slices = torch.rand(8, 1, 256, 256, generator=Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.process_time()
            backbone.encode(slices)
            times.append(1000 * (time.process_time() - began) / len(slices))
    return min(times)


if __name__ == "__main__":
    main()
