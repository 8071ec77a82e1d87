"""`handful list`: the methods and backbones there are."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import print_json, stdout, table


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
    else:
        _print_table(catalogue.value, entries)


def _methods() -> list[dict[str, Any]]:
    from handful.methods.catalog import METHODS, default_settings

    return [
        {
            "name": name,
            "what it does": (inspect.getdoc(METHODS[name]) or "").partition("\n")[0],
            "settings": default_settings(name),
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


def _print_table(title: str, entries: list[dict[str, Any]]) -> None:
    from rich.text import Text

    listed = table()
    for column in entries[0]:
        listed.add_column(title if column == "name" else column, overflow="fold", no_wrap=column == "name")
    for entry in entries:
        cells = (
            "\n".join(f"{key}={setting}" for key, setting in value.items()) if isinstance(value, dict) else value
            for value in entry.values()
        )
        listed.add_row(*(Text(cell) for cell in cells), end_section=True)
    stdout().print(listed)
