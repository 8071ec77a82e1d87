"""What an experiment is to find out: data sets, configurations, shots and splits, as a TOML file says them."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort
from handful.errors import HandfulError, InputError, SettingsError, did_you_mean
from handful.evaluation.results import MEASURES
from handful.methods.base import Method
from handful.methods.catalog import METHODS, build_method, method_settings
from handful.methods.promptable import PromptKind

COMPARED = ("nearest-slice", "fate", "few-shot-prompts", "auto-sam", "unet", "ensemble")
"""Methods that are compared on a folder of one's own unless others are named; a fit takes up to a quarter of an
hour."""
SHOTS = (1, 2, 4, 8, 16)
CLICKS = re.compile(r"clicks-([1-9]\d?)")
FOLDER = "{folder}"
"""Stands for the data set's folder in a setting, as in `unlabelled = "{folder}"`."""
_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A folder of labelled scans."""

    __pydantic_config__ = _FORBID

    folder: Path
    cases: int | None = None
    """Unseen cases a split, at most, where it is not the plan's number."""
    shots: tuple[int, ...] | None = None
    """Where they are not the plan's."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A way to segment: a method with its settings, and who asks it where it must be asked."""

    __pydantic_config__ = _FORBID

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As `build_method` takes them; '{folder}' stands for the data set's folder."""
    backbone: str | None = None
    """Where it is not the plan's."""
    annotator: str | None = None
    """A simulated annotator who looks at the truth: 'box', 'points-1', 'points-3' or 'points-5' for methods that are
    asked once, such as zero-shot; 'clicks-3' (any number) for interactive. None is automatic."""
    jitter: float = 0.05
    """Each side of an annotator's box is off by up to this share of it."""

    def __post_init__(self) -> None:
        kinds = get_args(PromptKind)
        if self.annotator is not None and self.annotator not in kinds and not CLICKS.fullmatch(self.annotator):
            raise SettingsError(
                f"there is no annotator {self.annotator!r}; annotators are {', '.join(kinds)} and clicks-3 (any number)"
            )
        self.build(0)

    def build(self, split: int, folder: Path | None = None) -> tuple[Method, int | None]:
        """The method, and the seed it splits by: the split's number unless the settings name one; None without any.

        Without a folder the settings keep '{folder}', as they are written down.
        """
        settings = {k: str(folder) if v == FOLDER and folder else v for k, v in self.settings.items()}
        method = build_method(self.method, settings)
        known = method_settings(method)
        key = "train.seed" if "seed" in (known.get("train") or {}) else "seed" if "seed" in known else None
        if key is None:
            return method, None
        stated = known["train"]["seed"] if key == "train.seed" else known["seed"]
        default = method_settings(build_method(self.method, {}))
        if stated == (default["train"]["seed"] if key == "train.seed" else default["seed"]):
            stated = split
        return build_method(self.method, {**settings, key: stated}), int(stated)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every data set × configuration × number of shots × split is one fit."""

    __pydantic_config__ = _FORBID

    name: str
    data: Mapping[str, DataSet]
    configurations: Mapping[str, Configuration]
    shots: tuple[int, ...] = (1, 2, 4, 8)
    """Labelled cases, each of another patient."""
    splits: tuple[int, ...] = (0, 1, 2)
    """Numbers of the random splits of the labelled cases; the larger support of a split holds the smaller one."""
    backbone: str = "handful-tiny"
    cases: int | None = 12
    """Unseen cases a split, at most: drawn too, and mostly the same for every number of shots."""
    measures: tuple[str, ...] = ("dice", "hd95")
    """What the report shows; the first one decides. All of them are in the table."""
    tolerance: float = 1.0
    """Of the surface Dice: mm, or pixels for pictures of unknown pixel size."""
    pictures: int = 2
    """Worst cases drawn of each fit on the most labelled cases."""

    def __post_init__(self) -> None:
        for what, there in (
            ("data", self.data),
            ("configurations", self.configurations),
            ("shots", self.shots),
            ("splits", self.splits),
        ):
            if not there:
                raise SettingsError(f"plan {self.name!r} has no {what}; name at least one")
        shots = [*self.shots, *[n for one in self.data.values() for n in one.shots or ()]]
        cases = [n for n in (self.cases, *[one.cases for one in self.data.values()]) if n is not None]
        for what, values, least in (("shots", shots, 1), ("splits", self.splits, 0), ("cases", cases, 1)):
            if values and min(values) < least:
                raise SettingsError(f"plan {self.name!r}: {what} must be at least {least}, got {min(values)}")
        if unknown := [one for one in self.measures if one not in MEASURES] or not self.measures:
            raise SettingsError(f"plan {self.name!r}: measures {unknown}; choose of {', '.join(MEASURES)}")
        if self.tolerance < 0 or self.pictures < 0:
            raise SettingsError(f"plan {self.name!r}: tolerance and pictures must not be negative")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fit, and the cases it is tried on."""

    data_set: str
    folder: Path
    configuration_name: str
    configuration: Configuration
    shots: int
    split: int
    backbone: str
    most_cases: int | None
    tolerance: float
    pictures: int

    @cached_property
    def name(self) -> str:
        return f"{self.data_set}, {self.configuration_name}, {self.shots} labelled, split {self.split}"

    @cached_property
    def fit(self) -> str:
        """What is fitted on what: the same of trials that differ in name or in who asks."""
        method, _ = self.configuration.build(self.split, self.folder)
        decides = (
            str(self.folder),
            self.shots,
            self.split,
            self.backbone,
            self.configuration.method,
            method_settings(method),
        )
        return json.dumps(decides, sort_keys=True)

    def divide(self, cohort: Cohort) -> tuple[list[Case], list[Case]]:
        """The labelled cases to learn from, and unseen ones with references to be scored on."""
        drawn, rest = cohort.split(self.shots, self.split)
        unseen = [case for case in rest if case.reference is not None]
        if self.most_cases is None or len(unseen) <= self.most_cases:
            return drawn, unseen
        # The far end of the order in which patients are drawn to be labelled: the last that more shots would take away.
        order = {_patient(case): place for place, case in enumerate(_drawing_order(cohort, self.split))}
        unseen.sort(key=lambda case: (-order[_patient(case)], case.name))
        return drawn, sorted(unseen[: self.most_cases], key=lambda case: case.name)


