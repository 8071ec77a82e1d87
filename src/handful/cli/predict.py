"""`handful predict`: segment scans with a fitted model."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli import options
from handful.cli.terminal import (
    WARNING,
    counted,
    exit_on,
    one_line,
    print_failures,
    print_json,
    print_lines,
    print_note,
    progress,
    some,
)


class Format(StrEnum):
    """Formats of the label maps."""

    AUTO = "auto"
    DICOM_SEG = "dicom-seg"
    DICOM_LABELMAP = "dicom-labelmap"


Input = Annotated[
    str,
    typer.Option(
        "-i",
        "--input",
        help="A scan, a folder of DICOM files, a folder of scans as for fit, or dicomweb:URL?QUERY.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="File for one scan, folder for a folder of scans.")]
FormatOption = Annotated[
    Format,
    typer.Option(
        help="auto: the format of the scan, NIfTI for DICOM. dicom-seg: a DICOM segmentation of DICOM scans. "
        "dicom-labelmap: the same as a label map, which few viewers read yet."
    ),
]
Preview = Annotated[
    bool,
    typer.Option(
        "--preview",
        help="Also write a picture of each result into previews/. For a fate model it shows labelled slices of the "
        "patients that the model was fitted on, too: protect the pictures like their scans.",
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option("--probabilities", help="Also write the probability of each label into probabilities/, as NIfTI."),
]
Terms = Annotated[
    Path | None,
    typer.Option(help="TOML or JSON file with coded terms of labels, for DICOM segmentations.", show_default=False),
]
Expert = Annotated[
    str | None,
    typer.Option(
        help="The expert that segments all scans, for a model with experts. Default: the router picks one per scan.",
        show_default=False,
    ),
]
Store = Annotated[
    bool, typer.Option("--store/--no-store", help="Store the segmentations of a DICOMweb archive there, or do not.")
]


if TYPE_CHECKING:
    from handful.cohort.predict import ChosenExpert, CohortResult, FilePrediction, PredictConfig
    from handful.data.cases import Cohort, LeftOut
    from handful.data.dicom.series import SeriesChoice


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a model from 'handful fit'.", show_default=False)],
    input: Input,
    out: Output,
    cases: options.Cases = "",
    part: options.Part = "",
    series: options.Series = None,
    slice_tolerance: options.SliceTolerance = None,
    channels: options.Channels = "",
    expert: Expert = None,
    backbone: options.OwnBackbone = None,
    device: options.Device = "auto",
    cache: options.Cache = None,
    overwrite: options.Overwrite = False,
    preview: Preview = False,
    probabilities: Probabilities = False,
    format: FormatOption = Format.AUTO,
    terms: Terms = None,
    store: Store = True,
    workers: options.Workers = 1,
    scheduler: options.Scheduler = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment a scan or a folder of scans. Each label map has the voxel grid of its scan.

    Example: `handful predict model -i my_cohort -o predictions`

    A label map has the file name of its scan (JPEG becomes PNG; DICOM becomes NIfTI, or DICOM-SEG with `--format`;
    nnU-Net's CASE_0000 becomes CASE). If the command is run again, only new or changed scans are segmented. Scans that
    fail are listed in failures.json, scans unlike those of the model in warnings.json, label volumes in volumes.csv.
    Files that are left out are named; the exit code is then 3. No output replaces a scan or label map of the input.

    `-i "dicomweb:https://HOST/dicom-web?Modality=CT"` segments what a DICOMweb archive finds and stores DICOM-SEG.
    """
    from handful.cohort.predict import PredictConfig
    from handful.data.dicom.series import SeriesChoice
    from handful.data.dicom.terms import read_terms

    config = PredictConfig(
        device=device,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
        preview=preview,
        probabilities=probabilities,
        cache=cache,
        backbone=backbone,
        expert=expert,
        format=format.value,
        terms=read_terms(terms) if terms else {},
    )
    choice, sequences = SeriesChoice(series, slice_tolerance), options.names_in(channels)
    if _is_single(input, out, cases, part, scheduler, channels):
        _print_file(out, _predict_file(model, Path(input), out, config, choice, sequences), json)
    elif _is_archive(input):
        _finish(out, *_predict_archive(model, input, out, options.names_in(cases), config, choice, store, quiet), json)
    else:
        _finish(out, *_predict_folder(model, Path(input), out, (cases, part), config, choice, sequences, quiet), json)


def _finish(out: Path, result: CohortResult, left_out: tuple[LeftOut, ...], json: bool) -> None:
    """Print the result and end the command with its exit code."""
    print_json(_content(out, result) | {"left_out": left_out}) if json else _print(out, result)
    exit_on(result.failures, left_out, result.nothing_found * ["nothing found"])


def _is_archive(input: str) -> bool:
    """Whether the input is the address of a DICOMweb archive."""
    from handful.data.dicom.web import SCHEME

    return input.startswith(SCHEME)


