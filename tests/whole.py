"""Methods without the wrappers that are on by default, for tests that look inside."""

from __future__ import annotations

from collections.abc import Mapping

from handful.methods.base import Method
from handful.methods.catalog import build_method


def build_whole(name: str, settings: Mapping[str, object]) -> Method:
    """The method that `build_method` makes, on whole slices and with all pieces unless the settings differ."""
    return build_method(name, {"roi_margin": "none", "largest_piece": "none", **settings})