def read_plan(path: Path, data: Path | None = None) -> Plan:
    """The plan in a TOML file; folders of data sets are relative to `data`, or to the file's own folder.

    Raises SettingsError that names each wrong entry, its value and what is allowed.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:
        raise SettingsError(f"{path}: no valid TOML ({error})") from error
    plan = _validated({"name": path.stem, **content}, path)
    home = data or path.parent
    return dataclasses.replace(
        plan, data={name: dataclasses.replace(one, folder=home / one.folder) for name, one in plan.data.items()}
    )


def compare_plan(
    folder: Path,
    methods: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    splits: int = 3,
    cases: int | None = 10,
    backbone: str = "handful-tiny",
) -> Plan:
    """Methods as they come on one's own labelled folder.

    Without `methods` those in COMPARED, with 'all' among them every one there is. Without `shots` 1, 2, 4, 8 and 16, as
    far as half of the patients stay unseen.
    """
    cohort = read_cohort(folder)
    patients = len(_drawing_order(cohort, 0)) if cohort.labels else 0
    if patients < 2:
        raise InputError(f"{folder} has {patients} labelled patients; to compare methods takes two, better ten or more")
    chosen = tuple(sorted(METHODS)) if "all" in methods else tuple(dict.fromkeys(methods or COMPARED))
    return Plan(
        name=f"Methods on {cohort.name}",
        data={cohort.name: DataSet(folder=folder)},
        configurations={name: Configuration(method=name) for name in chosen},
        shots=shots or tuple(n for n in SHOTS if n <= patients // 2),
        splits=tuple(range(splits)),
        cases=cases,
        backbone=backbone,
    )


def trials(plan: Plan) -> tuple[list[Trial], list[str]]:
    """The trials of a plan, whole splits first and few shots before many; and why some are left out.

    Left out are numbers of shots for which a data set has too few labelled patients, so that none would stay unseen.
    """
    patients = {name: len(_drawing_order(_labelled(one.folder), 0)) for name, one in plan.data.items()}
    possible: dict[str, list[int]] = {}
    left_out: list[str] = []
    for name, one in plan.data.items():
        wanted = sorted(set(one.shots or plan.shots))
        possible[name] = [n for n in wanted if n < patients[name]]
        left_out += [
            f"{name} with {n} labelled: {patients[name]} patients have labels" for n in wanted if n >= patients[name]
        ]
    order = sorted({n for shots in possible.values() for n in shots})
    made = [
        _trial(plan, name, configuration, shots, split, pictures=plan.pictures if shots == max(possible[name]) else 0)
        for split in dict.fromkeys(plan.splits)
        for shots in order
        for name in plan.data
        if shots in possible[name]
        for configuration in plan.configurations
    ]
    return made, left_out


def _trial(plan: Plan, data_set: str, configuration: str, shots: int, split: int, pictures: int) -> Trial:
    one = plan.data[data_set]
    return Trial(
        data_set=data_set,
        folder=one.folder,
        configuration_name=configuration,
        configuration=plan.configurations[configuration],
        shots=shots,
        split=split,
        backbone=plan.configurations[configuration].backbone or plan.backbone,
        most_cases=one.cases or plan.cases,
        tolerance=plan.tolerance,
        pictures=pictures,
    )


def _labelled(folder: Path) -> Cohort:
    cohort = read_cohort(folder)
    if cohort.labels is None:
        raise InputError(f"{folder} has no labelled case; put label maps into its labels/ folder")
    return cohort


def _drawing_order(cohort: Cohort, split: int) -> list[Case]:
    """The first labelled case of each patient, in the order in which a split takes them."""
    patients = {_patient(case) for case in cohort.cases if case.reference is not None}
    return cohort.split(len(patients), split)[0] if patients else []


def _patient(case: Case) -> tuple[str, bool]:
    return (case.name, False) if case.patient is None else (case.patient, True)


def _validated(content: Mapping[str, Any], path: Path) -> Plan:
    try:
        return TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        wrong = "; ".join(_said(one) for one in error.errors())
        raise SettingsError(f"{path}: {wrong}") from None
    except HandfulError as error:
        raise SettingsError(f"{path}: {error}") from error


def _said(error: Any) -> str:
    *above, key = [str(part) for part in error["loc"]] or ["?"]
    where = ".".join([*above, key])
    if error["type"] == "unexpected_keyword_argument":
        kind = DataSet if above[:1] == ["data"] else Configuration if above[:1] == ["configurations"] else Plan
        known = [one.name for one in dataclasses.fields(kind)]
        return f"there is no entry {where!r}; {did_you_mean(key, known)}entries are {', '.join(known)}"
    if error["type"].startswith("missing"):
        return f"{where!r} is missing"
    return f"{where} = {error['input']!r}: {error['msg']}"
