"""`handful suggest`: which slices or cases to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_json, print_lines, progress, say_failures, stdout, table

if TYPE_CHECKING:
    from handful.curation.suggest import Suggestion, SuggestResult


def suggest(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of suggestions.csv and suggestions.png.")],
    model: Annotated[
        Path | None, typer.Option(help="Folder that 'handful fit' made, to ask where it contradicts itself.")
    ] = None,
    count: Annotated[int, typer.Option(help="Slices to suggest, or cases.", min=1)] = 8,
    whole_cases: Annotated[bool, typer.Option("--whole-cases", help="Suggest whole cases in place of slices.")] = False,
    backbone: Annotated[
        str | None,
        typer.Option(help="What slices are compared by; else that of the model, or handful-tiny.", show_default=False),
    ] = None,
    plane: Annotated[str, typer.Option(help="auto, axial, coronal or sagittal; a model brings its own.")] = "auto",
    window: Annotated[
        str, typer.Option(help="auto, percentile, ct-soft, ct-bone, ct-lung, ct-brain, none; a model brings its own.")
    ] = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say which unlabelled slices to label next, with the reason for each and a picture.

    Example: `handful suggest -i my_cohort -o suggestions --model model`

    Chosen are slices that look like many others and unlike those that are labelled. With a model, those count more
    in which it contradicts itself. Run again after labelling; earlier suggestions are replaced.
    """
    from handful.checkpoint import open_segmenter
    from handful.cohort.choice import choose_encoder
    from handful.curation.suggest import SuggestConfig
    from handful.curation.suggest import suggest as suggested
    from handful.data.files import read_cohort
    from handful.data.slicing import Slicer
    from handful.reports.suggestions import write_suggestions

    cut: dict[str, Any] = {"plane": plane, "window": window}
    config = SuggestConfig(count=count, whole_cases=whole_cases, slicer=Slicer(**cut))
    cohort = read_cohort(input)
    segmenter = open_segmenter(model, device, cache) if model else None
    encoder = choose_encoder(backbone, segmenter, device, cache)
    with progress("looking", quiet) as report:
        result = suggested(cohort, encoder, segmenter, config, report)
    files = write_suggestions(out, cohort, result)
    if json:
        chosen_from = {"files": files, "candidates": result.candidates, "labelled_slices": result.labelled}
        entries = [_entry(one) for one in result.suggestions]
        print_json(chosen_from | {"suggestions": entries, "failures": result.failures})
    else:
        _print(result, count, files)
    say_failures(result.failures)
    exit_on(result.failures)


def _entry(one: Suggestion) -> dict[str, object]:
    return {
        "case": one.slice.case,
        "plane": one.plane,
        "slice": one.slice.number + 1,
        "axis": one.axis,
        "index": one.index,
        "score": round(one.score, 4),
        "coverage": round(one.coverage, 4),
        "disagreement": None if one.disagreement is None else round(one.disagreement, 4),
        "reason": one.reason,
    }


def _print(result: SuggestResult, count: int, files: tuple[Path, ...]) -> None:
    from rich.text import Text

    listed = table()
    for title in ("", "case", "slice", "score"):
        listed.add_column(title, justify="left" if title == "case" else "right")
    listed.add_column("why")
    for rank, one in enumerate(result.suggestions, start=1):
        place = f"{one.slice.number + 1}/{one.slice.slices}" if one.slice.slices > 1 else ""
        listed.add_row(str(rank), Text(one.slice.case), place, f"{one.score:.3f}", Text(one.reason))
    console, what = stdout(), "cases" if result.whole_cases else "slices"
    console.print(listed)
    if result.candidates < count:
        console.print(f"asked for {count}, but only {result.candidates} {what} are unlabelled", highlight=False)
    said = f"{len(result.suggestions)} of {result.candidates} unlabelled {what}; {result.labelled} slices are labelled"
    print_lines(said, *files)
