"""`handful embed`: the cache filled ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli import options
from handful.cli.fit import CACHE
from handful.cli.terminal import FAILED_CASES, print_json, progress, say, stdout


def embed(
    input: options.CohortFolder,
    backbone: options.Backbone = "handful-tiny",
    cases: options.Cases = "",
    cache: Annotated[Path | None, typer.Option(help=f"Folder of the embeddings; else COHORT/{CACHE}.")] = None,
    plane: Annotated[str, typer.Option(help="auto, axial, coronal or sagittal, as the method will.")] = "auto",
    window: Annotated[str, typer.Option(help="auto, percentile, ct-soft, ct-bone, ct-lung, ct-brain, none.")] = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Encode every slice once and keep the embeddings, so that fits and predictions with --cache are quick.

    Example: `handful embed -i my_cohort --backbone sam-vit-base`

    Embeddings are patient data: they lie beside the scans unless told otherwise.
    """
    from handful.backbones.catalog import load_backbone
    from handful.cohort.choice import choose_cases
    from handful.cohort.embed import embed_cohort
    from handful.data.files import read_cohort
    from handful.data.slicing import Slicer
    from handful.jobs.devices import choose_device

    cut: dict[str, Any] = {"plane": plane, "window": window}
    slicer = Slicer(**cut)
    cohort = read_cohort(input)
    chosen = choose_cases(cohort, options.names_in(cases)) if cases else cohort.cases
    model = load_backbone(backbone).to(choose_device(device))
    folder = cache or (input if input.is_dir() else input.parent) / CACHE
    with progress("encoding", quiet) as report:
        result = embed_cohort(chosen, model, folder, slicer, report)
    failures = [{"case": one.case, "reason": one.reason} for one in result.failures]
    if json:
        said = {"cache": str(folder), "slices": result.slices, "computed": result.computed}
        print_json(said | {"mib": round(result.mib, 1), "failures": failures})
    else:
        text = f"{result.slices} slices, {result.computed} of them new; {result.mib:.1f} MiB in {folder}"
        stdout().print(text, soft_wrap=True, markup=False)
    for one in result.failures:
        say(f"{one.case}: {one.reason}", lead="[bold red]failed[/] ")
    if failures:
        raise typer.Exit(FAILED_CASES)
