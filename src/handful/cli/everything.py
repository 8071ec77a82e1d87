"""`handful everything`: the masks of all objects, from a grid of points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import (
    WARNING,
    counted,
    exit_on,
    print_failures,
    print_json,
    print_lines,
    print_note,
    progress,
    some,
)

if TYPE_CHECKING:
    from handful.cohort.everything import FindMasksConfig, FindMasksResult
    from handful.data.cases import Cohort

Input = Annotated[Path, typer.Option("-i", "--input", help="A scan, a folder of DICOM files, or a folder of scans.")]
Points = Annotated[int, typer.Option(help="Points along each side of the grid, up to 64. More find smaller objects.")]
LeastIou = Annotated[
    float | None,
    typer.Option(
        help="Smallest predicted IoU of a mask. Default: 0.3 for handful-tiny and handful-small, 0.88 for others.",
        show_default=False,
    ),
]
LeastStability = Annotated[
    float | None,
    typer.Option(
        help="Smallest IoU of a mask at two thresholds. Default: 0.6 for handful-tiny and handful-small, 0.95 for "
        "others.",
        show_default=False,
    ),
]
MostOverlap = Annotated[
    float, typer.Option(help="IoU of two masks above which only the one with the higher predicted IoU is kept.")
]
Preview = Annotated[bool, typer.Option("--preview/--no-preview", help="Write pictures into previews/, or do not.")]


def everything(
    input: Input,
    out: Annotated[Path, typer.Option("-o", "--output", help="Output folder. An existing one is resumed.")],
    backbone: options.Backbone = "handful-tiny",
    points: Points = 16,
    least_iou: LeastIou = None,
    least_stability: LeastStability = None,
    most_overlap: MostOverlap = 0.7,
    cases: options.Cases = "",
    plane: Annotated[str, typer.Option(help="auto, axial, coronal or sagittal: the plane of the slices.")] = "auto",
    window: Annotated[
        str, typer.Option(help="auto, percentile, ct-soft, ct-bone, ct-lung, ct-brain, none, each.")
    ] = "auto",
    series: options.Series = None,
    slice_tolerance: options.SliceTolerance = None,
    channels: options.Channels = "",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    preview: Preview = True,
    workers: options.Workers = 1,
    scheduler: options.Scheduler = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the masks of all objects in each slice, without labels: SAM's automatic masks from a grid of points.

    Example: `handful everything -i my_scans -o masks`

    Each scan gets a label map with a number per mask, 1 for the largest. The folder previews/ has pictures of the
    masks in colours, and masks.csv their areas and scores. The masks have no names, and each slice is segmented by
    itself. If the command is run again, only new or changed scans are segmented; scans that fail are listed in
    failures.json, and the exit code is then 3.
    """
    from handful.cohort.everything import FindMasksConfig
    from handful.data.slicing import Slicer
    from handful.methods.everything import EverythingConfig

    cut: dict[str, Any] = {"plane": plane, "window": window}
    kept = {"least_iou": least_iou, "least_stability": least_stability}
    config = FindMasksConfig(
        backbone=backbone,
        masks=EverythingConfig(points=points, most_overlap=most_overlap, **kept),
        slicer=Slicer(**cut),
        device=device,
        overwrite=overwrite,
        preview=preview,
        workers=workers,
        scheduler=scheduler,
    )
    if out.is_file():
        raise typer.BadParameter(f"-o {out}: a file; name a folder")
    stated: dict[str, Any] = {"series": series, "slice_tolerance": slice_tolerance}
    cohort = options.cohort_in(input, images_only=True, channels=options.names_in(channels), **stated)
    result = _find(cohort, options.names_in(cases), out, config, quiet)
    _print_json(out, result, cohort.left_out) if json else _print(out, result)
    print_failures(result.failures)
    exit_on(result.failures, cohort.left_out)


def _find(cohort: Cohort, names: list[str], out: Path, config: FindMasksConfig, quiet: bool) -> FindMasksResult:
    from handful.cohort.choice import choose_cases
    from handful.cohort.everything import find_masks

    chosen = choose_cases(cohort, names)
    with progress("segmenting", quiet) as report:
        return find_masks(chosen, out, config, report, cohort.files)


def _print_json(out: Path, result: FindMasksResult, left_out: tuple[object, ...]) -> None:
    outcomes = {"done": result.done, "skipped": result.skipped, "failures": result.failures}
    print_json({"output": out, **outcomes, "masks": result.masks, "left_out": left_out})


def _print(out: Path, result: FindMasksResult) -> None:
    before = f", {len(result.skipped)} already segmented" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    count = f"{counted(sum(result.masks.values()), 'mask')} in all"
    print_lines(f"{counted(len(result.done))} segmented{before}{failed}, {count}: {out}", highlight=True)
    if result.empty:
        hint = "lower --least-iou or --least-stability, or take more --points"
        print_note(f"no mask was found in {counted(len(result.empty))} ({some(result.empty)}); {hint}", lead=WARNING)
