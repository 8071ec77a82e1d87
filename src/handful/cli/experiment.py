"""`handful experiment`: a plan carried out, looked after, and told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import (
    command_line,
    exit_on,
    print_json,
    print_lines,
    progress,
    say,
    say_failures,
    stdout,
    table,
)

if TYPE_CHECKING:
    from handful.experiments.plan import Plan
    from handful.experiments.run import ExperimentConfig
    from handful.experiments.store import ExperimentStatus

experiment = typer.Typer(
    help="Which method, how many labels: many fits from a plan, their table, and a report.", no_args_is_help=True
)

Workers = Annotated[
    int | None, typer.Option(help="Processes that share the fits; else one a CPU core, up to eight.", min=1)
]
Known = Annotated[
    list[Path],
    typer.Option(help="results.parquet or .csv of another run: its fits are not measured again. Repeatable."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of kept embeddings: configurations encode a slice once between them; times are then lower."
    ),
]
Latex = Annotated[bool, typer.Option("--latex", help="Write the tables for LaTeX, too.")]
Folder = Annotated[Path, typer.Argument(help="The folder that the experiment was run into.", show_default=False)]


@experiment.command("run")
def run(
    plan: Annotated[
        Path, typer.Argument(help="TOML file: data sets, configurations, shots and splits.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results; it is gone on with.")],
    data: Annotated[Path | None, typer.Option(help="Where the plan's folders lie; else beside the plan.")] = None,
    workers: Workers = None,
    data_set: Annotated[list[str], typer.Option(help="Measure this data set of the plan only. Repeatable.")] = [],  # noqa: B006
    configuration: Annotated[
        list[str], typer.Option(help="Measure this configuration of the plan only. Repeatable.")
    ] = [],  # noqa: B006
    shots: Annotated[str, typer.Option(help="Measure these numbers of labelled cases only, by commas.")] = "",
    splits: Annotated[str, typer.Option(help="Measure these splits only, by commas.")] = "",
    known: Known = [],  # noqa: B006
    cache: Cache = None,
    device: options.Device = "auto",
    latex: Latex = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit every configuration on every split of every data set, score the unseen cases, and write table and report.

    Example: `handful experiment run plan.toml -o results --data my_data`

    A killed run loses only the fits it was at; the same command goes on from there, and so does one that names other
    parts of the plan: `--configuration FATE --shots 1,4`. Exit code 3 when a fit failed.
    """
    from handful.evaluation.results import read_results
    from handful.experiments.plan import read_plan
    from handful.experiments.run import ExperimentConfig
    from handful.jobs.devices import choose_device

    config = ExperimentConfig(
        workers=workers,
        device=choose_device(device).type,
        command=command_line(),
        known=[result for path in known for result in read_results(path)],
        cache=cache,
        data_sets=tuple(data_set),
        configurations=tuple(configuration),
        shots=options.numbers_in(shots, "--shots"),
        splits=options.numbers_in(splits, "--splits"),
    )
    carry_out(read_plan(plan, data), out, config, latex, json, quiet)


@experiment.command("status")
def status(out: Folder, json: options.Json = False) -> None:
    """Say what is done, what failed and what is missing; nothing is computed.

    Example: `handful experiment status results`
    """
    from handful.experiments.store import experiment_status

    found = experiment_status(out)
    if json:
        print_json(_content(found))
    else:
        _print(found)


@experiment.command("report")
def report(out: Folder, latex: Latex = False, json: options.Json = False) -> None:
    """Gather the table and write the report of whatever is done, also while a run goes on.

    Example: `handful experiment report results --latex`
    """
    from handful.experiments.store import write_experiment_report

    paths = write_experiment_report(out, latex)
    if json:
        print_json({"files": paths})
    else:
        print_lines(*paths)


def carry_out(plan: Plan, out: Path, config: ExperimentConfig, latex: bool, json: bool, quiet: bool) -> None:
    """Runs a plan and writes its report."""
    from handful.experiments.run import run_experiment
    from handful.experiments.store import write_experiment_report

    with progress("measuring", quiet) as tell:
        found = run_experiment(plan, out, config, tell)
    paths = write_experiment_report(out, latex)
    _say_problems(found)
    if json:
        print_json(_content(found) | {"files": paths})
    else:
        print_lines(f"{len(found.done)} of {found.trials} fits: {out}", f"open {paths[-1]}")
    exit_on(found.failed)


def _print(found: ExperimentStatus) -> None:
    from rich.text import Text

    console = stdout()
    console.print(Text(f"{found.title}: {len(found.done)} of {found.trials} fits are done"))
    fits = table("data set", "configuration", "done", "missing")
    done = [(one.data_set, one.configuration) for one in found.done]
    missing = [(one.data_set, one.configuration) for one in found.missing]
    for key in dict.fromkeys(done + missing):
        fits.add_row(*map(Text, key), str(done.count(key)), str(missing.count(key)))
    console.print(fits)
    _say_problems(found)


def _say_problems(found: ExperimentStatus) -> None:
    for one in found.left_out:
        say(f"left out: {one}")
    say_failures(found.failed)


def _content(found: ExperimentStatus) -> dict[str, object]:
    return {
        "title": found.title,
        "fits": found.trials,
        "done": len(found.done),
        "missing": [one.name for one in found.missing],
        "failed": [{"fit": one.case, "reason": one.reason} for one in found.failed],
        "left_out": found.left_out,
    }
