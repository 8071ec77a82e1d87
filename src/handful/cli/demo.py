"""`handful demo`: fit, predict and evaluate on a synthetic cohort."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, print_lines, print_note, progress, stdout

if TYPE_CHECKING:
    from handful.evaluation.evaluate import Failure, Report

METHOD = "few-shot-prompts"
SHOTS = 3
ITERATIONS = 200
"""Enough for phantoms, which are easier than real scans; the method's default is longer."""


def demo(
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for all files of the demo.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed of the phantoms and of the training.")] = 0,
    backbone: options.Backbone = "handful-tiny",
    settings: options.Settings = [],  # noqa: B006
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Try handful on synthetic scans: fit on three labelled volumes, segment five others, score them.

    Example: `handful demo`
    """
    from handful.cohort.demo import claim_folder, write_phantom_cohort
    from handful.reports.score_tables import print_table, write_json

    places = _Places(out / "cohort", out / "model", out / "predictions", out / "overlays", out / "report.json")
    claim_folder(out, [place.name for place in dataclasses.astuple(places)])
    print_note(f"writing 8 phantom scans into {places.cohort}")
    write_phantom_cohort(places.cohort, cases=8, seed=seed)
    support = _fit(places, seed, backbone, options.settings_in(settings), device, quiet)
    failures = _segment(places, support, device, quiet)
    report = _score(places, support)
    write_json(report, places.report)
    if json:
        dice = {label.name: label.estimates["dice"].mean for label in report.summary()}
        print_json({"folder": out, "support": support, "dice": dice, "report": places.report})
    else:
        print_table(report, stdout())
        print_lines(_next_steps(places, support))
    exit_on([*failures, *report.failures])


@dataclass(frozen=True)
class _Places:
    cohort: Path
    model: Path
    predictions: Path
    overlays: Path
    report: Path


def _fit(places: _Places, seed: int, backbone: str, settings: dict[str, object], device: str, quiet: bool) -> list[str]:
    """Fit on randomly chosen cases and return their names."""
    from handful.backbones.catalog import open_backbone
    from handful.cohort.choice import choose_support
    from handful.cohort.fit import FitConfig, fit_to_folder
    from handful.data.files import read_cohort
    from handful.methods.catalog import build_method

    method = build_method(METHOD, {"train.seed": seed, "train.iterations": ITERATIONS} | settings)
    support = choose_support(read_cohort(places.cohort), shots=SHOTS, split=seed)
    model = open_backbone(backbone, device)
    with progress(f"fitting {METHOD}", quiet) as report:
        fit_to_folder(METHOD, method, support, model, places.model, FitConfig(overwrite=True), report)
    return [case.name for case in support.cases]


def _segment(places: _Places, support: list[str], device: str, quiet: bool) -> tuple[Failure, ...]:
    from handful.cohort.predict import PredictConfig, predict_cohort
    from handful.data.files import read_cohort

    others = [case for case in read_cohort(places.cohort).cases if case.name not in support]
    with progress("segmenting", quiet) as report:
        result = predict_cohort(places.model, others, places.predictions, PredictConfig(device=device), report)
    return result.failures


def _score(places: _Places, support: list[str]) -> Report:
    from handful.cohort.overlays import write_overlays
    from handful.data.files import read_cohort
    from handful.evaluation.evaluate import evaluate_folders

    cohort = read_cohort(places.cohort)
    report = evaluate_folders(places.predictions, places.cohort / "labels", labels=cohort.labels)
    report = report.only([case.name for case in cohort.cases if case.name not in support])
    write_overlays(report, cohort, places.overlays, cohort.labels)
    return report


def _next_steps(places: _Places, support: list[str]) -> str:
    cohort, model = shlex.quote(str(places.cohort)), shlex.quote(str(places.model))
    return f"""
labelled cases    {", ".join(support)}
pictures          {places.overlays}  (filled: prediction, dashed: reference)
label maps        {places.predictions}
report            {places.report}

Next, with your own scans in my_cohort/images and a few label maps in my_cohort/labels:
  handful doctor -i my_cohort
  handful fit -i my_cohort -o model
  handful predict model -i my_cohort -o predictions
Or continue with the cohort of the demo:
  handful fit nearest-slice -i {cohort} --shots 3 -o another_model
  handful predict {model} -i {cohort} -o again --preview"""