def _is_single(input: str, out: Path, cases: str, part: str, scheduler: str | None, channels: str) -> bool:
    """Whether the input is a single scan, written to a file. Wrong usage for options that only folders have."""
    from handful.data.files import is_single_scan, names_file

    single = names_file(out) and not _is_archive(input) and is_single_scan(Path(input))
    given = {"--cases": cases, "--part": part, "--scheduler": scheduler, "--channels": channels}
    refused: tuple[str, ...] = ()
    if single:
        refused = ("--cases", "--part", "--scheduler")
    elif _is_archive(input):
        refused = ("--part", "--scheduler", "--channels")
    for option in (option for option in refused if given[option]):
        raise typer.BadParameter(f"{option} is for folders of scans; leave it out")
    return single


def _cohort(model: Path, input: Path, choice: SeriesChoice, sequences: list[str]) -> Cohort:
    """The scans of the input; sequences that nobody names have the names of those of the model."""
    from handful.checkpoint.model import open_model

    return options.cohort_in(
        input,
        images_only=True,
        series=choice.series,
        slice_tolerance=choice.slice_tolerance,
        channels=sequences,
        default_channels=open_model(model).sequences,
    )


def _predict_file(
    model: Path, input: Path, out: Path, config: PredictConfig, choice: SeriesChoice, sequences: list[str]
) -> FilePrediction:
    from handful.cohort.predict import predict_file

    (case,) = _cohort(model, input, choice, sequences).cases
    return predict_file(model, case.image, out, config, choice)


def _predict_folder(
    model: Path,
    input: Path,
    out: Path,
    cases: tuple[str, str],
    config: PredictConfig,
    choice: SeriesChoice,
    sequences: list[str],
    quiet: bool,
) -> tuple[CohortResult, tuple[LeftOut, ...]]:
    from handful.cohort.choice import choose_cases
    from handful.cohort.predict import predict_cohort

    cohort = _cohort(model, input, choice, sequences)
    names, part = cases
    chosen = options.part_of(choose_cases(cohort, options.names_in(names)), part)
    with progress("segmenting", quiet) as report:
        return predict_cohort(model, chosen, out, config, report, inputs=cohort.files), cohort.left_out


def _predict_archive(
    model: Path,
    address: str,
    out: Path,
    names: list[str],
    config: PredictConfig,
    choice: SeriesChoice,
    store: bool,
    quiet: bool,
) -> tuple[CohortResult, tuple[LeftOut, ...]]:
    from handful.cohort.archive import predict_archive

    if choice.series is not None:
        raise typer.BadParameter("--series is for folders; put SeriesInstanceUID=UID into the query of the address")
    if out.is_file() or out.suffix.lower() == ".dcm":
        raise typer.BadParameter(f"-o {out}: name a folder, which keeps the segmentations and what was stored")
    with progress("segmenting", quiet) as report:
        result = predict_archive(
            model,
            address,
            out,
            config,
            report,
            names=names,
            slice_tolerance=choice.slice_tolerance,
            store=store,
        )
    return result, ()


def _print_file(out: Path, result: FilePrediction, json: bool) -> None:
    for warning in result.warnings:
        print_note(warning, lead=WARNING)
    sizes = {value: result.sizes.of_label(value) for value in result.labels.values}
    if json:
        size = {"voxels": result.sizes.voxels, "sizes": sizes, "unit": result.sizes.unit}
        print_json({"output": out, **size, "warnings": result.warnings, "expert": result.expert})
    else:
        names = result.labels.as_dict()
        by = [f"expert: {_in_words(result.expert)}"] if result.expert else []
        print_lines(out, *by, *(f"{names[value]}: {size:g} {result.sizes.unit}" for value, size in sizes.items()))


def _in_words(expert: ChosenExpert) -> str:
    if expert.margin is None:
        return expert.name
    return f"{expert.name}, picked by the router with a margin of {expert.margin:.2f}"


def _content(out: Path, result: CohortResult) -> dict[str, object]:
    return {
        "output": out,
        "done": result.done,
        "skipped": result.skipped,
        "failures": result.failures,
        "warnings": result.warnings,
        "empty": result.empty,
        "missing": dict(result.missing),
        "experts": dict(result.experts),
    }


def _print(out: Path, result: CohortResult) -> None:
    before = f", {len(result.skipped)} already segmented" if result.skipped else ""
    failed = f", {len(result.failures)} failed" if result.failures else ""
    print_lines(f"{counted(len(result.done))} segmented{before}{failed}: {out}", highlight=True)
    if counts := Counter(one.name for one in result.experts.values()):
        numbers = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        print_lines(f"experts: {numbers}; run.json has the expert of each case")
    if unlike := len({warning.case for warning in result.warnings}):
        subject = "case is" if unlike == 1 else "cases are"
        unlike_them = "unlike those that the model was fitted on: see warnings.json"
        print_note(f"{unlike} {subject} {unlike_them}", lead=WARNING)
    if result.empty:
        print_note(f"no label was found in {counted(len(result.empty))}: {some(result.empty)}", lead=WARNING)
    for label, cases in result.missing.items():
        verb = "lacks" if len(cases) == 1 else "lack"
        print_note(
            f"{counted(len(cases))} {verb} {one_line(label)}, which most others have: {some(cases)}", lead=WARNING
        )
    print_failures(result.failures)
