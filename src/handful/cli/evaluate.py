"""`handful evaluate`: scores of label maps against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import FAILED_CASES, print_json, progress, say, stdout

if TYPE_CHECKING:
    from handful import Labels, Report


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
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score predictions: Dice, surface Dice, Hausdorff distance, with intervals, and what was missed.

    Example: [bold]handful evaluate -p predictions -r my_cohort -o report.json[/]

    A reference without a prediction counts as missed and makes exit code 3; --cases scores only the cases named.
    """
    from handful import evaluate_folders, print_table, write_csv, write_json, write_nnunet_summary

    if overlays and not images:
        raise typer.BadParameter("--overlays needs the scans: add -i IMAGES")
    folder, labels, ignore = _label_names(references)
    chosen = options.names_in(cases) or None
    report = evaluate_folders(predictions, folder, tolerance, labels, ignore)
    for path, write in ((out, write_json), (csv, write_csv), (summary, write_nnunet_summary)):
        if path:
            write(report, path)
    if overlays and images:
        _draw(report, images, overlays, labels, ignore, quiet)
    if not json:
        print_table(report, stdout())
    if report.failures:
        raise typer.Exit(FAILED_CASES)
