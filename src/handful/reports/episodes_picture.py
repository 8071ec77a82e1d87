"""A picture of synthetic slices for pre-training, with their targets."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from handful.jobs.atomic import write_atomically
from handful.synthesis.episodes import random_episode
from handful.synthesis.worlds import World


def draw_episodes(world: World, shape: tuple[int, int, int, int], seed: int, picture: Path, rows: int = 8) -> None:
    """Write a PNG of at least eight random training episodes of a world, one per row, with outlined targets.

    `shape` is the number of individuals, of slices of each, of targets, and the side in pixels. Slices of one
    individual are next to each other; the column titles number individuals and their slices.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rng = torch.Generator().manual_seed(seed)
    rows = max(8, rows)
    subjects, slices, targets, side = shape
    episodes = [random_episode(subjects, slices, targets, side, rng, world) for _ in range(rows)]
    columns = subjects * slices
    figure = Figure(figsize=(max(4, 1.5 * columns), 1.55 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, episode in zip(panels, episodes, strict=True):
        for place, panel in enumerate(row):
            panel.imshow(episode.images[place].expand(3, -1, -1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            for number, mask in enumerate(episode.masks[place]):
                if mask.any() and not mask.all():
                    panel.contour(mask.float().numpy(), levels=[0.5], colors=[f"C{number}"], linewidths=1)
            panel.set_axis_off()
    for place, panel in enumerate(panels[0]):
        individual, neighbour = divmod(place, slices)
        panel.set_title(f"individual {individual + 1}, slice {neighbour + 1}", fontsize=7)
    keys = [Line2D([], [], color=f"C{number}", label=f"target {number + 1}") for number in range(targets)]
    figure.legend(handles=keys, loc="outside lower center", ncols=targets, fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(picture, content.getvalue())
