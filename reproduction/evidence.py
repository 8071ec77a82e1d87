"""All that was measured, in one form: the score of each unseen case, by data set, configuration, labelled cases and
split.

What is compared comes from one pool: a table that an experiment made, or the lines of the studies with one set of
weights. So both sides of a difference saw the same labelled cases and are scored on the same unseen ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from handful.evaluation.evaluate import Estimate
from handful.evaluation.results import Result, read_results
from handful.evaluation.statistics import over_splits

NAMES = {
    "nearest-slice": "nearest slice",
    "zero-shot": "zero-shot, box",
    "fate": "FATE",
    "fate:roi_margin=1.4": "FATE, ROI crop",
    "few-shot-prompts": "few-shot prompts",
    "annotator-box": "annotator: box",
    "annotator-points-1": "annotator: 1 point",
    "annotator-points-3": "annotator: 3 points",
    "annotator-points-5": "annotator: 5 points",
}
"""Configurations of the studies, as the plans name them."""
NARROW = "U-Net, 8 channels"
"""A U-Net of half the default width, trained for 700 steps instead of 1,000."""
WIDTHS = {"U-Net": NARROW, "U-Net, 16 channels": "U-Net", "U-Net + SimCLR": "U-Net + SimCLR, 8 channels"}
"""Configurations of the plans in NARROW_PLANS, so that "U-Net" has the package's width everywhere."""
NARROW_PLANS = ("acdc", "sets")
STUDY_PLANS = ("fate",)
"""Plans that measure again, label by label, what lines of a study hold; their tables come before these lines."""
TIMED_PLANS = ("cohort",)
"""Plans whose fits take a given time and may learn from unlabelled scans; compared with nothing but themselves."""
OWN_TABLES = ("planes", "scribbles", "volume_adapter")
"""Plans with a table of their own, compared with nothing but themselves."""
CURVE_PLANS = ("how_many",)
"""Plans of the fits of TIMED_PLANS with other numbers of labelled cases; compared with nothing but themselves."""
PROMPT_PLANS = ("zero_shot",)
"""Plans of prompts from the reference, compared with nothing but themselves."""
FIRST = "first by name"
"""How the unseen cases of lines were chosen that do not say it."""
OF_UNSEEN_CASES = (
    "boxes",
    "few_shot_prompts",
    "foundation",
    "interactive",
    "label_efficiency",
    "quality",
    "retrieval",
    "suggest",
    "windows",
)
"""Result files of studies that choose unseen cases."""
MEASURES = ("dice", "iou", "hd95")
SECONDS = "fit_s"
"""Of the fit, told with each of its cases."""
COLUMNS = ("data_set", "configuration", "shots", "split", "case", "status", *MEASURES, SECONDS)

Line = dict[str, Any]
Scores = dict[tuple[int, str], float]
"""By split and case."""
Point = tuple[str, str, int]
"""Data set, configuration, labelled cases."""


@dataclass(frozen=True)
class Pool:
    """Scores that may be compared with each other."""

    name: str
    scores: dict[Point, dict[str, Scores]] = field(default_factory=dict)

    def add(self, point: Point, measure: str, split: int, case: str, value: float) -> None:
        self.scores.setdefault(point, {}).setdefault(measure, {})[split, case] = value


@dataclass(frozen=True)
class Difference:
    """First minus second on the splits and cases that both have."""

    data_set: str
    first: str
    second: str
    shots: tuple[int, int]
    """Labelled cases of the first and of the second."""
    measure: str
    means: tuple[float, float]
    estimate: Estimate
    """Of the difference: mean over splits of the mean over cases, with the interval of `over_splits`."""
    cases: int
    splits: int
    pool: str


@dataclass(frozen=True)
class Evidence:
    """What the result files hold; those that are not there are empty."""

    plans: tuple[Pool, ...] = ()
    """Tables of experiments."""
    timed: tuple[Pool, ...] = ()
    """Tables of TIMED_PLANS."""
    decided: tuple[Result, ...] = ()
    """A row of each of their fits that decided something by itself."""
    own: Mapping[str, Pool] = field(default_factory=dict)
    """Tables of OWN_TABLES, by name."""
    curves: tuple[Pool, ...] = ()
    """Tables of CURVE_PLANS."""
    prompted: tuple[Result, ...] = ()
    """Rows of PROMPT_PLANS."""
    studies: tuple[Pool, ...] = ()
    """Tables of STUDY_PLANS, then lines of studies, those of the newest weights first."""
    clicks: tuple[Pool, ...] = ()
    """Readers of interactive tuning on the set that was fitted on."""
    elsewhere: tuple[Pool, ...] = ()
    """And on another one."""
    pruning: tuple[Pool, ...] = ()
    lines: Mapping[str, tuple[Line, ...]] = field(default_factory=dict)
    """Raw lines, by the file's name without ending."""

    @property
    def scans(self) -> tuple[Pool, ...]:
        """Where configurations on unseen scans are looked for, in this order."""
        return self.plans + self.studies

    def raw(self, name: str) -> tuple[Line, ...]:
        return self.lines.get(name, ())


