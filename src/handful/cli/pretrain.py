"""`handful pretrain`: train a small backbone on synthetic anatomy."""

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
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the trained backbone.")] = None,
    iterations: Annotated[int, typer.Option(help="Number of optimiser steps.", min=1)] = 4000,
    side: Annotated[int, typer.Option(help="Width and height of the training slices in pixels.", min=64)] = 128,
    episodes: Annotated[int, typer.Option(help="Episodes of nine slices per step and process.", min=1)] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share each step. Default: one per GPU, else per CPU core.", min=1)
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.", min=0)] = 6e-4,
    schedule: Annotated[Schedule, typer.Option(help="Learning rate schedule after the warm-up.")] = Schedule.cosine,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a backbone to start from; it may have another --side.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    preview: Annotated[
        Path | None, typer.Option(help="PNG file for a picture of training data; without -o nothing is trained.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pre-train a small SAM 2 on synthetic anatomy, without any real scan.

    Example: `handful pretrain -o small --side 128 --schedule constant` (one to two hours on a CPU), then
    `handful pretrain -o my_backbone --side 256 --start small --iterations 1000`. Use the result with
    `handful fit --backbone my_backbone`. GPUs are used where available.

    After an interruption, run the same command again to resume.
    """
    from handful.jobs.progress import Run
    from handful.pretraining.pretrain import PretrainConfig, processors
    from handful.pretraining.pretrain import pretrain as train_backbone
    from handful.reports.episodes_picture import draw_episodes
    from handful.tuning.loop import TrainConfig

    if out is None and preview is None:
        raise typer.BadParameter("add -o FOLDER to train, --preview FILE.png for a picture of the data, or both")
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
