"""Methods by the names that people type, with settings as they type them, such as 'train.iterations=200'."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from handful.errors import SettingsError
from handful.methods.base import Method
from handful.methods.few_shot_prompts import FewShotPrompts
from handful.methods.nearest_slice import NearestSlice

METHODS: dict[str, type[Method]] = {
    "few-shot-prompts": FewShotPrompts,
    "nearest-slice": NearestSlice,
}


def build_method(name: str, settings: Mapping[str, object]) -> Method:
    """The method of that name; settings are values or their text, nested or with dotted keys ('train.iterations').

    What is not set keeps the method's own default. SettingsError names the field, the value and what is allowed.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"there is no method {name!r}; {hint}methods are {', '.join(sorted(METHODS))}")
    kind = METHODS[name]
    changes = _nested(settings)
    _require_known(changes, kind(), name)
    try:
        method: Method = _adapter(kind).validate_python(_merged(method_settings(kind()), changes))
    except ValidationError as error:
        raise SettingsError(_explained(error, name)) from None
    return method


def method_settings(method: Method) -> dict[str, Any]:
    """All settings of a method as JSON has them; `build_method` takes them back."""
    settings: dict[str, Any] = _adapter(type(method)).dump_python(method, mode="json")
    return settings


def _adapter(kind: type[Method]) -> TypeAdapter[Any]:
    # without extra="forbid" pydantic drops a misspelt key of a dataclass in silence
    return TypeAdapter(kind, config=ConfigDict(extra="forbid"))


def _nested(settings: Mapping[str, object]) -> dict[str, Any]:
    """Dotted keys opened into dicts; text with commas becomes a list, as in 'slicer.window=-100,300'."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        here, *path = reversed(key.split("."))
        inner = _nested(value) if isinstance(value, Mapping) else _listed(value)
        branch: dict[str, Any] = {here: inner}
        for part in path:
            branch = {part: branch}
        nested = _merged(nested, branch)
    return nested


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _require_known(changes: Mapping[str, Any], settings: Any, where: str) -> None:
    allowed = [field.name for field in dataclasses.fields(settings)]
    for key, value in changes.items():
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(
                f"{where} has no setting {key!r} (value {value!r}); {hint}settings are {', '.join(allowed)}"
            )
        inner = getattr(settings, key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _require_known(value, inner, f"{where}.{key}")


def _explained(error: ValidationError, name: str) -> str:
    wrong = [f"{'.'.join(str(p) for p in e['loc'])} = {e['input']!r}: {e['msg']}" for e in error.errors()]
    return f"settings of {name} that cannot be used: " + "; ".join(wrong)
