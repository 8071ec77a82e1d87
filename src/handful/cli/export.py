"""`handful export`: write labelled cases for other programs and experiments, and read nnU-Net's predictions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from handful.cli import options
from handful.cli.terminal import counted, exit_on, print_json, print_left_out, print_lines, progress

export = typer.Typer(
    help="Compare with nnU-Net: write its data set and import its predictions. Simulate scribbles for experiments.",
    no_args_is_help=True,
)


@export.command("nnunet")
def nnunet(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="nnU-Net's folder of raw data sets (nnUNet_raw).")],
    cases: options.Cases = "",
    shots: options.Shots = None,
    split: options.Split = 0,
    number: Annotated[int, typer.Option(help="nnU-Net's number of the data set, 1 to 999.")] = 501,
    name: Annotated[str, typer.Option(help="nnU-Net's name of the data set.")] = "handful",
    rest: Annotated[
        bool, typer.Option("--rest", help="Also write the scans of all other patients, into imagesTs for prediction.")
    ] = False,
    channels: options.Channels = "",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write labelled cases as a raw data set of nnU-Net v2. Unlabelled slices get its "ignore" label.

    Example: `handful export nnunet -i my_cohort --shots 4 -o nnUNet_raw --rest`

    `--shots` and `--split` choose the same cases as in `handful fit`, so that both learn from the same ones.
    """
    from handful.data.nnunet import export_nnunet

    cohort = options.cohort_in(input, channels=options.names_in(channels))
    support, failures = options.support_in(cohort, cases, shots, split)
    exported = export_nnunet(support, out, number, name, cohort if rest else None, overwrite)
    if json:
        cases_written = {"dataset": exported.folder, "cases": exported.training, "tests": exported.tests}
        unread = {"failures": failures, "tests_left_out": exported.left_out, "left_out": cohort.left_out}
        print_json(cases_written | {"values": exported.values, "ignore": exported.ignore} | unread)
    else:
        counts = f"{counted(len(exported.training), 'training case')}, {counted(len(exported.tests), 'test case')}"
        print_lines(
            f"{counts}: {exported.folder}",
            f"next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity",
        )
    print_left_out(exported.left_out)
    exit_on(cohort.left_out, failures, exported.left_out)


@export.command("nnunet-predictions")
def nnunet_predictions(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder that nnUNetv2_predict wrote.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="The data set that 'handful export nnunet' wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="New folder for the label maps.")],
    json: options.Json = False,
) -> None:
    """Convert nnU-Net's predictions to the label values of the cohort, for `handful evaluate`.

    Example: `handful export nnunet-predictions -p raw --dataset nnUNet_raw/Dataset501_handful -o predictions`

    The names of nnU-Net's training cases are stored with them, so that `handful evaluate` excludes those cases.
    """
    from handful.data.nnunet import import_nnunet

    names, left_out = import_nnunet(predictions, dataset, out)
    if json:
        print_json({"output": out, "cases": names, "left_out": left_out})
    else:
        print_lines(f"{len(names)} label maps: {out}", highlight=True)
    print_left_out(left_out)
    exit_on(left_out)


@export.command("scribbles")
def scribbles(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="New folder for scans and scribbles.")],
    cases: options.Cases = "",
    shots: options.Shots = None,
    split: options.Split = 0,
    labels: options.Labels = "",
    seed: Annotated[int, typer.Option(help="Seed of the strokes.", min=0)] = 0,
    width: Annotated[int, typer.Option(help="Pixels across a stroke.", min=1)] = 3,
    channels: options.Channels = "",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a cohort with simulated scribbles in place of its whole masks, for experiments.

    Example: `handful export scribbles -i my_cohort -o my_scribbles`

    Each connected piece of a label gets one stroke along its middle, in each slice, and the background around the
    labels gets another. All other voxels are unlabelled. The same seed gives the same strokes.
    """
    from handful.cohort.scribbles import write_scribbles

    cohort = options.cohort_in(input, channels=options.names_in(channels))
    support, failures = options.support_in(cohort, cases, shots, split, labels)
    with progress("drawing scribbles", quiet) as report:
        written = write_scribbles(support.cases, support.labels, out, seed, width, overwrite, report, cohort.name)
    if json:
        found = {"output": out, "cases": written.cases, "labelled": written.labelled, "ignore": written.ignore}
        print_json(found | {"failures": [*failures, *written.failures], "left_out": cohort.left_out})
    else:
        print_lines(
            f"simulated scribbles of {counted(len(written.cases))}: {out}",
            f"{written.labelled:.2%} of the voxels are labelled, all others have the value {written.ignore}",
            f"next: handful fit unet -i {shlex.quote(str(out))} -o model",
        )
    exit_on(cohort.left_out, failures, written.failures)