def read_evidence(folder: Path) -> Evidence:
    """Of all files in `folder`."""
    lines = {path.stem: _read_lines(path) for path in sorted(folder.glob("*.jsonl"))}
    paths = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    tables = {name: _table(path) for name, path in paths.items() if name not in PROMPT_PLANS}
    asked = lines.get("interactive", ())
    apart = (*STUDY_PLANS, *TIMED_PLANS, *OWN_TABLES, *CURVE_PLANS)
    return Evidence(
        plans=tuple(pool for name, pool in tables.items() if name not in apart),
        prompted=tuple(row for name in PROMPT_PLANS if name in paths for row in read_results(paths[name])),
        timed=tuple(pool for name, pool in tables.items() if name in TIMED_PLANS),
        decided=tuple(_decided(row for name in TIMED_PLANS if name in paths for row in read_results(paths[name]))),
        own={name: pool for name, pool in tables.items() if name in OWN_TABLES},
        curves=tuple(pool for name, pool in tables.items() if name in CURVE_PLANS),
        studies=(
            *[pool for name, pool in tables.items() if name in STUDY_PLANS],
            *_pools_of_lines(lines.get("few_shot_prompts", ()), lines.get("label_efficiency", ())),
        ),
        clicks=_asked([one for one in asked if one["part"] == "clicks" and one["set"] == one["fitted_on"]]),
        elsewhere=_asked(_elsewhere(asked)),
        pruning=_asked([one for one in asked if one["part"] == "pruning"]),
        lines=lines,
    )


def compare(
    pools: Sequence[Pool], first: str, second: str, measure: str = "dice", shots: Callable[[int], bool] = lambda n: True
) -> list[Difference]:
    """Two configurations wherever both were measured with as many labelled cases; `difference` chooses the pool."""
    places = dict.fromkeys(
        (name, n)
        for pool in pools
        for name, configuration, n in pool.scores
        if configuration in (first, second) and shots(n)
    )
    found = [difference(pools, name, (first, n), (second, n), measure) for name, n in sorted(places)]
    return [one for one in found if one is not None]


def difference(
    pools: Sequence[Pool], data_set: str, first: tuple[str, int], second: tuple[str, int], measure: str = "dice"
) -> Difference | None:
    """Two configurations, each with so many labelled cases, on one set: of the pool where they share the most splits,
    and of those with as many of the first; None where no pool has both on shared cases."""
    most, best = 0, None
    for pool in pools:
        ours, theirs = (pool.scores.get((data_set, *one), {}).get(measure, {}) for one in (first, second))
        shared = sorted(ours.keys() & theirs.keys())
        splits = len({split for split, _ in shared})
        if splits > most:
            most, best = splits, (pool, ours, theirs, shared)
    if best is None:
        return None
    pool, ours, theirs, shared = best
    return Difference(
        data_set,
        first[0],
        second[0],
        (first[1], second[1]),
        measure,
        (fmean(ours[key] for key in shared), fmean(theirs[key] for key in shared)),
        # Rounded, so that scores equal but for the order of a sum are equal.
        estimate({key: round(ours[key] - theirs[key], 12) for key in shared}, _largest(measure)),
        len({case for _, case in shared}),
        most,
        pool.name,
    )


def estimate(scores: Scores, largest: float = math.inf) -> Estimate:
    """Mean over splits with its interval, which goes no further than the largest possible value, and minus it."""
    by_split: dict[int, dict[str, float]] = {}
    for (split, case), value in sorted(scores.items()):
        by_split.setdefault(split, {})[case] = value
    return over_splits([*by_split.values()], (-largest, largest))


def _largest(measure: str) -> float:
    return math.inf if measure.startswith(("hd95", "noc")) else 1.0


def balanced(configuration: str) -> str:
    """The configuration that has the default loss, where the plan has an earlier one under the plain name."""
    return f"{configuration}, balanced" if configuration.startswith(("AutoSAM", "few-shot")) else configuration


def sets_of(pools: Iterable[Pool], configurations: Collection[str] = ()) -> list[str]:
    """Data sets on which any of the configurations (any configuration at all, when left out) was measured."""
    return sorted(
        {
            name
            for pool in pools
            for name, configuration, _ in pool.scores
            if not configurations or configuration in configurations
        }
    )


