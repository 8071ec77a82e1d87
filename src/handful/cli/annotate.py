"""`handful annotate`: a simulated annotator clicks through a labelled scan."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import counted, one_line, print_json, print_lines, progress, stdout
from handful.errors import InputError

if TYPE_CHECKING:
    from handful.data.volume import LabelMap, Volume
    from handful.session.simulated_annotator import AnnotationResult

LEVELS = (0.85, 0.90)


def annotate(
    source: Annotated[
        str, typer.Argument(help="Folder that 'handful fit' made, or a backbone as for fit.", show_default=False)
    ],
    image: Annotated[Path, typer.Option("-i", "--image", help="The scan to annotate.")],
    reference: Annotated[
        Path, typer.Option("--reference", help="Reference label map of the scan; the clicks are simulated from it.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="File for the resulting label map.")],
    clicks: Annotated[int, typer.Option(help="Maximum number of clicks per label and slice.", min=1)] = 5,
    slices: Annotated[
        int | None, typer.Option(help="Annotate this many slices and propagate to the others. Default: all.", min=1)
    ] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Start from the fitted model's segmentation and correct it.")
    ] = False,
    learn: Annotated[
        bool, typer.Option("--learn", help="Let an auxiliary network learn from each slice before the next one.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the click positions.")] = 0,
    device: options.Device = "auto",
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how many clicks a labelled scan takes, with a simulated annotator.

    Example: `handful annotate handful-tiny -i scan.nii.gz --reference truth.nii.gz -o annotated.nii.gz`

    The clicks come from the reference, so this command measures a model and cannot label a new scan. To build a tool
    for real annotators, use `handful.Session` in Python.

    The table shows the mean Dice per slice after each click. NoC@0.85 is the mean number of clicks that reach a Dice
    of 0.85; slices that never reach it count as the maximum number of clicks.
    """
    _require_free(out, image, reference, overwrite)
    volume, truth = _read(image, reference)
    from handful.cohort.choice import open_source  # seconds; a wrong file is reported before
    from handful.methods.catalog import online_learner
    from handful.methods.promptable import labels_of
    from handful.session.session import Session
    from handful.session.simulated_annotator import annotate_scan

    model = open_source(source, device, cache)
    labels, learner = None if labels_of(model) else truth.labels, online_learner() if learn else None
    with Session(volume, model, labels, learner=learner) as session:
        if propose:
            session.propose()
        with progress("annotating", quiet) as report:
            result = annotate_scan(session, truth, clicks, slices, seed=seed, report=report)
        session.save(out)
    if json:
        print_json(_content(result))
    else:
        _print_table(result)
        print_lines(f"label map: {out}")


def _read(image: Path, reference: Path) -> tuple[Volume, LabelMap]:
    from handful.data.files import read_label_map, read_volume
    from handful.data.voxel_order import in_order_of

    volume = read_volume(image)
    return volume, in_order_of(read_label_map(reference, grid=volume.geometry), volume.geometry)


def _require_free(out: Path, image: Path, reference: Path, overwrite: bool) -> None:
    """Raise InputError if the output would replace a file that must stay."""
    from handful.data.inputs import Inputs, is_in_cohort

    Inputs.of((), (image, reference)).require_not_among(out)
    if out.exists() and is_in_cohort(out):
        raise InputError(f"{out} is a scan or a label map of a cohort, which is never replaced; name another file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; name another file, or add --overwrite")


def _rows(result: AnnotationResult) -> list[tuple[str, int, list[float], list[float], float]]:
    """One row per label: name, slices, mean Dice after each click, NoC at each level, Dice in the whole scan."""
    rows = []
    for value, name in result.labels.as_dict().items():
        dice = result.of(value)
        if len(dice):
            reached = [result.clicks_to(level, value) for level in LEVELS]
            rows.append((name, len(dice), dice.mean(dim=0).tolist(), reached, result.volume_dice[value]))
    return rows


def _print_table(result: AnnotationResult) -> None:
    from rich.table import Table
    from rich.text import Text

    clicks = range(1, result.dice.shape[1] + 1)
    title = "Mean Dice per slice after 1, 2, ... clicks; number of clicks to reach a Dice (NoC); Dice in the whole scan"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("label", "slices", *map(str, clicks), *[f"NoC@{level:.2f}" for level in LEVELS], "scan"):
        table.add_column(column, justify="left" if column == "label" else "right", no_wrap=column != "label")
    for name, count, dice, reached, whole in _rows(result):
        cells = [*[f"{value:.3f}" for value in dice], *[f"{value:.1f}" for value in reached], f"{whole:.3f}"]
        table.add_row(Text(one_line(name)), str(count), *cells)
    stdout().print(table)
    seconds = result.seconds
    stdout().print(
        f"simulated annotator: {counted(len(seconds), 'click')}, {median(seconds):.3f} s per click (median), "
        f"{sum(seconds):.1f} s",
        highlight=False,
    )


def _content(result: AnnotationResult) -> dict[str, Any]:
    labels = [
        {
            "name": name,
            "slices": count,
            "dice_after_click": dice,
            **{f"noc@{level:.2f}": value for level, value in zip(LEVELS, reached, strict=True)},
            "dice_whole_scan": whole,
        }
        for name, count, dice, reached, whole in _rows(result)
    ]
    seconds = {"median": median(result.seconds), "mean": fmean(result.seconds)}
    return {"annotator": "simulated", "clicks": len(result.seconds), "seconds_per_click": seconds, "labels": labels}
