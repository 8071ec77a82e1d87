"""Configurations of a study as text: METHOD, or METHOD:KEY=VALUE,… with settings, such as
"fate:window=0,roi_margin=1.4"."""

from __future__ import annotations

from collections.abc import Mapping

from handful.errors import SettingsError
from handful.methods.base import Method
from handful.methods.catalog import build_method, method_settings


def parse(configuration: str) -> tuple[str, dict[str, object]]:
    """Method and settings; commas between values of a list belong to the list, as in "planes=axial,coronal"."""
    name, _, text = configuration.partition(":")
    settings: dict[str, object] = {}
    last = ""
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            last, settings[key] = key, value
        elif last:
            settings[last] = f"{settings[last]},{part}"
        else:
            raise SettingsError(f"configuration {configuration!r}: {part!r} is no setting; write KEY=VALUE")
    return name, settings


def build(name: str, settings: Mapping[str, object], seed: int) -> Method:
    """The method with these settings, on whole slices, with all pieces and by `seed` unless the settings differ."""
    given = {"roi_margin": "none", "largest_piece": "none", **settings}
    trains = "train" in method_settings(build_method(name, {}))
    return build_method(name, {"train.seed": seed, **given} if trains else given)
