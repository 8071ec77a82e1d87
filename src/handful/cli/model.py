"""`handful model`: what a fitted model is, and what it holds of the scans that it was fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import Commands, counted, print_json, print_lines

if TYPE_CHECKING:
    from handful.checkpoint.model import ModelContent

model = typer.Typer(cls=Commands, no_args_is_help=True, help="What a fitted model is, and what it holds of its scans.")


@model.command("inspect")
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model from 'handful fit'.")],
    json: options.Json = False,
) -> None:
    """List the settings of a model, the scans that it was made for, and what it holds of the labelled cases.

    Example: `handful model inspect model`

    Neither the weights nor the backbone are loaded.
    """
    from handful.checkpoint.model import open_model

    content = open_model(folder).content()
    if json:
        print_json({"model": folder, **vars(content)})
    else:
        print_lines(*_lines(content))


def _lines(content: ModelContent) -> Iterator[str]:
    if content.experts:
        yield f"labels: {', '.join(f'{value} {name}' for value, name in content.labels.items())}"
        yield f"router: {counted(content.tensors, 'tensor')}, {content.bytes / 1e6:.1f} MB"
    else:
        yield from _of_task(content)
    for name, expert in content.experts.items():
        yield f"expert {name}:"
        yield from (f"  {line}" for line in _of_task(expert))
    yield f"backbone: {content.backbone}"
    yield "of the scans it was fitted on, the model holds:"
    for thing in content.holds or ["nothing but the weights that were learned from them"]:
        yield f"  {thing}"
    if content.paths:
        yield f"  paths: {', '.join(content.paths)}"


def _of_task(content: ModelContent) -> Iterator[str]:
    """What a model of a single task is."""
    yield f"method: {content.method}, fitted by handful {content.handful}"
    yield f"labels: {', '.join(f'{value} {name}' for value, name in content.labels.items())}"
    yield f"slices: {_listed(content.slicer)}"
    yield f"settings: {_listed(content.settings)}"
    yield f"made for: {_made_for(content)}"
    yield f"weights: {counted(content.tensors, 'tensor')}, {content.bytes / 1e6:.1f} MB"


def _made_for(content: ModelContent) -> str:
    kind = content.made_for
    if kind is None:
        return "not recorded"
    colour = " and ".join("grey" if channels == 1 else "colour" for channels in kind.channels)
    if kind.sequences:
        colour = f"sequences {', '.join(kind.sequences)} of"
    pixels, apart, values = (f"{low:.3g} to {high:.3g}" for low, high in (kind.pixel, kind.distance, kind.values))
    return (
        f"{colour} scans, {kind.modality or 'of unknown modality'}; {kind.plane} slices, pixels of {pixels} "
        f"{kind.unit}, {apart} {kind.unit} apart; values from {values}"
    )


def _listed(settings: Mapping[str, Any], prefix: str = "") -> str:
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(_listed(value, f"{prefix}{key}."))
        elif key != "slicer":
            parts.append(f"{prefix}{key}={value}")
    return ", ".join(part for part in parts if part)
