"""`handful compare`: all methods on one's own labelled scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli import options
from handful.cli.experiment import Cache, Latex, Workers, carry_out
from handful.cli.terminal import command_line


def compare(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results; it is gone on with.")],
    shots: Annotated[
        str, typer.Option(help="Numbers of labelled cases, by commas; else 1,2,4,8,16 up to half of them.")
    ] = "",
    methods: Annotated[
        str, typer.Option(help="Names out of 'handful list methods', by commas, or all; else the quick ones.")
    ] = "",
    splits: Annotated[int, typer.Option(help="Random splits of the labelled cases.", min=1)] = 3,
    cases: Annotated[int, typer.Option(help="Unseen cases scored a split, at most.", min=1)] = 10,
    backbone: options.Backbone = "handful-tiny",
    workers: Workers = None,
    cache: Cache = None,
    device: options.Device = "auto",
    latex: Latex = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find out which method suits your scans, and how many labels it takes: one command, ending in a report.

    Example: `handful compare -i my_cohort -o comparison`

    Each method learns from a few of your labelled cases and is scored on the others, over several random splits.
    Stopped by Ctrl-C or worse, the same command goes on where it was.
    """
    from handful.experiments.plan import compare_plan
    from handful.experiments.run import ExperimentConfig
    from handful.jobs.devices import choose_device

    numbers = options.numbers_in(shots, "--shots")
    plan = compare_plan(input, tuple(options.names_in(methods)), numbers, splits, cases, backbone)
    config = ExperimentConfig(workers=workers, device=choose_device(device).type, command=command_line(), cache=cache)
    carry_out(plan, out, config, latex, json, quiet)
