"""Options that several commands have, each with one name, one meaning and one help text."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

COHORT_HELP = (
    "Folder of scans: images/ and labels/ with files of equal name, nnU-Net raw, MSD, or plain files in a folder."
)

EMBEDDINGS = Path(".handful") / "embeddings"
"""Where a cohort's embeddings are kept by default: in its own folder, because they reveal as much as its images."""

CohortFolder = Annotated[Path, typer.Option("-i", "--input", help=COHORT_HELP)]
Cases = Annotated[str, typer.Option(help="Names of cases, separated by commas.", show_default=False)]
Backbone = Annotated[
    str, typer.Option(help="A name out of 'handful list backbones', a hub id, a folder, or an authors' .pth or .pt.")
]
Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or mps; auto takes cuda if it is there.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="A setting of the method, key=value; repeat it for more.", show_default=False)
]
Cache = Annotated[Path | None, typer.Option(help="Folder of kept embeddings to use and to fill.")]
CohortCache = Annotated[Path | None, typer.Option(help=f"Folder of kept embeddings; else COHORT/{EMBEDDINGS}.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


def names_in(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers_in(text: str, option: str) -> tuple[int, ...]:
    """The numbers of a text with commas."""
    for name in names_in(text):
        if not name.isdecimal():
            raise typer.BadParameter(f"{option}: {name!r} is no number; write them as 1,2,4")
    return tuple(int(name) for name in names_in(text))


def settings_in(pairs: list[str]) -> dict[str, object]:
    """{key: value} of 'key=value' texts."""
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.strip()):
            raise typer.BadParameter(f"{pair!r} is no setting; write key=value, such as train.iterations=200")
        settings[key.strip()] = value.strip()
    return settings


def settings_from(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file; none without a file."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise typer.BadParameter(f"{path}: no such file") from None
    except ValueError as error:
        raise typer.BadParameter(f"{path}: no valid TOML ({error})") from error


def embeddings_of(cohort: Path) -> Path:
    """The folder that keeps the embeddings of a cohort, or of a single scan, unless another is named."""
    return (cohort if cohort.is_dir() else cohort.parent) / EMBEDDINGS
