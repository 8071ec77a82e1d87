"""The Typer application and its commands."""

from __future__ import annotations

import io
import signal
import sys
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
    everything,
    experiment,
    export,
    fit,
    model,
    predict,
    pretrain,
    review,
    serve,
    suggest,
)
from handful.cli.terminal import Commands, raise_interrupted, raise_terminated, stopped_by_signals

EPILOG = """Exit codes: 0 success, 1 error, 2 wrong usage, 3 finished but some cases failed or files were left out,
130 stopped by Ctrl-C, 143 stopped by SIGTERM.

Try it without data of your own: handful demo"""


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"handful {version('handful')}")
        raise typer.Exit
    return wanted


app = typer.Typer(
    name="handful",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # local variables may hold patient data
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def handful(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Label a handful of slices; get the whole cohort segmented.

    Steps: `doctor` checks the scans, `fit` trains on the few labelled ones, `predict` segments the others, and
    `evaluate` scores the result against reference label maps.
    """


app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("doctor", rich_help_panel="Start here")(doctor.doctor)
app.command("list", rich_help_panel="Start here")(catalogues.list_catalogue)
app.command("fit", rich_help_panel="Your own data")(fit.fit)
app.command("predict", rich_help_panel="Your own data")(predict.predict)
app.command("evaluate", rich_help_panel="Your own data")(evaluate.evaluate)
app.command("serve", rich_help_panel="Your own data")(serve.serve)
app.command("review", rich_help_panel="Your own data")(review.review)
app.command("compare", rich_help_panel="Your own data")(compare.compare)
app.command("embed", rich_help_panel="Your own data")(embed.embed)
app.command("suggest", rich_help_panel="Your own data")(suggest.suggest)
app.command("everything", rich_help_panel="Your own data")(everything.everything)
app.command("annotate", rich_help_panel="Research")(annotate.annotate)
app.add_typer(model.model, name="model", rich_help_panel="Your own data")
app.add_typer(experiment.experiment, name="experiment", rich_help_panel="Research")
app.add_typer(export.export, name="export", rich_help_panel="Research")
app.command("pretrain", rich_help_panel="Research")(pretrain.pretrain)


def main() -> None:
    """Run the command line with the arguments of this process."""
    from handful.jobs.allocator import tune_allocator

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the encoding of a terminal or a file lacks
            stream.reconfigure(errors="backslashreplace")
    with stopped_by_signals():
        signal.signal(signal.SIGTERM, raise_terminated)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells let it be ignored in the background
            signal.signal(signal.SIGINT, raise_interrupted)
        tune_allocator()
        app()
