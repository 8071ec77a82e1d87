"""Descriptions of methods and their settings, read from the docstrings of their classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from handful.methods.catalog import METHODS, WRAPPERS, default_settings, require_method


@dataclass(frozen=True)
class SettingDescription:
    """One setting of a method, in the form of `--set name=value`."""

    name: str
    """With dots if it belongs to a group: train.iterations."""
    default: Any
    meaning: str
    """The first paragraph of its documentation, on one line."""


@dataclass(frozen=True)
class MethodDescription:
    """One method of the catalogue."""

    name: str
    summary: str
    when: str
    trains: bool
    """Whether weights are learned by gradient steps."""
    minutes: str
    """Measured time to fit four or five labelled cases with handful-tiny on two CPU cores."""
    settings: tuple[SettingDescription, ...]


def describe_method(name: str) -> MethodDescription:
    """The method of that name with its settings. Raises SettingsError for an unknown name."""
    kind = require_method(name)
    meanings = _meanings(kind)
    defaults = default_settings(name)
    settings = [
        SettingDescription(key, defaults[key], meanings.get(key, "")) for key in defaults if key not in WRAPPERS
    ]
    shared = [
        SettingDescription(key, defaults.get(key), _one_line(inspect.getdoc(wrapper)))
        for key, wrapper in WRAPPERS.items()
    ]
    summary = (inspect.getdoc(kind) or "").partition("\n")[0]
    trains = any(setting.name.endswith("train.iterations") for setting in settings)
    return MethodDescription(name, summary, kind.when, trains, kind.minutes, (*settings, *shared))


def describe_methods() -> list[MethodDescription]:
    """All methods, in the order of their names."""
    return [describe_method(name) for name in sorted(METHODS)]


def _meanings(kind: type[Any], prefix: str = "") -> dict[str, str]:
    """The documentation of each field of a dataclass of settings, including those of nested dataclasses."""
    documented, hints = _attribute_docstrings(kind), get_type_hints(kind)
    meanings: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            meanings |= _meanings(hints[field.name], f"{prefix}{field.name}.")
        meanings[prefix + field.name] = documented.get(field.name, "")
    return meanings


def _attribute_docstrings(kind: type[Any]) -> dict[str, str]:
    """Of the fields of a dataclass, those that it inherits included."""
    found: dict[str, str] = {}
    for own in reversed(kind.__mro__):
        if dataclasses.is_dataclass(own):
            found |= _own_docstrings(own)
    return found


def _own_docstrings(kind: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: _one_line(text.value.value)
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _one_line(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())
