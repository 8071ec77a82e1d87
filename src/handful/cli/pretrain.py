"""`handful pretrain`: a small backbone made from synthetic anatomy alone."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from handful.cli import options
from handful.cli.terminal import print_json, print_lines, progress


class Schedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


def pretrain(
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the backbone to be made.")] = None,
    iterations: Annotated[int, typer.Option(help="Optimiser steps.", min=1)] = 4000,
    side: Annotated[int, typer.Option(help="Pixels along the slices; go on at twice that with --start.", min=64)] = 128,
    episodes: Annotated[int, typer.Option(help="Episodes of nine slices a step and process.", min=1)] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share each step; else one a GPU or CPU core.", min=1)
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.", min=0)] = 6e-4,
    schedule: Annotated[Schedule, typer.Option(help="What the rate does after its climb.")] = Schedule.cosine,
    start: Annotated[Path | None, typer.Option(help="Folder of a backbone to go on from, of any side.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    preview: Annotated[Path | None, typer.Option(help="PNG of a batch to learn from; -o trains, too.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pre-train a small SAM 2 on invented anatomy; no scan of anybody is needed.

    Example: `handful pretrain -o small --side 128 --schedule constant`, an hour or two on a CPU, then
    `handful pretrain -o my_backbone --side 256 --start small --iterations 1000`; fit with `--backbone my_backbone`.
    GPUs are used where there are any. `--preview page.png` shows what is learnt from.

    Stopped by Ctrl-C or worse, the same command goes on where it was.
    """
    from handful.jobs.progress import Run
    from handful.pretraining.pretrain import PretrainConfig, processors
    from handful.pretraining.pretrain import pretrain as train_backbone
    from handful.reports.episodes_picture import draw_episodes
    from handful.tuning.loop import TrainConfig

    if out is None and preview is None:
        raise typer.BadParameter("give -o FOLDER to pre-train, --preview FILE.png to look, or both")
    defaults = PretrainConfig()
    length: TrainConfig = replace(
        defaults.train, iterations=iterations, learning_rate=learning_rate, schedule=schedule.value, seed=seed
    )
    config = replace(defaults, side=side, episodes=episodes, workers=workers or processors(), start=start, train=length)
    if preview:
        draw_episodes(config, preview)
    if out:
        with progress("pre-training", quiet) as report:
            train_backbone(config, out, Run(out / "partial", report))
    if json:
        print_json({"backbone": out, "preview": preview})
    else:
        print_lines(*(path for path in (preview, out) if path), highlight=True)
