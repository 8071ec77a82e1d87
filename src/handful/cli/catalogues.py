"""`handful list`: the methods and backbones there are, and the settings of a method."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli import options
from handful.cli.terminal import print_json, stdout, table

if TYPE_CHECKING:
    from handful.methods.description import MethodDescription


class Catalogue(StrEnum):
    """What can be listed."""

    methods = "methods"
    backbones = "backbones"


def list_catalogue(
    catalogue: Annotated[Catalogue, typer.Argument(help="What to list.", show_default=False)],
    name: Annotated[str, typer.Argument(help="A method, to list its settings.", show_default=False)] = "",
    json: options.Json = False,
) -> None:
    """List the methods, the settings of one method, or the backbones with their licences.

    Example: `handful list methods`

    Example: `handful list methods fate`
    """
    if catalogue is Catalogue.backbones:
        _list_backbones(name, json)
    elif name:
        _list_settings(name, json)
    else:
        _list_methods(json)


def _list_methods(json: bool) -> None:
    from handful.methods.description import describe_methods

    methods = describe_methods()
    if json:
        print_json({"methods": [_as_json(one) for one in methods]})
        return
    rows = [(one.name, one.summary, one.when, "yes" if one.trains else "no", one.minutes) for one in methods]
    _print_table(("method", "what it does", "when to use it", "trains", "time to fit"), rows)
    note = "time: four or five labelled cases, handful-tiny, one or two CPU cores; settings: handful list methods NAME"
    stdout().print(note, style="dim")


def _list_settings(name: str, json: bool) -> None:
    from handful.methods.description import describe_method

    method = describe_method(name)
    if json:
        print_json(_as_json(method))
        return
    stdout().print(f"{method.name}: {method.summary}\nuse it for: {method.when}\n")
    rows = [(one.name, _shown(one.default), one.meaning) for one in method.settings]
    _print_table(("setting", "default", "meaning"), rows)
    stdout().print(f"example: handful fit {name} -i my_cohort -o model --set {_example(method)}", style="dim")


def _as_json(method: MethodDescription) -> dict[str, Any]:
    return {
        "name": method.name,
        "what it does": method.summary,
        "when to use it": method.when,
        "trains": method.trains,
        "time to fit": method.minutes,
        "settings": {one.name: {"default": _jsonable(one.default), "meaning": one.meaning} for one in method.settings},
    }


def _example(method: MethodDescription) -> str:
    trained = [one for one in method.settings if one.name.endswith("train.iterations")]
    return f"{trained[0].name}={trained[0].default}" if trained else "roi_margin=1.4"


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _list_backbones(name: str, json: bool) -> None:
    from handful.backbones.names import BACKBONES

    if name:
        raise typer.BadParameter(f"backbones have no settings to list; leave out {name!r}")
    entries = [
        {
            "name": backbone,
            "what it is": entry.description,
            "licence": entry.licence,
            "source": "comes with handful" if entry.embedded else str(entry.source),
        }
        for backbone, entry in BACKBONES.items()
    ]
    if json:
        print_json({"backbones": entries})
    else:
        _print_table(("backbone", "what it is", "licence", "source"), [tuple(entry.values()) for entry in entries])


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.text import Text

    listed = table()
    for number, column in enumerate(columns):
        listed.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        listed.add_row(*map(Text, row))
    stdout().print(listed)
