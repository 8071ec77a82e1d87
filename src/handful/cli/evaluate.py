"""`handful evaluate`: scores of label maps against references."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import FAILED_CASES, print_json, say, stdout

if TYPE_CHECKING:
    from handful.data.volume import Labels
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
    from handful.evaluation.evaluate import evaluate_folders
    from handful.reports.score_tables import print_table, write_csv, write_json, write_nnunet_summary

    if overlays and not images:
        raise typer.BadParameter("--overlays needs the scans: add -i IMAGES")
    folder, labels, ignore = _label_names(references)
    report = evaluate_folders(predictions, folder, tolerance, labels, ignore)
    fitted_on = [] if with_support else sorted(support_among(predictions))
    if fitted_on:
        say(f"left out, for the model was fitted on them: {', '.join(fitted_on)}")
    report = of_cases(report, options.names_in(cases) or list(report.files), fitted_on)
    for path, write in ((out, write_json), (csv, write_csv), (summary, write_nnunet_summary)):
        if path:
            write(report, path)
    drawn = draw_overlays(report, images, overlays, labels, ignore) if overlays and images else 0
    if json:
        print_json(_as_json(report, fitted_on))
    else:
        print_table(report, stdout())
        if drawn:
            stdout().print(f"{drawn} pictures: {overlays}", soft_wrap=True, markup=False)
    if report.failures:
        raise typer.Exit(FAILED_CASES)


def _label_names(references: Path) -> tuple[Path, Labels | None, int | None]:
    """The folder of label maps, what their values are called and which one is no label, as dataset.json says."""
    from handful.data.files import read_cohort
    from handful.errors import HandfulError

    inside = [references / name for name in ("labels", "labelsTr") if (references / name).is_dir()]
    folder = inside[0] if inside else references
    home = folder.parent
    if not (home / "dataset.json").is_file():
        return folder, None, None
    try:
        cohort = read_cohort(home)
    except HandfulError as error:  # references may be scored where the scans are not
        say(f"label names are not known: {error}")
        return folder, None, None
    return folder, cohort.labels, cohort.cases[0].ignore


def of_cases(report: Report, names: list[str], without: list[str]) -> Report:
    """The report of some of its cases."""
    if unknown := [name for name in names if name not in report.files]:
        raise typer.BadParameter(f"no reference of case {', '.join(unknown)}; there are {', '.join(report.files)}")
    kept = set(names) - set(without)
    if not kept:
        raise typer.BadParameter("no case is left to score; --with-support scores those the model was fitted on")
    return replace(
        report,
        rows=tuple(row for row in report.rows if row.case in kept),
        failures=tuple(one for one in report.failures if one.case in kept),
        files={case: files for case, files in report.files.items() if case in kept},
    )


def draw_overlays(report: Report, images: Path, overlays: Path, labels: Labels | None, ignore: int | None) -> int:
    """Writes the pictures of all cases that have a scan and both maps; says which have no scan."""
    from handful.data.files import read_cohort, read_label_map
    from handful.reports.overlay import write_overlay

    scans = {case.name: case for case in read_cohort(images).cases}
    failed = {one.case for one in report.failures}
    ready = [case for case, files in report.files.items() if files.prediction and case not in failed]
    if lost := [case for case in ready if case not in scans]:
        say(f"no picture of {', '.join(lost)}: no scan of that name in {images}")
    drawn = [case for case in ready if case in scans]
    for case in drawn:
        files = report.files[case]
        prediction = read_label_map(str(files.prediction), labels)
        reference = read_label_map(files.reference, labels, ignore)
        write_overlay(overlays / f"{case}.png", scans[case].read_image(), prediction, reference, case=case)
    return len(drawn)


def _as_json(report: Report, left_out: list[str]) -> dict[str, object]:
    """The summary; nan becomes null, for which JSON has a word."""
    summaries = [
        {
            "label": one.label,
            "name": one.name,
            "cases": one.n,
            "missed": one.missed,
            "invented": one.invented,
            **{metric: _defined(asdict(estimate)) for metric, estimate in one.estimates.items()},
        }
        for one in report.summary()
    ]
    failures = [asdict(one) for one in report.failures]
    return {"summary": summaries, "failures": failures, "left_out": left_out, "tolerance_mm": report.tolerance_mm}


def _defined(values: dict[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}
