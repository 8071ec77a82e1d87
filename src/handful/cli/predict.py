"""`handful predict`: a fitted model segments scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import FAILED_CASES, print_json, progress, say, stdout

if TYPE_CHECKING:
    from handful.cohort.predict import CohortResult, PredictConfig


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that 'handful fit' made.", show_default=False)],
    input: Annotated[Path, typer.Option("-i", "--input", help="A scan, or a folder of them as for fit.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="A file for a scan, a folder for a folder.")],
    cases: options.Cases = "",
    device: options.Device = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder of kept embeddings to use and to fill.")] = None,
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
        print_json({"output": str(out)}) if json else stdout().print(str(out), soft_wrap=True, markup=False)
        return
    result = _predict_folder(model, input, out, options.names_in(cases), config, quiet)
    if json:
        print_json(_as_json(out, result))
    else:
        _print(out, result)
    if result.failures:
        raise typer.Exit(FAILED_CASES)


def _predict_folder(
    model: Path, folder: Path, out: Path, names: list[str], config: PredictConfig, quiet: bool
) -> CohortResult:
    from handful.cohort.choice import choose_cases
    from handful.cohort.predict import predict_cohort
    from handful.data.files import read_cohort

    cohort = read_cohort(folder)
    chosen = choose_cases(cohort, names) if names else cohort.cases
    with progress("segmenting", quiet) as report:
        return predict_cohort(model, chosen, out, config, report)


def _as_json(out: Path, result: CohortResult) -> dict[str, object]:
    failures = [{"case": one.case, "reason": one.reason} for one in result.failures]
    return {"output": str(out), "done": result.done, "skipped": result.skipped, "failures": failures}


def _print(out: Path, result: CohortResult) -> None:
    before = f", {len(result.skipped)} were done before" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    stdout().print(f"{len(result.done)} cases segmented{before}{failed}: {out}", soft_wrap=True, markup=False)
    for one in result.failures:
        say(f"{one.case}: {one.reason}", lead="[bold red]failed[/] ")
