"""`handful predict`: segment scans with a fitted model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import exit_on, print_failures, print_json, print_lines, progress


class Format(StrEnum):
    """Formats of the label maps."""

    AUTO = "auto"
    DICOM_SEG = "dicom-seg"
    DICOM_LABELMAP = "dicom-labelmap"


FormatOption = Annotated[
    Format,
    typer.Option(
        help="auto: the format of the scan, NIfTI for DICOM. dicom-seg: a DICOM segmentation of DICOM scans. "
        "dicom-labelmap: the same as a label map, which few viewers read yet."
    ),
]
Preview = Annotated[bool, typer.Option("--preview", help="Also write a picture of each result into previews/.")]
Terms = Annotated[
    Path | None,
    typer.Option(help="TOML or JSON file with coded terms of labels, for DICOM segmentations.", show_default=False),
]


if TYPE_CHECKING:
    from handful.cohort.predict import CohortResult, PredictConfig
    from handful.data.dicom.series import SeriesChoice


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a model from 'handful fit'.", show_default=False)],
    input: Annotated[
        Path, typer.Option("-i", "--input", help="A scan, a folder of DICOM files, or a folder of scans as for fit.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="File for one scan, folder for a folder of scans.")],
    cases: options.Cases = "",
    series: options.Series = None,
    slice_tolerance: options.SliceTolerance = None,
    backbone: options.OwnBackbone = None,
    device: options.Device = "auto",
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    preview: Preview = False,
    format: FormatOption = Format.AUTO,
    terms: Terms = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment a scan or a folder of scans. Each label map has the voxel grid of its scan.

    Example: `handful predict model -i my_cohort -o predictions`

    A label map has the file name of its scan (JPEG becomes PNG; DICOM becomes NIfTI, or DICOM-SEG with `--format`;
    nnU-Net's CASE_0000 becomes CASE). If the command is run again, only new or changed scans are segmented. Scans that
    fail are listed in failures.json; the others are still segmented.

    The pictures of `--preview` show slices with the predicted labels. For a `fate` model they also show the labelled
    slices that each prediction is based on. Those come from patients of the support set: protect the pictures like
    their scans.
    """
    from handful.cohort.predict import PredictConfig, predict_file
    from handful.data.dicom.series import SeriesChoice
    from handful.data.dicom.terms import read_terms
    from handful.data.files import is_single_scan, names_file

    config = PredictConfig(
        device=device,
        overwrite=overwrite,
        preview=preview,
        cache=cache,
        backbone=backbone,
        format=format.value,
        terms=read_terms(terms) if terms else {},
    )
    choice = SeriesChoice(series, slice_tolerance)
    if names_file(out) and is_single_scan(input):
        predict_file(model, input, out, config, choice)
        print_json({"output": out}) if json else print_lines(out, highlight=True)
        return
    result = _predict_folder(model, input, out, options.names_in(cases), config, choice, quiet)
    print_json(_content(out, result)) if json else _print(out, result)
    exit_on(result.failures)


def _predict_folder(
    model: Path,
    folder: Path,
    out: Path,
    names: list[str],
    config: PredictConfig,
    choice: SeriesChoice,
    quiet: bool,
) -> CohortResult:
    from handful.cohort.choice import choose_cases
    from handful.cohort.predict import predict_cohort
    from handful.data.files import read_cohort

    cohort = read_cohort(folder, images_only=True, series=choice.series, slice_tolerance=choice.slice_tolerance)
    chosen = choose_cases(cohort, names)
    with progress("segmenting", quiet) as report:
        return predict_cohort(model, chosen, out, config, report)


def _content(out: Path, result: CohortResult) -> dict[str, object]:
    return {"output": out, "done": result.done, "skipped": result.skipped, "failures": result.failures}


def _print(out: Path, result: CohortResult) -> None:
    before = f", {len(result.skipped)} already segmented" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    print_lines(f"{len(result.done)} cases segmented{before}{failed}: {out}", highlight=True)
    print_failures(result.failures)
