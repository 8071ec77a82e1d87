"""Does a backbone tell a ring from what it surrounds? Boxes round the walls and chambers of synthetic hearts.

    python -m reproduction.studies.rings --backbone handful-tiny

Forty chests, each with a ring of muscle round a chamber, at 256 px: both are asked for with their own boxes, a side off
by up to 2 % of it, on the whole slice and closer. Mean Dice; a disc in place of the wall scores what the last column
says.
"""

from __future__ import annotations

import argparse

import torch
from torch import Generator, Tensor

from handful.backbones.box_crop import decode_box_crop
from handful.backbones.catalog import load_backbone
from handful.prompts.heuristics import boxes
from handful.prompts.prompts import Prompts
from handful.synthesis.anatomy import Kind, View
from handful.synthesis.bodies import chest_slice
from handful.synthesis.rng import Rng
from handful.synthesis.scans import Contrast, Scanner, render

CHESTS, SIDE, LEAST = 40, 256, 100
"""Slices, pixels along them, and pixels that a wall and its chamber must have."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["handful-tiny"])
    arguments = parser.parse_args()
    slices, masks = hearts()
    box = boxes(masks, 0.02, Generator().manual_seed(0))
    filled = masks.any(dim=1, keepdim=True).expand_as(masks)
    print("| backbone | wall | chamber | wall, cropped | chamber, cropped | disc for wall |\n|---|---|---|---|---|---|")
    for name in arguments.backbone:
        backbone = load_backbone(name)
        with torch.inference_mode():
            prompts = backbone.embed(Prompts(boxes=box), (slices.shape[-2], slices.shape[-1]))
            whole = backbone.decode(backbone.encode_exact(slices), prompts) > 0
            cropped = decode_box_crop(backbone, slices, box) > 0
        scores = [*dice(whole, masks), *dice(cropped, masks), dice(filled, masks)[0]]
        print(f"| {name} ({backbone.digest()[:12]}) | " + " | ".join(f"{score:.2f}" for score in scores) + " |")


def hearts() -> tuple[Tensor, Tensor]:
    """Slices (n, 1, h, w) in [0, 1], and the masks (n, 2, h, w) of wall and chamber."""
    slices: list[Tensor] = []
    masks: list[Tensor] = []
    rng = Rng.of(Generator().manual_seed(7))
    view = View((0.0, 0.0, 0.0), 1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    while len(slices) < CHESTS:
        anatomy = chest_slice(rng)
        labels = anatomy.at(view.points(SIDE // 2, [0.0], rng), enlarge=2)
        wall = anatomy.kinds.index(Kind.WALL)
        both = torch.stack([labels == wall, labels == wall + 1], dim=1)
        if int(both.sum(dim=(2, 3)).min()) >= LEAST:
            slices.append(render(labels, Contrast.random(anatomy.appearance, rng), Scanner.random(rng), rng))
            masks.append(both)
    return torch.cat(slices), torch.cat(masks)


def dice(found: Tensor, truth: Tensor) -> list[float]:
    """Of each structure, the mean over slices."""
    both = 2 * (found & truth).sum(dim=(2, 3)) / (found.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)))
    means: list[float] = both.mean(dim=0).tolist()
    return means


if __name__ == "__main__":
    main()
