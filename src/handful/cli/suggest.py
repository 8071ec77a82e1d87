"""`handful suggest`: choose the slices or cases to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import (
    counted,
    exit_on,
    one_line,
    print_failures,
    print_json,
    print_lines,
    progress,
    stdout,
    table,
)

if TYPE_CHECKING:
    from handful.checkpoint.model import SavedModel
    from handful.curation.suggest import Suggestion, SuggestResult


def suggest(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for suggestions.csv and suggestions.png.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a model from 'handful fit'; slices that it predicts inconsistently rank higher."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of slices (or cases) to suggest.", min=1)] = 8,
    whole_cases: Annotated[bool, typer.Option("--whole-cases", help="Suggest whole cases instead of slices.")] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone whose embeddings are compared. Default: the model's, else handful-tiny.", show_default=False
        ),
    ] = None,
    plane: Annotated[
        str, typer.Option(help="auto, axial, coronal or sagittal. With --model, the model's own plane is used.")
    ] = "auto",
    window: Annotated[
        str,
        typer.Option(help="auto, percentile, ct-soft, ct-bone, ct-lung, ct-brain, none, each. Not used with --model."),
    ] = "auto",
    channels: options.Channels = "",
    device: options.Device = "auto",
    cache: options.Cache = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the unlabelled slices to label next, each with its reason and a picture.

    Example: `handful suggest -i my_cohort -o suggestions --model model`

    The suggested slices are similar to many others in the cohort and unlike the labelled ones. With a model, slices on
    which its predictions are inconsistent rank higher. Run the command again after labelling: earlier suggestions are
    replaced.
    """
    from handful.cohort.choice import choose_encoder
    from handful.curation.suggest import SuggestConfig
    from handful.curation.suggest import suggest as suggested
    from handful.data.slicing import Slicer
    from handful.reports.suggestions import require_apart, write_suggestions

    cut: dict[str, Any] = {"plane": plane, "window": window}
    config = SuggestConfig(count=count, whole_cases=whole_cases, slicer=Slicer(**cut))
    saved = _opened(model)
    known = saved.sequences if saved else ()
    cohort = options.cohort_in(input, channels=options.names_in(channels), default_channels=known)
    require_apart(out, cohort)
    segmenter = saved.open(device, cache) if saved else None
    encoder = choose_encoder(backbone, segmenter, device, cache)
    with progress("comparing slices", quiet) as report:
        result = suggested(cohort, encoder, segmenter, config, report, saved.agreement if saved else {})
    files = write_suggestions(out, cohort, result)
    if json:
        print_json(_content(result, files) | {"left_out": cohort.left_out})
    else:
        _print(result, count, files)
    print_failures(result.failures)
    exit_on(result.failures, cohort.left_out)


def _opened(folder: Path | None) -> SavedModel | None:
    """The model of one task in the folder."""
    from handful.checkpoint.model import open_model

    if folder is None:
        return None
    model = open_model(folder)
    model.require_single_task("a suggestion")
    return model


def _content(result: SuggestResult, files: tuple[Path, ...]) -> dict[str, object]:
    chosen_from = {"files": files, "candidates": result.candidates, "labelled_slices": result.labelled}
    entries = [_entry(suggestion) for suggestion in result.suggestions]
    return chosen_from | {"suggestions": entries, "failures": result.failures}


def _entry(suggestion: Suggestion) -> dict[str, object]:
    return {
        "case": suggestion.slice.case,
        "plane": suggestion.plane,
        "axis": suggestion.axis,
        "index": suggestion.slice.index,
        "slices": suggestion.slice.slices,
        "score": round(suggestion.score, 4),
        "coverage": round(suggestion.coverage, 4),
        "disagreement": None if suggestion.disagreement is None else round(suggestion.disagreement, 4),
        "reason": suggestion.reason,
    }


def _print(result: SuggestResult, count: int, files: tuple[Path, ...]) -> None:
    from rich.text import Text

    listed = table()
    for title in ("", "case", "slice", "score"):
        listed.add_column(title, justify="left" if title == "case" else "right")
    listed.add_column("reason")
    for rank, suggestion in enumerate(result.suggestions, start=1):
        place = f"{suggestion.slice.index} (0 to {suggestion.slice.slices - 1})" if suggestion.slice.slices > 1 else ""
        row = (
            Text(one_line(suggestion.slice.case)),
            place,
            f"{suggestion.score:.3f}",
            Text(one_line(suggestion.reason)),
        )
        listed.add_row(str(rank), *row)
    console, kind = stdout(), "unlabelled case" if result.whole_cases else "unlabelled slice"
    candidates = counted(result.candidates, kind)
    console.print(listed)
    if result.candidates < count:
        console.print(f"{count} requested, found {candidates}", highlight=False)
    total = f"{len(result.suggestions)} of {candidates}; {counted(result.labelled, 'labelled slice')}"
    print_lines(total, *files)
