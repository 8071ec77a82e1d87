"""The Typer application: its commands, and what becomes of errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from handful.cli import (
    annotate,
    catalogues,
    compare,
    demo,
    doctor,
    embed,
    evaluate,
    experiment,
    export,
    fit,
    predict,
    pretrain,
    review,
    suggest,
)
from handful.cli.terminal import Doors

EPILOG = """Exit codes: 0 all cases, 1 nothing ran, 2 usage, 3 finished with failed cases, 130 stopped by Ctrl-C.

Try it without any data: handful demo"""


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"handful {version('handful')}")
        raise typer.Exit
    return asked


app = typer.Typer(
    name="handful",
    cls=Doors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # they may hold what belongs to a patient
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def handful(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Label a handful of slices; get the whole cohort segmented.

    The way: `doctor` checks your scans, `fit` learns from the few labelled ones, `predict`
    segments the others, `evaluate` scores the result where there are references.
    """


app.command("demo", rich_help_panel="Begin here")(demo.demo)
app.command("doctor", rich_help_panel="Begin here")(doctor.doctor)
app.command("list", rich_help_panel="Begin here")(catalogues.list_catalogue)
app.command("fit", rich_help_panel="Your own data")(fit.fit)
app.command("predict", rich_help_panel="Your own data")(predict.predict)
app.command("evaluate", rich_help_panel="Your own data")(evaluate.evaluate)
app.command("review", rich_help_panel="Your own data")(review.review)
app.command("compare", rich_help_panel="Your own data")(compare.compare)
app.command("embed", rich_help_panel="Your own data")(embed.embed)
app.command("suggest", rich_help_panel="Your own data")(suggest.suggest)
app.command("annotate", rich_help_panel="For tinkerers")(annotate.annotate)
app.add_typer(experiment.experiment, name="experiment", rich_help_panel="For tinkerers")
app.add_typer(export.export, name="export", rich_help_panel="For tinkerers")
app.command("pretrain", rich_help_panel="For tinkerers")(pretrain.pretrain)


def main() -> None:
    """Runs the command line of this process."""
    from handful.jobs.allocator import tune_allocator

    tune_allocator()
    app()
