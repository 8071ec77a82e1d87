"""`handful export`: support sets for other programs, and what those answered back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handful.cli import options
from handful.cli.terminal import print_json, print_lines

export = typer.Typer(help="Compare with nnU-Net: write its data set, read its predictions.", no_args_is_help=True)


@export.command("nnunet")
def nnunet(
    input: options.CohortFolder,
    out: Annotated[Path, typer.Option("-o", "--output", help="nnU-Net's folder of raw data sets (nnUNet_raw).")],
    cases: options.Cases = "",
    shots: Annotated[int | None, typer.Option(help="Export this many cases, drawn as by fit.", min=1)] = None,
    split: Annotated[int, typer.Option(help="Which random split of the cases.")] = 0,
    number: Annotated[int, typer.Option(help="nnU-Net's number of the data set, 1 to 999.")] = 501,
    name: Annotated[str, typer.Option(help="nnU-Net's name of the data set.")] = "handful",
    rest: Annotated[
        bool, typer.Option("--rest", help="Write the scans of all other patients into imagesTs, to be predicted.")
    ] = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Write labelled cases as a raw data set of nnU-Net v2; slices that nobody labelled become its "ignore".

    Example: `handful export nnunet -i my_cohort --shots 4 -o nnUNet_raw --rest`

    The cases are chosen as by `handful fit`, so that both learn from the same ones.
    """
    from handful.cohort.choice import choose_support
    from handful.data.files import read_cohort
    from handful.data.nnunet import export_nnunet

    cohort = read_cohort(input)
    support = choose_support(cohort, options.names_in(cases), shots, split)
    made = export_nnunet(support, out, number, name, cohort if rest else None, overwrite)
    if json:
        said = {"dataset": made.folder, "cases": made.training, "tests": made.tests}
        print_json(said | {"values": made.values, "ignore": made.ignore})
    else:
        counts = f"{len(made.training)} training cases, {len(made.tests)} to be predicted"
        print_lines(
            f"{counts}: {made.folder}",
            f"next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity",
        )


@export.command("nnunet-predictions")
def nnunet_predictions(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder that nnUNetv2_predict wrote.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="The data set that 'handful export nnunet' wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="New folder for the label maps.")],
    json: options.Json = False,
) -> None:
    """Give nnU-Net's predictions the cohort's own label values back, for `handful evaluate`.

    Example: `handful export nnunet-predictions -p raw --dataset nnUNet_raw/Dataset501_handful -o predictions`

    The cases that nnU-Net was trained on are noted: `handful evaluate` leaves them out.
    """
    from handful.data.nnunet import import_nnunet

    names = import_nnunet(predictions, dataset, out)
    if json:
        print_json({"output": out, "cases": names})
    else:
        print_lines(f"{len(names)} label maps: {out}", highlight=True)
