"""The pages of the reference, written from the code itself: commands, settings of the methods, and the Python API."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

import handful
from handful.cli import app
from handful.methods.catalog import METHODS
from handful.methods.description import describe_method, describe_methods

GROUPS = {
    "data": "Scans, labels and cases",
    "backbones": "Backbones",
    "methods": "Methods",
    "checkpoint": "Saved models",
    "evaluation": "Scores",
    "cohort": "Whole folders",
    "curation": "What to label and what to check",
    "reports": "Pictures of scans",
    "session": "Correcting by prompts",
    "prompts": "Correcting by prompts",
    "experiments": "Experiments",
    "errors": "Errors",
}
"""Heading of the Python API by the room that a name comes from."""


def commands() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    parts = [f"{COMMANDS_HEAD}\n\n{root.epilog}", *(_section(*one) for one in every_command(root))]
    return "\n\n".join(parts) + "\n"


def every_command(command: Any, words: tuple[str, ...] = ("handful",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words that call each command, and the command."""
    if not (inner := getattr(command, "commands", None)):
        yield words, command
        return
    for name, one in inner.items():
        yield from every_command(one, (*words, name))


def settings() -> str:
    """Every method with its settings, defaults and their meaning."""
    parts = [SETTINGS_HEAD, _table(("method", "what it does", "when to use it", "trains", "time to fit"), _overview())]
    return "\n\n".join([*parts, *map(_settings_of, sorted(METHODS))]) + "\n"


def python() -> str:
    """Every public name, for mkdocstrings to document."""
    headings: dict[str, list[str]] = {}
    for room, module, name in public_names():
        headings.setdefault(GROUPS[room], []).append(f"::: {module}.{name}")
    order = list(dict.fromkeys(GROUPS.values()))
    parts = [f"## {heading}\n\n" + "\n\n".join(headings[heading]) for heading in order if heading in headings]
    return "\n\n".join([PYTHON_HEAD, *parts]) + "\n"


def public_names() -> Iterator[tuple[str, str, str]]:
    """Room, module and name of everything in `handful/__init__.pyi`."""
    stub = Path(handful.__file__).with_suffix(".pyi")
    for line in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(line, ast.ImportFrom) and line.module:
            for alias in line.names:
                yield line.module.partition(".")[0], f"handful.{line.module}", alias.name


COMMANDS_HEAD = """# Commands

Every command prints this with `--help`."""
SETTINGS_HEAD = """# Methods and settings

A setting is given as `--set name=value`, repeated for more, or in a TOML file with `--config`. `handful list methods
NAME` prints the same. Times are those of four or five labelled cases with `handful-tiny` on two CPU cores."""
PYTHON_HEAD = """# Python API

Every name here is imported from `handful` itself: `handful.read_cohort`, `handful.Session`. Arrays are (i, j, k) voxels
in the order of the file; slices are (n, channels, rows, columns)."""


def _section(words: tuple[str, ...], command: Any) -> str:
    """Heading, usage, help text, and a table of arguments and options."""
    shown = [one for one in command.params if "--help" not in one.opts]
    required = [_usage(one) for one in shown if one.required or one.param_type_name == "argument"]
    usage = " ".join(["```\n" + " ".join(words), *required, "[options]\n```"])
    rows = [(", ".join(f"`{name}`" for name in _names(one)), _default(one), one.help or "") for one in shown]
    help_text = inspect.cleandoc(command.help or "")
    return "\n\n".join([f"## {' '.join(words)}", usage, help_text, _table(("", "default", "meaning"), rows)])


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.name.upper() if parameter.required else f"[{parameter.name.upper()}]"
    return f"{parameter.opts[0]} {parameter.opts[-1].lstrip('-').upper()}"


def _names(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _default(parameter: Any) -> str:
    default = getattr(parameter.default, "value", parameter.default)
    if parameter.required:
        return "required"
    return "" if isinstance(default, bool) or default in (None, "", [], ()) else f"`{default}`"


def _overview() -> Iterator[tuple[str, ...]]:
    for one in describe_methods():
        yield f"[`{one.name}`](#{one.name})", one.summary, one.when, "yes" if one.trains else "no", one.minutes


def _settings_of(name: str) -> str:
    method = describe_method(name)
    rows: dict[str, tuple[str, str, str]] = {}
    for one in method.settings:
        member = one.name.partition(".")[0].replace("_", "-")
        if member in METHODS:
            group = one.name.partition(".")[0]
            rows[group] = f"`{group}.…`", "", f"Any setting of [`{member}`](#{member})."
        else:
            rows[one.name] = f"`{one.name}`", f"`{shown(one.default)}`", one.meaning
    return f"## {name}\n\n{method.summary}\n\n" + _table(("setting", "default", "meaning"), rows.values())


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---"] * len(heads),
        *([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
