"""Choice of cases, support sets and models by name, as the user types them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from handful.backbones.base import Backbone
from handful.checkpoint.model import open_segmenter
from handful.checkpoint.record import RECORD
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Labels
from handful.errors import InputError, LabelError, SettingsError, did_you_mean
from handful.evaluation.evaluate import Failure
from handful.jobs.progress import Report, silent
from handful.methods.base import Segmenter

DEFAULT_BACKBONE = "handful-tiny"


def choose_cases(cohort: Cohort, names: Sequence[str]) -> tuple[Case, ...]:
    """The cases with these names, in the order of the names; all cases if no name is given.

    Raises InputError for an unknown name.
    """
    if not names:
        return cohort.cases
    by_name = {case.name: case for case in cohort.cases}
    for name in names:
        if name not in by_name:
            near = get_close_matches(name, by_name, n=3) or sorted(by_name)[:3]
            raise InputError(f"cohort {cohort.name!r} has no case {name!r}; did you mean {', '.join(near)}?")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def choose_support(
    cohort: Cohort,
    names: Sequence[str] = (),
    shots: int | None = None,
    split: int = 0,
    labels: Sequence[str] = (),
    failures: list[Failure] | None = None,
) -> SupportSet:
    """The named cases, or `shots` randomly chosen ones (random split number `split`), or all labelled cases.

    Of all labelled cases, those that cannot be used are added to `failures`. Without this list, and for cases that are
    named or chosen at random, such a case raises its error.

    `labels` are the names or values of the labels to learn; all others count as background. Default: all labels.
    Raises LabelError for an unknown label, InputError if the cohort has no labels, SettingsError if both names and
    `shots` are given.
    """
    if cohort.labels is None:
        raise InputError(f"cohort {cohort.name!r} has no labelled case; put label maps into its labels/ folder")
    if names and shots is not None:
        raise SettingsError("both names of cases and a number of shots are given; give only one of them")
    if names:
        cases = choose_cases(cohort, names)
    elif shots is not None:
        cases = tuple(cohort.split(shots, split)[0])
    else:
        cases = tuple(case for case in cohort.cases if case.reference is not None)
    chosen = choose_labels(cohort.labels, labels)
    if failures is None or names or shots is not None:
        return SupportSet(cases, chosen)
    support, errors = SupportSet.of_readable(cases, chosen)
    failures += [Failure.of(case, errors[case.name]) for case in cases if case.name in errors]
    return support


def choose_labels(labels: Labels, wanted: Sequence[str]) -> Labels:
    """The labels with these names or values; all labels if none is given. Raises LabelError for an unknown one."""
    known = labels.as_dict()
    by_text = {str(value): value for value in known} | {name: value for value, name in known.items()}
    if unknown := [name for name in wanted if name not in by_text]:
        hint = did_you_mean(unknown[0], labels.names)
        raise LabelError(f"there is no label {unknown[0]!r}; {hint}the labels are {known}")
    chosen = {by_text[name] for name in wanted} or set(known)
    return Labels.of({value: name for value, name in known.items() if value in chosen})


def choose_unlabelled(
    cohort: Cohort,
    support: SupportSet,
    folder: str | None = None,
    failures: list[Failure] | None = None,
    report: Report = silent,
) -> UnlabelledScans:
    """Scans whose images are learned from: those of the cohort without labels, or all in `folder`; none for "none".

    A scan of the support is never among them. Those that cannot be read or lack a sequence of the support are added to
    `failures`; without this list, none is read here. Raises InputError if the folder holds no scans.
    """
    if folder == "none":
        return UnlabelledScans()
    if folder is None:
        cases = tuple(case for case in cohort.cases if case.reference is None)
    else:
        known = {file for case in support.cases for file in _files(case)}
        read = read_cohort(Path(folder), default_channels=support.sequences).cases
        cases = tuple(case for case in read if known.isdisjoint(_files(case)))
    if failures is None:
        return UnlabelledScans.of(cases)
    scans, errors = UnlabelledScans.of_readable(cases, report, support.sequences)
    failures += [Failure.of(case, errors[case.name]) for case in cases if case.name in errors]
    return scans


def _files(case: Case) -> set[Path]:
    return {file.resolve() for file in case.files}


def open_source(name: str, device: str = "auto", cache: Path | None = None) -> Segmenter | Backbone:
    """The fitted segmenter in the folder `name` if there is one, else the backbone of that name."""
    if (Path(name) / RECORD).is_file():
        return open_segmenter(Path(name), device, cache)
    return named_backbone(name, device, cache)


def choose_encoder(
    name: str | None, segmenter: Segmenter | None, device: str = "auto", cache: Path | None = None
) -> Backbone:
    """The backbone of that name; without a name that of the segmenter; without a segmenter handful-tiny."""
    if name is None and segmenter is not None:
        return segmenter.backbone
    return named_backbone(name or DEFAULT_BACKBONE, device, cache)


def named_backbone(name: str, device: str = "auto", cache: Path | None = None) -> Backbone:
    """The backbone of that name, on a device and with its embeddings kept in `cache`."""
    from handful.backbones.catalog import open_backbone  # seconds; wrong paths are reported before

    return open_backbone(name, device, cache)
