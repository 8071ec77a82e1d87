"""What a person chooses by name: cases of a cohort, and the support among them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from handful.data.cases import Case, Cohort, SupportSet
from handful.errors import InputError, SettingsError


def choose_cases(cohort: Cohort, names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, in the order asked for; InputError for one that is not there."""
    known = {case.name: case for case in cohort.cases}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3) or sorted(known)[:3]
            raise InputError(f"cohort {cohort.name!r} has no case {name!r}; did you mean {', '.join(near)}?")
    return tuple(known[name] for name in dict.fromkeys(names))


def choose_support(cohort: Cohort, names: Sequence[str] = (), shots: int | None = None, draw: int = 0) -> SupportSet:
    """The named cases, or `shots` drawn ones (draw number `draw`), or all that are labelled."""
    if cohort.labels is None:
        raise InputError(f"cohort {cohort.name!r} has no labelled case; put label maps into its labels/ folder")
    if names and shots is not None:
        raise SettingsError("cases are either named or drawn; give names or a number of shots, not both")
    if names:
        cases = choose_cases(cohort, names)
    elif shots is not None:
        cases = tuple(cohort.draw(shots, draw)[0])
    else:
        cases = tuple(case for case in cohort.cases if case.reference is not None)
    return SupportSet(cases, cohort.labels)
