"""`handful embed`: fill the cache of embeddings ahead of time."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import counted, exit_on, print_failures, print_json, print_lines, print_note, progress

if TYPE_CHECKING:
    from handful.cohort.embed import EmbedResult


def embed(
    input: options.CohortFolder,
    backbone: options.Backbone = "handful-tiny",
    cases: options.Cases = "",
    cache: Annotated[
        Path | None, typer.Option(help=f"Folder of the embeddings. Default: COHORT/{options.EMBEDDINGS}.")
    ] = None,
    cache_size: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="GiB of embeddings that the folder stores at most, now and in later commands. Default: 20.",
            show_default=False,
        ),
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
    load = partial(named_backbone, backbone, device)
    with progress("encoding", quiet) as report:
        result = embed_cohort(chosen, load, folder, slicer, report, executor, cache_size)
    if json:
        print_json(_content(folder, result) | {"left_out": cohort.left_out})
    else:
        text = f"{counted(result.slices, 'slice')}, {result.computed} newly encoded; {result.mib:.1f} MiB in {folder}"
        print_lines(text, highlight=True)
    if result.removed:
        print_note(_too_small(result))
    print_failures(result.failures)
    exit_on(result.failures, cohort.left_out)


def _content(folder: Path, result: EmbedResult) -> dict[str, object]:
    counts = {"cache": folder, "slices": result.slices, "computed": result.computed, "removed": result.removed}
    return counts | {"mib": round(result.mib, 1), "failures": result.failures}


def _too_small(result: EmbedResult) -> str:
    """That embeddings were removed because the cache was full, and how to store all of them."""
    limit, needed = result.limit_mib / 1024, result.needed_mib / 1024
    text = f"the embeddings of {counted(result.removed, 'slice')} were removed again, since the cache was full: "
    text += f"it stores up to {limit:.3g} GiB"
    if needed <= limit:
        return f"{text}. Another process may fill it; run the command again, or set a larger size with --cache-size"
    remedy = f"set a larger size with --cache-size {math.ceil(needed) + 1}, or choose fewer cases with --cases"
    return f"{text}, and these cases need {needed:.3g} GiB; {remedy}"
