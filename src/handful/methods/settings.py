"""Dataclasses of settings from what people type: text such as 'train.iterations=200', nested or with dotted keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from handful.errors import SettingsError, did_you_mean


def read_settings(kind: type[Any], settings: Mapping[str, object], where: str, further: tuple[str, ...] = ()) -> Any:
    """A dataclass of class `kind` with some of its settings changed.

    `where` names the class in errors; `further` are names of settings that are handled elsewhere.
    """
    changes = _nested(settings)
    _require_known(changes, kind, where, further)
    changes = _typed(changes, kind)
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(_merged(adapter.dump_python(kind(), mode="json"), changes))
    except ValidationError as error:
        wrong = [f"{'.'.join(str(p) for p in e['loc'])} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"invalid settings of {where}: {'; '.join(wrong)}") from None


def listed(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value


def _nested(settings: Mapping[str, object]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries; text with commas becomes a list, as in 'slicer.window=-100,300'."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        here, *path = reversed(key.split("."))
        inner = _nested(value) if isinstance(value, Mapping) else listed(value)
        branch: dict[str, Any] = {here: inner}
        for part in path:
            branch = {part: branch}
        nested = _merged(nested, branch)
    return nested


def _typed(changes: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The changes with text converted where pydantic does not: choices of numbers (dims=3), and 'none' for None."""
    hints = get_type_hints(kind)
    return {key: _typed_value(value, hints[key]) for key, value in changes.items()}


def _typed_value(value: Any, hint: Any) -> Any:
    if isinstance(value, Mapping):
        return _typed(value, hint) if dataclasses.is_dataclass(hint) else value
    choices = [choice for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for choice in get_args(kind)]
    if not isinstance(value, str) or value in choices:
        return value
    if get_origin(hint) is tuple and get_args(hint)[1:] == (Ellipsis,):  # one value of a list
        return [value]
    if value == "none" and type(None) in get_args(hint):
        return None
    return next((choice for choice in choices if str(choice) == value), value)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _require_known(changes: Mapping[str, Any], kind: type[Any], where: str, further: tuple[str, ...] = ()) -> None:
    """Raise SettingsError for a misspelt key, which pydantic would ignore."""
    allowed = get_type_hints(kind)
    for key, value in changes.items():
        if key not in allowed:
            names = [*allowed, *further]
            hint = did_you_mean(key, names)
            raise SettingsError(
                f"{where} has no setting {key!r} (value {value!r}); {hint}settings are {', '.join(names)}"
            )
        if isinstance(value, Mapping) and dataclasses.is_dataclass(allowed[key]):
            _require_known(value, allowed[key], f"{where}.{key}")