def scores_of(pools: Iterable[Pool], data_set: str, configuration: str, shots: int, measure: str = "dice") -> Scores:
    """Of the first pool that has them; none where no pool does."""
    found = (pool.scores.get((data_set, configuration, shots), {}).get(measure) for pool in pools)
    return next((one for one in found if one), {})


def shared(found: Mapping[str, Scores]) -> dict[str, Scores]:
    """Scores of several configurations, each on the splits and cases that all of them have; configurations without any
    are left out."""
    measured = {configuration: scores for configuration, scores in found.items() if scores}
    keys = set.intersection(*[set(scores) for scores in measured.values()]) if measured else set()
    return {configuration: {key: scores[key] for key in sorted(keys)} for configuration, scores in measured.items()}


def _read_lines(path: Path) -> tuple[Line, ...]:
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def _decided(rows: Iterable[Result]) -> list[Result]:
    """A row of each fit with decisions, by split."""
    found = {row.trial: row for row in rows if row.decisions}
    return sorted(found.values(), key=lambda row: row.split)


def _table(path: Path) -> Pool:
    """Means over the labels of each case; absent labels are left out, missed and false positive ones count.

    Read by columns: `read_results` makes an object of each of tens of thousands of rows.
    """
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path, columns=list(COLUMNS)).to_pydict()
    values: dict[tuple[Point, str, int, str], list[float]] = {}
    for row in zip(*[columns[name] for name in COLUMNS], strict=True):
        data_set, configuration, shots, split, case, status, *measured = row
        if status != "absent":
            for measure, value in zip((*MEASURES, SECONDS), measured, strict=True):
                values.setdefault(((data_set, configuration, shots), measure, split, case), []).append(value)
    pool = Pool(path.name)
    names = WIDTHS if path.stem in NARROW_PLANS else {}
    for ((data_set, configuration, shots), measure, split, case), labels in values.items():
        pool.add((data_set, names.get(configuration, configuration), shots), measure, split, case, fmean(labels))
    return pool


def _pools_of_lines(few_shot: Iterable[Line], efficiency: Iterable[Line]) -> tuple[Pool, ...]:
    """Lines have one value a case, so they cannot become rows of a table, which has one per label.

    The newest lines come first; those of the first cases by name come after those of random cases.
    """
    pools: dict[tuple[str, str], Pool] = {}
    plain = [
        {"configuration": line["method"], "split": line["seed"], **line} for line in few_shot if not line["settings"]
    ]
    for line in [*plain, *efficiency]:
        chosen = line.get("unseen", FIRST)
        pool = pools.setdefault(
            (line["digest"], chosen), Pool(f"studies with weights {line['digest']}, unseen cases: {chosen}")
        )
        point = (line["set"], NAMES.get(line["configuration"], line["configuration"]), line["shots"])
        for measure in ("dice", "hd95"):
            for case, value in zip(line["cases"], line[measure], strict=True):
                pool.add(point, measure, line["split"], case, value)
    newest = list(pools.values())[::-1]
    return tuple(sorted(newest, key=lambda pool: pool.name.endswith(FIRST)))


def _elsewhere(lines: Iterable[Line]) -> list[Line]:
    """What was fitted on another set, and beside it what was not fitted at all; the set's name says so."""
    clicks = [line for line in lines if line["part"] == "clicks"]
    moved = [line for line in clicks if line["set"] != line["fitted_on"]]
    pairs = {(line["set"], line["fitted_on"]) for line in moved}
    plain = [
        line | {"fitted_on": other}
        for line in clicks
        if line["configuration"] == "backbone"
        for name, other in sorted(pairs)
        if line["set"] == name
    ]
    return [line | {"set": f"{line['set']}, fitted on {line['fitted_on']}"} for line in [*moved, *plain]]


def _asked(lines: Iterable[Line]) -> tuple[Pool, ...]:
    """A pool for each way of asking, those with random cases first; of a configuration trained for different times, the
    longest."""
    pools: dict[tuple[Any, ...], Pool] = {}
    for line in sorted(lines, key=lambda line: int(line["iterations"])):
        asked = tuple(line[key] for key in ("digest", "cases_most", "slices", "seeds", "most", "annotator"))
        chosen = line.get("unseen", FIRST)
        pool = pools.setdefault(
            (*asked, chosen),
            Pool(f"{line['annotator']} annotator, {line['seeds']} people, weights {asked[0]}, unseen cases: {chosen}"),
        )
        measured = [key for key in line if key.startswith(("dice_", "noc_", "sensitivity_"))]
        for measure in measured:
            for case, value in zip(line["cases"], line[measure], strict=True):
                pool.add((line["set"], line["configuration"], line["shots"]), measure, line["split"], case, value)
    return tuple(sorted(pools.values(), key=lambda pool: pool.name.endswith(FIRST)))
