"""Whom a long job over a cohort tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int, str], None]
"""Called with steps done, steps in all and a short note; at step 0 the note says what is to come."""


def silent(step: int, total: int, note: str) -> None:
    """Tells nobody."""
