"""`handful experiment`: run a plan of many fits, show its progress, write its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import (
    command_line,
    counted,
    exit_on,
    one_line,
    print_failures,
    print_json,
    print_left_out,
    print_lines,
    print_note,
    progress,
    stdout,
    table,
)

if TYPE_CHECKING:
    from handful.experiments.plan import Plan
    from handful.experiments.run import ExperimentConfig
    from handful.experiments.store import ExperimentStatus

experiment = typer.Typer(
    help="Compare methods and numbers of labels: run many fits from a plan, then write tables and a report.",
    no_args_is_help=True,
)

Workers = Annotated[
    int | None, typer.Option(help="Number of worker processes. Default: one per CPU core, at most 8.", min=1)
]
Known = Annotated[
    list[Path],
    typer.Option(help="results.parquet or results.csv of an earlier run; its fits are not repeated. Repeatable."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of stored embeddings, shared by all configurations. Measured times then exclude most encoding."
    ),
]
Latex = Annotated[bool, typer.Option("--latex", help="Also write the tables for LaTeX.")]
Folder = Annotated[Path, typer.Argument(help="Output folder of the experiment.", show_default=False)]


@experiment.command("run")
def run(
    plan: Annotated[
        Path, typer.Argument(help="TOML file: data sets, configurations, shots and splits.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Output folder. An existing one is resumed.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that contains the plan's data sets. Default: the folder of the plan.")
    ] = None,
    workers: Workers = None,
    scheduler: options.Scheduler = None,
    data_set: Annotated[list[str], typer.Option(help="Run only this data set of the plan. Repeatable.")] = [],  # noqa: B006
    configuration: Annotated[list[str], typer.Option(help="Run only this configuration of the plan. Repeatable.")] = [],  # noqa: B006
    shots: Annotated[
        str, typer.Option(help="Run only these numbers of labelled cases, separated by commas.", show_default=False)
    ] = "",
    splits: Annotated[str, typer.Option(help="Run only these splits, separated by commas.", show_default=False)] = "",
    known: Known = [],  # noqa: B006
    cache: Cache = None,
    device: options.Device = "auto",
    latex: Latex = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit every configuration on every split of every data set, score the unseen cases, write tables and a report.

    Example: `handful experiment run plan.toml -o results --data my_data`

    After an interruption, run the same command again: only the fits that were running are repeated. A run can be
    limited to parts of the plan, for example with `--configuration FATE --shots 1,4`, and completed later. The exit
    code is 3 if a fit failed or a file of a data set is not read.
    """
    from handful.evaluation.results import read_results
    from handful.experiments.plan import read_plan
    from handful.jobs.devices import choose_device

    if scheduler is not None:
        plan, data = plan.absolute(), data and data.absolute()
    planned = read_plan(plan, data)
    from handful.experiments.run import ExperimentConfig  # seconds; a wrong plan is reported before

    config = ExperimentConfig(
        workers=workers,
        scheduler=scheduler,
        device=choose_device(device).type,
        command=command_line(),
        known=[result for path in known for result in read_results(path)],
        cache=cache,
        data_sets=tuple(data_set),
        configurations=tuple(configuration),
        shots=options.numbers_in(shots, "--shots"),
        splits=options.numbers_in(splits, "--splits"),
    )
    carry_out(planned, out, config, latex, json, quiet)


@experiment.command("status")
def status(out: Folder, json: options.Json = False) -> None:
    """Show which fits of an experiment are done, failed or missing.

    Example: `handful experiment status results`
    """
    from handful.experiments.store import experiment_status

    progress_so_far = experiment_status(out)
    if json:
        print_json(_content(progress_so_far))
    else:
        _print(progress_so_far)


@experiment.command("report")
def report(out: Folder, latex: Latex = False, json: options.Json = False) -> None:
    """Write the tables and the report of the fits that are done, also while the experiment is still running.

    Example: `handful experiment report results --latex`
    """
    from handful.experiments.store import write_experiment_report

    paths = write_experiment_report(out, latex)
    if json:
        print_json({"files": paths})
    else:
        print_lines(*paths)


def carry_out(plan: Plan, out: Path, config: ExperimentConfig, latex: bool, json: bool, quiet: bool) -> None:
    """Run a plan, write its report and print a summary."""
    from handful.experiments.plan import files_left_out
    from handful.experiments.run import run_experiment
    from handful.experiments.store import write_experiment_report

    files = files_left_out(plan)
    print_left_out(files)
    with progress("fitting", quiet) as report:
        result = run_experiment(plan, out, config, report)
    paths = write_experiment_report(out, latex)
    _print_problems(result)
    if json:
        print_json(_content(result) | {"files": paths, "files_left_out": files})
    else:
        print_lines(f"{len(result.done)} of {counted(result.trials, 'fit')} done: {out}", f"report: {paths[-1]}")
    exit_on(result.failed, files)


def _print(status: ExperimentStatus) -> None:
    from rich.text import Text

    console = stdout()
    console.print(Text(f"{one_line(status.title)}: {len(status.done)} of {counted(status.trials, 'fit')} done"))
    fits = table("data set", "configuration", "done", "missing")
    done = [(entry.data_set, entry.configuration) for entry in status.done]
    missing = [(entry.data_set, entry.configuration) for entry in status.missing]
    for key in dict.fromkeys(done + missing):
        fits.add_row(*(Text(one_line(part)) for part in key), str(done.count(key)), str(missing.count(key)))
    console.print(fits)
    _print_problems(status)


def _print_problems(status: ExperimentStatus) -> None:
    for reason in status.left_out:
        print_note(f"left out: {reason}")
    print_failures(status.failed)


def _content(status: ExperimentStatus) -> dict[str, object]:
    return {
        "title": status.title,
        "fits": status.trials,
        "done": len(status.done),
        "missing": [entry.name for entry in status.missing],
        "failed": [{"fit": failure.case, "reason": failure.reason} for failure in status.failed],
        "left_out": status.left_out,
    }
