"""`handful pretrain`: train a small backbone on synthetic anatomy."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import print_json, print_lines, progress


class Model(StrEnum):
    tiny = "handful-tiny"
    small = "handful-small"


class Schedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


Iterations = Annotated[
    int | None, typer.Option(help="Number of optimiser steps. Default: 4000; handful-small: 24000.", min=1)
]
Side = Annotated[
    int | None,
    typer.Option(
        help="Width and height of the training slices in pixels. Default: 128; handful-small: 128, 192 and 256.", min=64
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes that share each step. Default: one per GPU, else per CPU core.", min=1)
]
Episodes = Annotated[
    int | None, typer.Option(help="Episodes of nine slices per step and process, 1 by default.", min=1)
]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak learning rate of AdamW. Default: 6e-4; handful-small: 5e-4.", min=0)
]
AfterWarmUp = Annotated[
    Schedule | None,
    typer.Option(help="Learning rate after the warm-up. Default: cosine; handful-small: constant."),
]


def pretrain(
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the trained backbone.")] = None,
    model: Annotated[Model, typer.Option(help="The model to train.")] = Model.tiny,
    iterations: Iterations = None,
    side: Side = None,
    episodes: Episodes = None,
    workers: Workers = None,
    learning_rate: LearningRate = None,
    schedule: AfterWarmUp = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a backbone to start from; it may have another --side.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    preview: Annotated[
        Path | None, typer.Option(help="PNG file for a picture of training data; without -o nothing is trained.")
    ] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints of the training.", min=0)] = 30.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pre-train a small SAM 2 on synthetic anatomy, without any medical scan.

    Example: `handful pretrain -o small --side 128 --schedule constant` (one to two hours on a CPU), then
    `handful pretrain -o my_backbone --side 256 --start small --iterations 1000`. Use the result with
    `handful fit --backbone my_backbone`. GPUs are used where available.

    `--model handful-small` starts from an encoder trained on ImageNet and from the head of handful-tiny, and uses one
    process on the CPU. A file named STOP in the output folder ends it early, with the weights it has.

    After an interruption or STOP, run the same command again to resume. On several machines:
    `torchrun --nnodes 2 --nproc-per-node 8 ... --no-python handful pretrain -o small`.
    """
    if out is None and preview is None:
        raise typer.BadParameter("add -o FOLDER to train, --preview FILE.png for a picture of the data, or both")
    from torch.distributed import is_torchelastic_launched

    from handful.pretraining.pretrain import writes_results

    given = {"iterations": iterations, "learning_rate": learning_rate, "schedule": schedule and schedule.value}
    train = {name: value for name, value in given.items() if value is not None} | {"seed": seed}
    if model is Model.small:
        if episodes or workers:
            raise typer.BadParameter("--episodes and --workers are for handful-tiny; leave them out")
        if is_torchelastic_launched():
            raise typer.BadParameter("handful-small is trained by one process; start it without torchrun")
        anew = _small(out, preview, side, start, train, save_every, overwrite, quiet)
    else:
        anew = _tiny(
            out, preview, side, start, train, save_every, overwrite, quiet, episodes=episodes or 1, workers=workers
        )
    if not writes_results():
        return
    if json:
        print_json({"backbone": out, "preview": preview, "already_trained": not anew})
    else:
        if preview:
            print_lines(preview, highlight=True)
        if out:
            print_lines(out if anew else f"already trained: {out}", highlight=True)


def _tiny(
    out: Path | None,
    preview: Path | None,
    side: int | None,
    start: Path | None,
    train: dict[str, Any],
    save_every: float,
    overwrite: bool,
    quiet: bool,
    *,
    episodes: int,
    workers: int | None,
) -> bool:
    from handful.jobs.progress import Run
    from handful.pretraining.pretrain import PretrainConfig, pretrain, processors, writes_results
    from handful.reports.episodes_picture import draw_episodes
    from handful.synthesis.worlds import TINY_WORLD

    defaults = PretrainConfig()
    config = replace(
        defaults,
        side=side or defaults.side,
        episodes=episodes,
        workers=workers or processors(),
        start=start,
        train=replace(defaults.train, **train),
    )
    if preview and writes_results():
        shape = (config.subjects, config.slices, config.targets, config.side)
        draw_episodes(TINY_WORLD, shape, config.train.seed, preview, rows=config.episodes)
    if out:
        with progress("pre-training", quiet or not writes_results()) as report:
            return pretrain(config, out, Run(out / "partial", report, save_every), overwrite)
    return True


def _small(
    out: Path | None,
    preview: Path | None,
    side: int | None,
    start: Path | None,
    train: dict[str, Any],
    save_every: float,
    overwrite: bool,
    quiet: bool,
) -> bool:
    from handful.jobs.progress import Run
    from handful.pretraining.small import SmallConfig, pretrain_small
    from handful.reports.episodes_picture import draw_episodes
    from handful.synthesis.worlds import WORLDS

    defaults = SmallConfig()
    config = replace(defaults, start=start, train=replace(defaults.train, **train))
    if side:
        config = replace(config, sides=(side,), shares=(1.0,), subjects=(2 if side > 200 else 3,))
    if preview:
        shape = (3, config.slices, config.targets, config.sides[0])
        draw_episodes(WORLDS[config.world], shape, config.train.seed, preview)
    if out:
        with progress("pre-training", quiet) as report:
            return pretrain_small(config, out, Run(out / "partial", report, save_every), overwrite)
    return True
