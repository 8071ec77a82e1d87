"""`handful review`: rank predictions by estimated quality, without references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import counted, exit_on, print_failures, print_json, print_lines, progress

if TYPE_CHECKING:
    from handful.curation.quality import CaseQuality
    from handful.reports.review_page import ReviewResult

FIRST = 5
"""Number of cases listed in the terminal."""

Support = Annotated[
    Path | None, typer.Option(help="Cohort with the cases that the model was fitted on, if -i lacks them.")
]
Reverse = Annotated[
    str, typer.Option(help="Segmenter of reverse classification accuracy: auto, fate, nearest-slice or none.")
]
NoConfidence = Annotated[
    bool, typer.Option("--no-confidence", help="Do not use the model's confidence; this saves a second prediction.")
]


def review(
    predictions: Annotated[Path, typer.Argument(help="Output folder of 'handful predict'.", show_default=False)],
    model: Annotated[Path, typer.Option("-m", "--model", help="Folder of the model that made the predictions.")],
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for the review.")],
    support: Support = None,
    cases: options.Cases = "",
    channels: options.Channels = "",
    worst: Annotated[int, typer.Option(help="Number of cases with pictures on the page.", min=0)] = 12,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Refit once per labelled patient, leaving the patient out, to calibrate the quality estimate. "
            "Default: only for methods that need no training.",
            show_default=False,
        ),
    ] = None,
    reverse: Reverse = "auto",
    no_confidence: NoConfidence = False,
    backbone: options.OwnBackbone = None,
    device: options.Device = "auto",
    cache: options.Cache = None,
    workers: options.Workers = 1,
    scheduler: options.Scheduler = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the predictions to check first: estimate the Dice of each case and label without references.

    Example: `handful review predictions -m model -i my_cohort -o review`

    Writes review.csv with one line per case and label, worst first, and review.html with pictures of the worst cases.
    Of the references, only those of the model's own support cases are read. If the command is run again, only new or
    changed predictions are estimated.
    """
    from handful.checkpoint.model import open_model
    from handful.cohort.choice import choose_cases
    from handful.cohort.review import ReviewConfig, review_folder

    config = ReviewConfig(
        device=device,
        reverse=reverse,
        confidence=not no_confidence,
        cache=cache,
        calibrate=calibrate,
        backbone=backbone,
        worst=worst,
        workers=workers,
        scheduler=scheduler,
    )
    names = {"channels": options.names_in(channels), "default_channels": open_model(model).sequences}
    cohort = options.cohort_in(input, **names)
    labelled = options.cohort_in(support, **names) if support else cohort
    cohort = replace(cohort, cases=choose_cases(cohort, options.names_in(cases)))
    with progress("estimating quality", quiet) as report:
        result = review_folder(predictions, model, cohort, out, labelled, config, report)
    print_json(_content(out, result) | {"left_out": cohort.left_out}) if json else _print(out, result)
    exit_on(result.failures, cohort.left_out)


def _content(out: Path, result: ReviewResult) -> dict[str, object]:
    estimates = {"output": out, "support": result.support, "calibration": result.calibration, "cases": result.cases}
    return estimates | {"skipped": result.skipped, "failures": result.failures, "fitted_on": result.fitted_on}


def _print(out: Path, result: ReviewResult) -> None:
    calibration = "calibrated on" if result.calibration else "not calibrated; based on"
    before = f" ({len(result.skipped)} of them before)" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    labelled = counted(len(result.support), "labelled case")
    lines = [f"{counted(len(result.cases))} estimated{before}{failed}; {calibration} {labelled}"]
    if result.fitted_on:
        lines.append(f"not estimated: {counted(len(result.fitted_on))} that the model was fitted on")
    if result.cases:
        lines.append("check these first:")
    lines += [_line(case) for case in result.cases[:FIRST]]
    lines.append(f"{out / 'review.html'} and {out / 'review.csv'}")
    print_lines(*lines)
    print_failures(result.failures)


def _line(case: CaseQuality) -> str:
    worst = min(case.labels, key=lambda label: label.predicted_dice)
    flags = f", {', '.join(worst.flags)}" if worst.flags else ""
    return f"  {case.case}: {worst.name}, predicted Dice {worst.predicted_dice:.2f}{flags}"
