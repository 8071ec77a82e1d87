"""`handful list`: the methods and backbones there are."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import print_json, stdout


class Catalogue(StrEnum):
    """What can be listed."""

    methods = "methods"
    backbones = "backbones"


def list_catalogue(
    catalogue: Annotated[Catalogue, typer.Argument(help="What to list.", show_default=False)],
    json: options.Json = False,
) -> None:
    """List methods with their settings, or backbones with their licences.

    Example: `handful list methods`
    """
    entries = _methods() if catalogue is Catalogue.methods else _backbones()
    if json:
        print_json({catalogue.value: entries})
        return
    _print_table(catalogue.value, entries)


def _methods() -> list[dict[str, Any]]:
    from handful.methods.catalog import METHODS, build_method, method_settings

    return [
        {
            "name": name,
            "what it does": (inspect.getdoc(METHODS[name]) or "").partition("\n")[0],
            "settings": {
                key: value
                for key, value in _dotted(method_settings(build_method(name, {}))).items()
                if ".slicer." not in key  # members of an ensemble have none of their own
            },
        }
        for name in sorted(METHODS)
    ]


def _backbones() -> list[dict[str, Any]]:
    from handful.backbones.catalog import BACKBONES

    return [
        {
            "name": name,
            "what it is": entry.description,
            "licence": entry.licence,
            "source": "comes with handful" if entry.embedded else str(entry.source),
        }
        for name, entry in BACKBONES.items()
    ]


def _dotted(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `--set` takes them: {'train.iterations': 600}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _print_table(title: str, entries: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in entries[0]:
        table.add_column(title if column == "name" else column, overflow="fold", no_wrap=column == "name")
    for entry in entries:
        cells = (
            "\n".join(f"{key}={setting}" for key, setting in value.items()) if isinstance(value, dict) else value
            for value in entry.values()
        )
        table.add_row(*(Text(cell) for cell in cells), end_section=True)
    stdout().print(table)
