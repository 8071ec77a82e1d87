"""`handful predict`: a fitted model segments scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, print_lines, progress, say_failures

if TYPE_CHECKING:
    from handful.cohort.predict import CohortResult, PredictConfig


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that 'handful fit' made.", show_default=False)],
    input: Annotated[Path, typer.Option("-i", "--input", help="A scan, or a folder of them as for fit.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="A file for a scan, a folder for a folder.")],
    cases: options.Cases = "",
    device: options.Device = "auto",
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Draw a picture of each result, with the labelled slices it rests on.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment a scan or a whole folder; label maps lie on the very grids of their scans.

    Example: `handful predict model -i my_cohort -o predictions`

    Results bear the file names of their scans (JPEG becomes PNG; nnU-Net's CASE_0000 becomes CASE). Run again, only
    what is not done or has changed is done; a scan that fails is listed in failures.json and the others go on.

    `--preview` draws slices with what was found into `previews/`. With a model of fate each stands beside the labelled
    slices that it was answered from: pictures of the patients it was fitted on, to be kept as their scans are.
    """
    from handful.cohort.predict import PredictConfig, predict_file
    from handful.data.files import SUFFIXES

    config = PredictConfig(device=device, overwrite=overwrite, preview=preview, cache=cache)
    if input.is_file() and not out.is_dir() and out.name.lower().endswith(SUFFIXES):
        predict_file(model, input, out, config)
        if json:
            print_json({"output": out})
        else:
            print_lines(out, highlight=True)
        return
    result = _predict_folder(model, input, out, options.names_in(cases), config, quiet)
    if json:
        done = {"output": out, "done": result.done, "skipped": result.skipped}
        print_json(done | {"failures": result.failures})
    else:
        _print(out, result)
    exit_on(result.failures)


def _predict_folder(
    model: Path, folder: Path, out: Path, names: list[str], config: PredictConfig, quiet: bool
) -> CohortResult:
    from handful.cohort.choice import choose_cases
    from handful.cohort.predict import predict_cohort
    from handful.data.files import read_cohort

    chosen = choose_cases(read_cohort(folder, images_only=True), names)
    with progress("segmenting", quiet) as report:
        return predict_cohort(model, chosen, out, config, report)


def _print(out: Path, result: CohortResult) -> None:
    before = f", {len(result.skipped)} were done before" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    print_lines(f"{len(result.done)} cases segmented{before}{failed}: {out}", highlight=True)
    say_failures(result.failures)
