"""`handful evaluate`: scores of label maps against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, print_lines, say, stdout

if TYPE_CHECKING:
    from handful.data.files import References
    from handful.evaluation.evaluate import Report


def evaluate(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of label maps to score.")],
    references: Annotated[
        Path, typer.Option("-r", "--references", help="Folder of label maps by hand, or the cohort they belong to.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Write the whole report as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line a case and label.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write nnU-Net's summary.json.")] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice, mm.", min=0)] = 1.0,
    overlays: Annotated[Path | None, typer.Option(help="Folder for a picture of each case; needs -i.")] = None,
    images: Annotated[Path | None, typer.Option("-i", "--images", help="The scans, for --overlays.")] = None,
    cases: options.Cases = "",
    with_support: Annotated[
        bool, typer.Option("--with-support", help="Score the cases that the model was fitted on, too.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Score predictions: Dice, surface Dice, Hausdorff distance, with intervals, and what was missed.

    Example: `handful evaluate -p predictions -r my_cohort -o report.json`

    Cases that the model was fitted on are left out: their scores say nothing about new ones. A reference without a
    prediction counts as missed and makes exit code 3; --cases scores only the cases named.
    """
    from handful.cohort.predict import support_among
    from handful.data.files import find_references
    from handful.evaluation.evaluate import evaluate_folders
    from handful.reports.score_tables import print_table, write_csv, write_json, write_nnunet_summary

    if overlays and not images:
        raise typer.BadParameter("--overlays needs the scans: add -i IMAGES")
    known = find_references(references)
    if known.problem:
        say(f"label names are not known: {known.problem}")
    report = evaluate_folders(predictions, known.folder, tolerance, known.labels, known.ignore)
    fitted_on = [] if with_support else sorted(support_among(predictions))
    if fitted_on:
        say(f"left out, for the model was fitted on them: {', '.join(fitted_on)}")
    report = report.only(_scored(report, options.names_in(cases), fitted_on))
    for path, write in ((out, write_json), (csv, write_csv), (summary, write_nnunet_summary)):
        if path:
            write(report, path)
    drawn = _draw(report, images, overlays, known) if overlays and images else 0
    if json:
        print_json(_content(report, fitted_on))
    else:
        print_table(report, stdout())
        if drawn:
            print_lines(f"{drawn} pictures: {overlays}", highlight=True)
    exit_on(report.failures)


def _scored(report: Report, names: list[str], fitted_on: list[str]) -> set[str]:
    """The cases to score: those named or all, without those that the model was fitted on."""
    if unknown := [name for name in names if name not in report.files]:
        raise typer.BadParameter(f"no reference of case {', '.join(unknown)}; there are {', '.join(report.files)}")
    scored = set(names or report.files) - set(fitted_on)
    if not scored:
        raise typer.BadParameter("no case is left to score; --with-support scores those the model was fitted on")
    return scored


def _draw(report: Report, images: Path, overlays: Path, known: References) -> int:
    """The number of pictures written."""
    from handful.cohort.overlays import write_overlays
    from handful.data.files import read_cohort

    result = write_overlays(report, read_cohort(images, images_only=True), overlays, known.labels, known.ignore)
    if result.without_scan:
        say(f"no picture of {', '.join(result.without_scan)}: no scan of that name in {images}")
    return len(result.written)


def _content(report: Report, left_out: list[str]) -> dict[str, Any]:
    summaries = [
        {
            "label": one.label,
            "name": one.name,
            "cases": one.n,
            "missed": one.missed,
            "false_positive": one.false_positive,
            **one.estimates,
        }
        for one in report.summary()
    ]
    return {
        "summary": summaries,
        "failures": report.failures,
        "left_out": left_out,
        "tolerance_mm": report.tolerance_mm,
    }
