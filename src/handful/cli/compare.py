"""`handful compare`: methods compared on the user's own labelled scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli import options
from handful.cli.experiment import Cache, Latex, Workers, carry_out
from handful.cli.terminal import command_line


def compare(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Output folder. An existing one is resumed.")],
    shots: Annotated[
        str,
        typer.Option(
            help="Numbers of labelled cases to fit on, separated by commas. Default: 1,2,4,8,16, at most half of them.",
            show_default=False,
        ),
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Names from 'handful list methods', separated by commas, or 'all'. "
            "Default: a simple baseline, the U-Net and the main methods.",
            show_default=False,
        ),
    ] = "",
    splits: Annotated[int, typer.Option(help="Number of random splits into labelled and test cases.", min=1)] = 3,
    cases: Annotated[int, typer.Option(help="Maximum number of test cases per split.", min=1)] = 10,
    backbone: options.Backbone = "handful-tiny",
    workers: Workers = None,
    cache: Cache = None,
    device: options.Device = "auto",
    latex: Latex = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare methods and numbers of labelled cases on your own scans, and write a report.

    Example: `handful compare -i my_cohort -o comparison`

    Each method is fitted on a few of your labelled cases and scored on the others, in several random splits. After an
    interruption, run the same command again to resume.
    """
    from handful.experiments.plan import compare_plan
    from handful.experiments.run import ExperimentConfig
    from handful.jobs.devices import choose_device

    numbers = options.numbers_in(shots, "--shots")
    plan = compare_plan(input, tuple(options.names_in(methods)), numbers, splits, cases, backbone)
    config = ExperimentConfig(workers=workers, device=choose_device(device).type, command=command_line(), cache=cache)
    carry_out(plan, out, config, latex, json, quiet)
