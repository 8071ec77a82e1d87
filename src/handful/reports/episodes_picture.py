"""A picture of synthetic slices for pre-training, with their targets."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from handful.jobs.atomic import write_atomically
from handful.pretraining.pretrain import PretrainConfig
from handful.synthesis.episodes import random_episode


def draw_episodes(config: PretrainConfig, picture: Path) -> None:
    """Write a PNG of at least eight random training episodes, one per row, with outlined targets.

    Slices of one individual are next to each other; the column titles number individuals and their slices.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rng = torch.Generator().manual_seed(config.train.seed)
    rows = max(8, config.episodes)
    episodes = [random_episode(config.subjects, config.slices, config.targets, config.side, rng) for _ in range(rows)]
    columns = config.subjects * config.slices
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
        individual, neighbour = divmod(place, config.slices)
        panel.set_title(f"individual {individual + 1}, slice {neighbour + 1}", fontsize=7)
    keys = [Line2D([], [], color=f"C{number}", label=f"target {number + 1}") for number in range(config.targets)]
    figure.legend(handles=keys, loc="outside lower center", ncols=config.targets, fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(picture, content.getvalue())
