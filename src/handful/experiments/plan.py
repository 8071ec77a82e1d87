"""Plans of experiments: data sets, configurations, numbers of shots and splits, read from a TOML file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, GetPydanticSchema, TypeAdapter, ValidationError

from handful.data.cases import Case, Cohort, LeftOut
from handful.data.files import read_cohort
from handful.errors import HandfulError, InputError, SettingsError, did_you_mean
from handful.evaluation.results import MEASURES
from handful.jobs.files import text_of
from handful.jobs.plain_text import counted
from handful.methods.base import Method
from handful.methods.catalog import METHODS, build_method, method_settings
from handful.methods.promptable import PromptKind

COMPARED = ("nearest-slice", "fate", "few-shot-prompts", "auto-sam-unet", "unet", "ensemble")
"""Methods that `compare_plan` uses by default; a fit takes up to a quarter of an hour."""
SHOTS = (1, 2, 4, 8, 16)
CLICKS = re.compile(r"clicks-([1-9]\d?)")
BY_SLICE = ("boxes", "everything")
"""Simulated annotators that need the embeddings of a slice."""
_FORBID = ConfigDict(extra="forbid")
_AS_PATH = GetPydanticSchema(lambda _, handler: handler(Path))
"""In a plan, a path: an error then names the entry, not each kind of the union."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A folder of labelled scans."""

    __pydantic_config__ = _FORBID

    folder: Annotated[str | Path, _AS_PATH]
    cases: int | None = None
    """Maximum number of test cases per split; None: as in the plan."""
    shots: tuple[int, ...] | None = None
    """Numbers of labelled cases; None: as in the plan."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A method with its settings and, for methods that need prompts, a simulated annotator."""

    __pydantic_config__ = _FORBID

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As in `build_method`."""
    unlabelled: Literal["others", "all", "none"] = "others"
    """Images without labels for methods that use them: "others" are those of patients who are not scored; "all" adds
    the scored ones, as where the scans to be segmented are at hand."""
    backbone: str | None = None
    """None: as in the plan."""
    annotator: str | None = None
    """A simulated annotator whose prompts come from the reference; None for automatic segmentation.

    'box', 'points-1', 'points-3' or 'points-5' give one prompt per label and slice, for example for zero-shot.
    'boxes' gives one box per connected piece of a label. 'everything' takes the object that is most like the label
    from all objects that a grid of points finds. 'clicks-3' (or any other number) corrects errors by clicks, for
    interactive and zero-shot.
    """
    jitter: float = 0.05
    """Maximum error of each side of an annotator's box, as a fraction of the box."""
    scribbles: bool = False
    """Learn from simulated scribbles, made from the references of the labelled cases, in place of whole masks."""
    shots: tuple[int, ...] | None = None
    """Those of the plan's numbers of labelled cases that this configuration is fitted on; None: all."""

    def __post_init__(self) -> None:
        kinds = (*get_args(PromptKind), *BY_SLICE)
        if self.annotator is not None and self.annotator not in kinds and not CLICKS.fullmatch(self.annotator):
            raise SettingsError(
                f"there is no annotator {self.annotator!r}; annotators are {', '.join(kinds)} and clicks-3 (any number)"
            )
        if not 0 <= self.jitter < 1:
            raise SettingsError(f"jitter must be a fraction from 0 to below 1, got {self.jitter}")
        self.build(0)

    def build(self, split: int) -> tuple[Method, int | None]:
        """The method and its random seed.

        The seed is the number of the split unless the settings name another; None if the method uses no random numbers.
        """
        as_prompted = {"roi_margin": "none", "largest_piece": "none"} if self.annotator else {}
        settings = {**as_prompted, **self.settings}
        method = build_method(self.method, settings)
        all_settings = method_settings(method)
        key = (
            "train.seed" if "seed" in (all_settings.get("train") or {}) else "seed" if "seed" in all_settings else None
        )
        if key is None:
            return method, None
        seed = all_settings["train"]["seed"] if key == "train.seed" else all_settings["seed"]
        default = method_settings(build_method(self.method, as_prompted))
        if seed == (default["train"]["seed"] if key == "train.seed" else default["seed"]):
            seed = split
        return build_method(self.method, {**settings, key: seed}), int(seed)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of an experiment: one fit for each data set × configuration × number of shots × split."""

    __pydantic_config__ = _FORBID

    name: str
    data: Mapping[str, DataSet]
    configurations: Mapping[str, Configuration]
    shots: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of labelled cases, each case from another patient."""
    splits: tuple[int, ...] = (0, 1, 2)
    """Numbers of the random splits. In one split, more shots contain the cases of fewer shots."""
    backbone: str = "handful-tiny"
    cases: int | None = 12
    """Maximum number of test cases per split, chosen at random and mostly the same for every number of shots."""
    measures: tuple[str, ...] = ("dice", "hd95")
    """Measures in the report, which ranks configurations by the first one. The table always has all measures."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm, or in pixels for pictures."""
    pictures: int = 2
    """Number of pictures of the worst cases, for each fit with the largest number of shots."""

    def __post_init__(self) -> None:
        for entry, values in (
            ("data", self.data),
            ("configurations", self.configurations),
            ("shots", self.shots),
            ("splits", self.splits),
        ):
            if not values:
                raise SettingsError(f"plan {self.name!r} has no {entry}; name at least one")
        cases = [n for n in (self.cases, *[data_set.cases for data_set in self.data.values()]) if n is not None]
        for entry, numbers, least in (("shots", self.all_shots, 1), ("splits", self.splits, 0), ("cases", cases, 1)):
            if numbers and min(numbers) < least:
                raise SettingsError(f"plan {self.name!r}: {entry} must be at least {least}, got {min(numbers)}")
        for name, configuration in self.configurations.items():
            own = configuration.shots
            if own is not None and (not own or not {*own} <= {*self.all_shots}):
                planned = ", ".join(map(str, self.all_shots))
                raise SettingsError(f"configuration {name!r}: shots {[*own]} must be some of the plan's, {planned}")
        if unknown := [name for name in self.measures if name not in MEASURES] or not self.measures:
            raise SettingsError(f"plan {self.name!r}: measures {unknown}; choose from {', '.join(MEASURES)}")
        if not 0 <= self.tolerance < math.inf or self.pictures < 0:
            raise SettingsError(
                f"plan {self.name!r}: tolerance and pictures must be numbers from 0 on, got {self.tolerance} and "
                f"{self.pictures}"
            )

    @property
    def all_shots(self) -> list[int]:
        """Numbers of labelled cases, those of single data sets included."""
        return sorted({*self.shots, *[n for data_set in self.data.values() for n in data_set.shots or ()]})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fit of a plan, and the number of cases it is tested on."""

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
        """Identifies the fit: equal for trials that differ only in their name or their annotator."""
        method, _ = self.configuration.build(self.split)
        parts = (
            str(self.folder),
            self.shots,
            self.split,
            self.backbone,
            self.configuration.method,
            method_settings(method),
            (self.configuration.unlabelled, self.most_cases) if method.uses_unlabelled else None,
            self.configuration.scribbles,
        )
        return json.dumps(parts, sort_keys=True)

    def divide(self, cohort: Cohort) -> tuple[list[Case], list[Case]]:
        """The labelled cases to fit on, and the test cases."""
        support, _ = cohort.split(self.shots, self.split)
        return support, cohort.test_cases(self.shots, self.split, self.most_cases)

    def pool(self, cohort: Cohort) -> list[Case]:
        """Cases whose images are used without their labels; none if the method does not use any."""
        method, _ = self.configuration.build(self.split)
        if self.configuration.unlabelled == "none" or not method.uses_unlabelled:
            return []
        support, scored = self.divide(cohort)
        names = {case.name for case in support}
        apart = {case.patient_key for case in scored} if self.configuration.unlabelled == "others" else set()
        return [case for case in cohort.cases if case.name not in names and case.patient_key not in apart]


def read_plan(path: Path, data: Path | None = None) -> Plan:
    """The plan in a TOML file. Folders of data sets are relative to `data`, or to the file's own folder.

    Raises SettingsError with each wrong entry, its value and what is allowed.
    """
    try:
        content = tomllib.loads(text_of(path))
    except ValueError as error:
        raise SettingsError(f"{path}: not valid TOML ({error})") from error
    plan = _validated({"name": path.stem, **content}, path)
    home = data or path.parent
    data_sets = {
        name: dataclasses.replace(data_set, folder=home / data_set.folder) for name, data_set in plan.data.items()
    }
    return dataclasses.replace(plan, data=data_sets)


def compare_plan(
    folder: Path,
    methods: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    splits: int = 3,
    cases: int | None = 10,
    backbone: str = "handful-tiny",
) -> Plan:
    """A plan that compares methods with their default settings on one labelled cohort.

    `methods` defaults to COMPARED; 'all' stands for all methods. `shots` defaults to those of 1, 2, 4, 8 and 16 that
    are at most half of the labelled patients. Raises InputError for fewer than two labelled patients.
    """
    cohort = read_cohort(folder)
    patients = _patients_with_labels(cohort) if cohort.labels else 0
    if patients < 2:
        raise InputError(
            f"{folder} has {counted(patients, 'labelled patient')}; a comparison needs at least two, better ten or more"
        )
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


def files_left_out(plan: Plan) -> tuple[LeftOut, ...]:
    """The files in the folders of the data sets that are not read."""
    return tuple(one for data_set in plan.data.values() for one in read_cohort(data_set.folder).left_out)


def trials(plan: Plan) -> tuple[list[Trial], list[str]]:
    """The trials of a plan, split by split and few shots before many, and the reasons why some are left out.

    A number of shots is left out for data sets that have no more labelled patients than that, since none would be left
    to test on.
    """
    patients = {name: _patients_with_labels(_labelled(data_set.folder)) for name, data_set in plan.data.items()}
    possible: dict[str, list[int]] = {}
    left_out: list[str] = []
    for name, data_set in plan.data.items():
        planned = sorted(set(data_set.shots or plan.shots))
        possible[name] = [n for n in planned if n < patients[name]]
        left_out += [
            f"{name} with {n} labelled: only {counted(patients[name], 'labelled patient')}, so none is left to score; "
            f"take at most {patients[name] - 1}"
            for n in planned
            if n >= patients[name]
        ]
    order = sorted({n for shots in possible.values() for n in shots})
    planned_trials = [
        _trial(plan, name, configuration, shots, split, pictures=plan.pictures if shots == max(possible[name]) else 0)
        for split in dict.fromkeys(plan.splits)
        for shots in order
        for name in plan.data
        if shots in possible[name]
        for configuration, settings in plan.configurations.items()
        if settings.shots is None or shots in settings.shots
    ]
    return planned_trials, left_out


def _trial(plan: Plan, data_set: str, configuration: str, shots: int, split: int, pictures: int) -> Trial:
    return Trial(
        data_set=data_set,
        folder=Path(plan.data[data_set].folder),
        configuration_name=configuration,
        configuration=plan.configurations[configuration],
        shots=shots,
        split=split,
        backbone=plan.configurations[configuration].backbone or plan.backbone,
        most_cases=plan.data[data_set].cases or plan.cases,
        tolerance=plan.tolerance,
        pictures=pictures,
    )


def _labelled(folder: str | Path) -> Cohort:
    cohort = read_cohort(folder)
    if cohort.labels is None:
        raise InputError(f"{folder} has no labelled case; put label maps into its labels/ folder")
    return cohort


def _patients_with_labels(cohort: Cohort) -> int:
    return len({case.patient_key for case in cohort.cases if case.reference is not None})


def _validated(content: Mapping[str, Any], path: Path) -> Plan:
    try:
        return TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        wrong = "; ".join(_message(detail) for detail in error.errors())
        raise SettingsError(f"{path}: {wrong}") from None
    except HandfulError as error:
        raise SettingsError(f"{path}: {error}") from error


def _message(error: Any) -> str:
    *above, key = [str(part) for part in error["loc"]] or ["?"]
    where = ".".join([*above, key])
    if error["type"] == "unexpected_keyword_argument":
        kind = DataSet if above[:1] == ["data"] else Configuration if above[:1] == ["configurations"] else Plan
        names = [field.name for field in dataclasses.fields(kind)]
        return f"there is no entry {where!r}; {did_you_mean(key, names)}entries are {', '.join(names)}"
    if error["type"].startswith("missing"):
        return f"{where!r} is missing"
    return f"{where} = {error['input']!r}: {error['msg']}"
