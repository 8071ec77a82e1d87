"""Options that several commands share, each with one name, one meaning and one help text."""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.terminal import print_failures, print_left_out

if TYPE_CHECKING:
    from handful.data.cases import Case, Cohort
    from handful.data.support import SupportSet
    from handful.evaluation.evaluate import Failure

COHORT_HELP = (
    "Folder of scans: images/ and labels/ with equal file names, an nnU-Net or MSD data set, or a folder of scans only."
    " A scan may be a folder or .zip of DICOM files."
)

EMBEDDINGS = Path(".handful") / "embeddings"
"""Default folder of embeddings, relative to the cohort: embeddings are patient data and stay with the scans."""

CohortFolder = Annotated[Path, typer.Option("-i", "--input", help=COHORT_HELP)]
Cases = Annotated[
    str, typer.Option(help="Names of cases, separated by commas. Default: all cases.", show_default=False)
]
Labels = Annotated[
    str,
    typer.Option(
        help="Names or values of labels, separated by commas; other labels count as background. Default: all labels.",
        show_default=False,
    ),
]
Shots = Annotated[int | None, typer.Option(help="Use this many randomly chosen labelled cases instead of all.", min=1)]
Split = Annotated[int, typer.Option(help="Number of the random split that --shots takes its cases from.")]
Backbone = Annotated[
    str,
    typer.Option(help="A name from 'handful list backbones', a Hugging Face id, a folder, or a SAM .pth or .pt file."),
]
OwnBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="The backbone that the model was fitted on, if it is not where the model says, or must be downloaded.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "-d", "--device", help="auto, cpu, cuda or mps (Apple's GPUs; untried). auto: the first of cuda, mps and cpu."
    ),
]
Settings = Annotated[
    list[str],
    typer.Option("--set", help="Setting of the method as key=value. Repeatable.", show_default=False),
]
Cache = Annotated[Path | None, typer.Option(help="Folder of stored embeddings; missing ones are added.")]
CohortCache = Annotated[Path | None, typer.Option(help=f"Folder of stored embeddings. Default: COHORT/{EMBEDDINGS}.")]
Series = Annotated[
    str | None,
    typer.Option(help="Number or UID of the DICOM series, if there are several.", show_default=False),
]
SliceTolerance = Annotated[
    float | None,
    typer.Option(
        help="Millimetres that a DICOM slice may be off its regular position. Default: 1 % of the slice spacing.",
        show_default=False,
        min=0,
    ),
]
Channels = Annotated[
    str,
    typer.Option(
        help="Names of the sequences of each scan, in their order, separated by commas, such as T1,FLAIR. "
        "Default: those in dataset.json.",
        show_default=False,
    ),
]
Workers = Annotated[
    int,
    typer.Option(help="Processes that share the cases and the CPU cores.", min=1),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Dask scheduler whose workers take the cases: tcp://HOST:8786, or its JSON file. "
        "They must reach all files under the same paths.",
        show_default=False,
    ),
]
Part = Annotated[
    str,
    typer.Option(help="Only this part of the cases, such as 3/16 in the third of 16 jobs.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Do not show progress.")]


def cohort_in(folder: Path, **choices: Any) -> Cohort:
    """The cohort in a folder, as `read_cohort`; prints which files are left out."""
    from handful.data.files import read_cohort

    cohort = read_cohort(folder, **choices)
    print_left_out(cohort.left_out)
    return cohort


def support_in(
    cohort: Cohort, cases: str, shots: int | None, split: int, labels: str = ""
) -> tuple[SupportSet, list[Failure]]:
    """The labelled cases as `choose_support` chooses them, and those that cannot be used, which are printed."""
    from handful.cohort.choice import choose_support

    failures: list[Failure] = []
    support = choose_support(cohort, names_in(cases), shots, split, names_in(labels), failures)
    print_failures(failures)
    return support, failures


def names_in(text: str) -> list[str]:
    """The names in a comma-separated list."""
    composed = unicodedata.normalize("NFC", text)
    return [name.strip() for name in composed.split(",") if name.strip()]


def part_of(cases: Sequence[Case], text: str) -> Sequence[Case]:
    """The part K/N of the cases: every N-th one, from the K-th one on; all of them for an empty text."""
    if not text:
        return cases
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"--part: {text!r} is not a part; write K/N with K from 1 to N, such as 3/16")
    return cases[int(number) - 1 :: int(count)]


def numbers_in(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers in a comma-separated list."""
    for name in names_in(text):
        if not name.isdecimal():
            raise typer.BadParameter(f"{option}: {name!r} is not a whole number; write them as 1,2,4")
    return tuple(int(name) for name in names_in(text))


def settings_in(pairs: list[str]) -> dict[str, object]:
    """Split texts of the form 'key=value' into a dictionary."""
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.strip()):
            raise typer.BadParameter(f"{pair!r} is not a setting; write key=value, such as train.iterations=200")
        settings[key.strip()] = value.strip()
    return settings


def settings_from(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file; an empty dictionary for no file."""
    from handful.jobs.files import text_of

    if path is None:
        return {}
    try:
        return tomllib.loads(text_of(path))
    except ValueError as error:
        raise typer.BadParameter(f"{path}: not valid TOML ({error})") from error


def embeddings_of(cohort: Path) -> Path:
    """The default folder of the embeddings of a cohort or of a single scan."""
    return (cohort if cohort.is_dir() else cohort.parent) / EMBEDDINGS
