"""`handful review`: predictions without references, the doubtful ones first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, print_lines, progress, say_failures

if TYPE_CHECKING:
    from handful.curation.quality import CaseQuality
    from handful.reports.review_page import ReviewResult

FIRST = 5
"""Cases that are named in the terminal."""


def review(
    predictions: Annotated[Path, typer.Argument(help="Folder that 'handful predict' wrote.", show_default=False)],
    model: Annotated[Path, typer.Option("-m", "--model", help="Folder of the model that predicted them.")],
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the review.")],
    support: Annotated[
        Path | None, typer.Option(help="Cohort with the cases the model was fitted on, where -i lacks them.")
    ] = None,
    cases: options.Cases = "",
    worst: Annotated[int, typer.Option(help="Cases that the page shows in pictures.", min=0)] = 12,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Fit anew without each labelled case, to learn what the signals are worth; else where no training is.",
            show_default=False,
        ),
    ] = None,
    reverse: Annotated[str, typer.Option(help="The reverse segmenter: auto, fate, nearest-slice or none.")] = "auto",
    no_confidence: Annotated[
        bool, typer.Option("--no-confidence", help="Do not ask the model again how sure it is.")
    ] = False,
    device: options.Device = "auto",
    cache: options.Cache = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell which predictions to look at first: a predicted Dice for each case and label, without references.

    Example: `handful review predictions -m model -i my_cohort -o review`

    Writes review.csv, a line a case and label, the worst first, and review.html with pictures of the worst cases. Only
    references of cases that the model was fitted on are read. Run again, only what has changed is judged.
    """
    from handful.cohort.choice import choose_cases
    from handful.cohort.review import ReviewConfig, review_folder
    from handful.data.files import read_cohort

    config = ReviewConfig(
        device=device, reverse=reverse, confidence=not no_confidence, cache=cache, calibrate=calibrate, worst=worst
    )
    cohort = read_cohort(input)
    labelled = read_cohort(support) if support else cohort
    cohort = replace(cohort, cases=choose_cases(cohort, options.names_in(cases)))
    with progress("judging", quiet) as report:
        result = review_folder(predictions, model, cohort, out, labelled, config, report)
    if json:
        judged = {"output": out, "support": result.support, "calibration": result.calibration, "cases": result.cases}
        print_json(judged | {"skipped": result.skipped, "failures": result.failures})
    else:
        _print(out, result)
    exit_on(result.failures)


def _print(out: Path, result: ReviewResult) -> None:
    how = "calibrated on" if result.calibration else "not calibrated; judged by"
    before = f", {len(result.skipped)} were judged before" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    lines = [f"{len(result.cases)} cases judged{before}{failed}; {how} {len(result.support)} labelled cases"]
    if result.cases:
        lines.append("look first at:")
    lines += [_line(case) for case in result.cases[:FIRST]]
    lines.append(f"{out / 'review.html'} and {out / 'review.csv'}")
    print_lines(*lines)
    say_failures(result.failures)


def _line(case: CaseQuality) -> str:
    worst = min(case.labels, key=lambda one: one.predicted_dice)
    flags = f", {', '.join(worst.flags)}" if worst.flags else ""
    return f"  {case.case}: {worst.name}, predicted Dice {worst.predicted_dice:.2f}{flags}"
