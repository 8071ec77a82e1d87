"""`handful evaluate`: scores of predicted label maps against reference label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import (
    counted,
    exit_on,
    print_failures,
    print_json,
    print_left_out,
    print_lines,
    print_note,
    stdout,
)

if TYPE_CHECKING:
    from handful.cohort.overlays import OverlayResult
    from handful.data.files import References
    from handful.evaluation.evaluate import Report


def evaluate(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of label maps to score.")],
    references: Annotated[
        Path,
        typer.Option(
            "-r",
            "--references",
            help="Folder of reference label maps named like the predictions, or a cohort with labels. Not a file.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file for the full report.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file with one line per case and label.")] = None,
    summary: Annotated[Path | None, typer.Option(help="JSON file in the format of nnU-Net's summary.json.")] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice in mm.", min=0)] = 1.0,
    overlays: Annotated[Path | None, typer.Option(help="Folder for one picture per case; needs -i.")] = None,
    images: Annotated[Path | None, typer.Option("-i", "--images", help="Folder of the scans, for --overlays.")] = None,
    cases: options.Cases = "",
    labels: options.Labels = "",
    channels: options.Channels = "",
    with_support: Annotated[
        bool, typer.Option("--with-support", help="Also score the cases that the model was fitted on.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Score predictions: Dice, surface Dice and Hausdorff distance, with confidence intervals and missed structures.

    Example: `handful evaluate -p predictions -r my_cohort -o report.json`

    Cases that the model was fitted on are excluded, since their scores do not show how the model does on new cases. A
    reference without a prediction counts as missed, and the exit code is then 3. `--cases` scores the named cases only,
    `--labels` the named labels, such as those that a model was fitted on.
    """
    from handful.cohort.predict import support_among
    from handful.evaluation.evaluate import evaluate_folders
    from handful.reports.score_tables import print_table, write_csv, write_json, write_nnunet_summary

    if overlays and not images:
        raise typer.BadParameter("--overlays needs the scans: add -i IMAGES")
    if images and not overlays:
        raise typer.BadParameter("-i IMAGES has no effect without --overlays FOLDER: add that, or leave -i out")
    truth = _references(references, [path for path in (out, csv, summary) if path])
    maps = truth.files or truth.folder
    report = evaluate_folders(predictions, maps, tolerance, truth.labels, truth.ignore, truth.background)
    fitted_on = [] if with_support else sorted(support_among(predictions))
    if fitted_on:
        print_note(f"excluded, because the model was fitted on them: {', '.join(fitted_on)}")
    report = report.only(_scored(report, options.names_in(cases), fitted_on), _values(report, labels))
    for path, write in ((out, write_json), (csv, write_csv), (summary, write_nnunet_summary)):
        if path:
            write(report, path)
    drawn = _draw(report, images, overlays, truth, options.names_in(channels)) if overlays and images else None
    if json:
        print_json(_content(report, fitted_on) | {"files_left_out": truth.left_out})
    else:
        print_table(report, stdout())
        if drawn and drawn.written:
            print_lines(f"{counted(len(drawn.written), 'picture')}: {overlays}", highlight=True)
    without_picture = drawn.failures if drawn else ()
    print_failures(without_picture)
    exit_on(report.failures, truth.left_out, without_picture)


def _references(folder: Path, outputs: list[Path]) -> References:
    """The references. Prints what is left out; refuses outputs that would replace each other or files of a cohort."""
    from handful.data.files import find_references
    from handful.data.inputs import require_no_input

    if len({path.absolute() for path in outputs}) < len(outputs):
        raise typer.BadParameter("-o, --csv and --summary name the same file; give each its own")
    for path in outputs:
        require_no_input(path)
    truth = find_references(folder)
    if truth.problem:
        print_note(f"the names and the meaning of the labels are unknown: {truth.problem}")
    print_left_out(truth.left_out)
    return truth


def _scored(report: Report, names: list[str], fitted_on: list[str]) -> set[str]:
    """The named cases, or all, without those that the model was fitted on."""
    if unknown := [name for name in names if name not in report.files]:
        raise typer.BadParameter(
            f"no reference of case {', '.join(unknown)}; there are references of {', '.join(report.files)}"
        )
    scored = set(names or report.files) - set(fitted_on)
    if not scored:
        raise typer.BadParameter(
            "no case is left to score: the model was fitted on all of them; add --with-support to score them anyway"
        )
    return scored


def _values(report: Report, labels: str) -> set[int] | None:
    """The values of the named labels; None for all."""
    from handful.cohort.choice import choose_labels
    from handful.data.volume import Labels

    names = options.names_in(labels)
    known = {row.label: row.name for row in report.rows}
    return set(choose_labels(Labels.of(known), names).values) if names and known else None


def _draw(report: Report, images: Path, overlays: Path, truth: References, channels: list[str]) -> OverlayResult:
    """Write the pictures."""
    from handful.cohort.overlays import write_overlays
    from handful.data.files import read_cohort

    scans = read_cohort(images, images_only=True, channels=channels)
    result = write_overlays(report, scans, overlays, truth.labels, truth.ignore, truth.background)
    if result.without_scan:
        print_note(f"no picture of {', '.join(result.without_scan)}: {images} has no scan of that name")
    return result


def _content(report: Report, left_out: list[str]) -> dict[str, Any]:
    summaries = [
        {
            "label": label.label,
            "name": label.name,
            "cases": label.n,
            "missed": label.missed,
            "false_positive": label.false_positive,
            **label.estimates,
        }
        for label in report.summary()
    ]
    return {
        "summary": summaries,
        "failures": report.failures,
        "left_out": left_out,
        "tolerance_mm": report.tolerance_mm,
    }
