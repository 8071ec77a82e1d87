"""`handful embed`: fill the cache of embeddings ahead of time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import counted, exit_on, print_failures, print_json, print_lines, progress


def embed(
    input: options.CohortFolder,
    backbone: options.Backbone = "handful-tiny",
    cases: options.Cases = "",
    cache: Annotated[
        Path | None, typer.Option(help=f"Folder of the embeddings. Default: COHORT/{options.EMBEDDINGS}.")
    ] = None,
    plane: Annotated[
        str, typer.Option(help="auto, axial, coronal or sagittal: the slice plane that the method will use.")
    ] = "auto",
    window: Annotated[
        str, typer.Option(help="auto, percentile, ct-soft, ct-bone, ct-lung, ct-brain, none, each.")
    ] = "auto",
    channels: options.Channels = "",
    device: options.Device = "auto",
    workers: options.Workers = 1,
    scheduler: options.Scheduler = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Encode every slice once and store the embeddings, so that later fits and predictions with --cache are fast.

    Example: `handful embed -i my_cohort --backbone sam-vit-base`

    Embeddings are patient data. By default they are stored in the folder of the scans.
    """
    from handful.cohort.choice import choose_cases, named_backbone
    from handful.cohort.embed import embed_cohort
    from handful.data.slicing import Slicer
    from handful.jobs.workers import executor_for, require_workers

    cut: dict[str, Any] = {"plane": plane, "window": window}
    slicer = Slicer(**cut)
    cohort = options.cohort_in(input, images_only=True, channels=options.names_in(channels))
    chosen = choose_cases(cohort, options.names_in(cases))
    require_workers(workers, scheduler)
    folder = cache or options.embeddings_of(input)
    executor = executor_for(workers, scheduler, str(folder.absolute()), device)
    with progress("encoding", quiet) as report:
        result = embed_cohort(chosen, partial(named_backbone, backbone, device), folder, slicer, report, executor)
    if json:
        counts = {"cache": folder, "slices": result.slices, "computed": result.computed}
        print_json(counts | {"mib": round(result.mib, 1), "failures": result.failures, "left_out": cohort.left_out})
    else:
        text = f"{counted(result.slices, 'slice')}, {result.computed} newly encoded; {result.mib:.1f} MiB in {folder}"
        print_lines(text, highlight=True)
    print_failures(result.failures)
    exit_on(result.failures, cohort.left_out)
