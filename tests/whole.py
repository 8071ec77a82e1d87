"""Methods on whole slices, for tests that look inside; by default a method decides by itself whether to crop."""

from __future__ import annotations

from collections.abc import Mapping

from handful.methods.base import Method
from handful.methods.catalog import build_method


def build_whole(name: str, settings: Mapping[str, object]) -> Method:
    """The method that `build_method` makes, without the crop to the labelled region unless the settings ask for it."""
    return build_method(name, {"roi_margin": "none", **settings})
