"""What a person chooses by name: cases of a cohort, the support among them, and the model that works on them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.catalog import open_backbone
from handful.checkpoint import RECORD, open_segmenter
from handful.data.cases import Case, Cohort
from handful.data.support import SupportSet
from handful.errors import InputError, SettingsError
from handful.methods.base import Segmenter

DEFAULT_BACKBONE = "handful-tiny"


def choose_cases(cohort: Cohort, names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, in their order, or all where no name is given; InputError for an unknown name."""
    if not names:
        return cohort.cases
    known = {case.name: case for case in cohort.cases}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3) or sorted(known)[:3]
            raise InputError(f"cohort {cohort.name!r} has no case {name!r}; did you mean {', '.join(near)}?")
    return tuple(known[name] for name in dict.fromkeys(names))


def choose_support(cohort: Cohort, names: Sequence[str] = (), shots: int | None = None, split: int = 0) -> SupportSet:
    """The named cases, or `shots` drawn ones (split number `split`), or all that are labelled."""
    if cohort.labels is None:
        raise InputError(f"cohort {cohort.name!r} has no labelled case; put label maps into its labels/ folder")
    if names and shots is not None:
        raise SettingsError("cases are either named or drawn; give names or a number of shots, not both")
    if names:
        cases = choose_cases(cohort, names)
    elif shots is not None:
        cases = tuple(cohort.split(shots, split)[0])
    else:
        cases = tuple(case for case in cohort.cases if case.reference is not None)
    return SupportSet(cases, cohort.labels)


def open_source(name: str, device: str = "auto", cache: Path | None = None) -> Segmenter | Backbone:
    """The fitted segmenter in the folder `name`, or the backbone of that name where no segmenter is there."""
    if (Path(name) / RECORD).is_file():
        return open_segmenter(Path(name), device, cache)
    return open_backbone(name, device, cache)


def choose_encoder(
    name: str | None, segmenter: Segmenter | None, device: str = "auto", cache: Path | None = None
) -> Backbone:
    """What slices are compared by: the backbone of that name, else that of the segmenter, else handful-tiny."""
    if name is None and segmenter is not None:
        return segmenter.backbone
    return open_backbone(name or DEFAULT_BACKBONE, device, cache)
