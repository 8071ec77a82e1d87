"""The results of an experiment, by data set, configuration and number of labelled cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from handful.errors import SettingsError
from handful.evaluation.evaluate import Estimate, Failure
from handful.evaluation.results import BOUNDS, LARGER_IS_BETTER, MEASURES, Result, case_scores
from handful.evaluation.statistics import Comparison, Splits, compare_pairs, differences, over_splits

BASELINE = "unet"
"""The method that the others are compared with in `Study.matches`."""
MARGIN = 0.02
"""How much worse still counts as equally good in `Study.matches`."""


@dataclass(frozen=True)
class Picture:
    """A case with a low score: reference and prediction on the slice where they differ most."""

    data_set: str
    configuration: str
    shots: int
    split: int
    case: str
    dice: float
    """Mean over the case's labels."""
    webp: bytes


@dataclass(frozen=True)
class Decisions:
    """What a fit decided by itself."""

    data_set: str
    configuration: str
    shots: int
    split: int
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Time and memory of a configuration with one number of shots."""

    fit_s: float
    """Median over the fits, in seconds."""
    predict_s: float
    """Median over the cases, in seconds."""
    peak_mib: float
    """Maximum over the fits, in MiB."""


@dataclass(frozen=True)
class Match:
    """The number of labelled cases with which each configuration is not worse than the baseline (non-inferior).

    It is not worse where the whole interval of the difference, over the splits and cases on which both were scored,
    lies above -MARGIN.
    """

    baseline: str
    shots: int
    """Number of labelled cases of the baseline."""
    score: float
    """Mean score of the baseline."""
    needed: dict[str, int | None]
    """The smallest number among those measured, by configuration; None if none is enough.

    Without configurations that share fewer than two splits with the baseline: their differences have no interval.
    """


@dataclass(frozen=True, kw_only=True)
class Study:
    """The content of a report."""

    title: str
    results: tuple[Result, ...]
    order: tuple[str, ...] = ()
    """Configurations in display order; those that are not named here follow."""
    measures: tuple[str, ...] = ("dice", "hd95")
    """Measures to report; configurations are ranked and tested by the first one."""
    pictures: tuple[Picture, ...] = ()
    decisions: tuple[Decisions, ...] = ()
    command: str = ""
    """The command that reproduces the results."""
    trials: int = 0
    """Number of fits in the plan."""
    done: int = 0
    """Number of fits whose results are in `results`."""
    failed: tuple[Failure, ...] = ()
    """Failed fits, by name."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.measures if name not in MEASURES] or not self.measures:
            raise SettingsError(f"measures {unknown or '()'}: choose one or more of {', '.join(MEASURES)}")

    @property
    def main(self) -> str:
        """The measure that configurations are ranked and tested by."""
        return self.measures[0]

    @cached_property
    def data_sets(self) -> list[str]:
        """Names of the data sets, in the order of the results."""
        return list(dict.fromkeys(row.data_set for row in self.results))

    @cached_property
    def configurations(self) -> list[str]:
        """Names of the configurations, in display order."""
        measured = dict.fromkeys(row.configuration for row in self.results)
        return [name for name in self.order if name in measured] + [name for name in measured if name not in self.order]

    @cached_property
    def annotators(self) -> set[str]:
        """Configurations prompted by a simulated annotator: upper bounds, not automatic results."""
        return {row.configuration for row in self.results if row.annotator}

    def configurations_of(self, data_set: str) -> list[str]:
        """Configurations that were measured on the data set."""
        measured = {key[:2] for key in self._by_point}
        return [name for name in self.configurations if (data_set, name) in measured]

    def shots_of(self, data_set: str) -> list[int]:
        """Numbers of shots that were measured on the data set, in ascending order."""
        return sorted({shots for name, _, shots in self._by_point if name == data_set})

    def rows(self, data_set: str, configuration: str, shots: int) -> Sequence[Result]:
        """All results of a configuration with this number of shots."""
        return self._by_point.get((data_set, configuration, shots), ())

    def estimate(self, data_set: str, configuration: str, shots: int, measure: str) -> Estimate | None:
        """The mean over splits and its interval (`over_splits`); None if nothing was measured."""
        key = (data_set, configuration, shots, measure)
        if key not in self._estimates:
            splits = _by_split(self.rows(data_set, configuration, shots))
            scores = [case_scores(rows, measure) for rows in splits.values()]
            self._estimates[key] = over_splits(scores, BOUNDS[measure]) if any(scores) else None
        return self._estimates[key]

    def shared_shots(self, data_set: str) -> int:
        """The number of shots at which configurations are compared: that which most of them have (largest if equal)."""
        configurations, shots = self.configurations_of(data_set), self.shots_of(data_set)
        return max(shots, key=lambda n: (sum(bool(self.rows(data_set, name, n)) for name in configurations), n))

    def ranking(self, data_set: str, shots: int) -> list[tuple[str, Estimate]]:
        """Automatic configurations by the main measure, best first."""
        estimates = [
            (name, estimate)
            for name in self.configurations_of(data_set)
            if name not in self.annotators and (estimate := self.estimate(data_set, name, shots, self.main)) is not None
        ]
        sign = -1 if self.main in LARGER_IS_BETTER else 1
        return sorted(estimates, key=lambda entry: sign * entry[1].mean)

    def comparisons(self, data_set: str) -> list[list[Comparison]]:
        """All pairs of automatic configurations, and all pairs of configurations with simulated annotators.

        The two families are corrected separately, since annotators use the reference. Configurations are compared at
        `shared_shots`, on the splits that all configurations have.
        """
        shots, configurations = self.shared_shots(data_set), self.configurations_of(data_set)
        scores = {name: self._paired_scores(data_set, name, shots) for name in configurations}
        families = (
            [name for name in configurations if (name in self.annotators) is with_annotator]
            for with_annotator in (False, True)
        )
        comparisons = (compare_pairs({name: scores[name] for name in family if scores[name]}) for family in families)
        return [pairs for pairs in comparisons if pairs]

    def cost(self, data_set: str, configuration: str, shots: int) -> Cost | None:
        """Time and memory of a configuration; None if nothing was measured."""
        rows = self.rows(data_set, configuration, shots)
        if not rows:
            return None
        fits = {row.split: row.fit_s for row in rows}
        cases = {(row.split, row.case): row.predict_s for row in rows}
        return Cost(median(fits.values()), median(cases.values()), max(row.peak_mib for row in rows))

    def matches(self, data_set: str) -> list[Match]:
        """Comparison with the first U-Net among the configurations, at each of its numbers of shots.

        Empty without a U-Net, if smaller values of the main measure are better, and with one split.
        """
        baseline = next((row.configuration for row in self.results if row.method == BASELINE), None)
        if baseline is None or self.main not in LARGER_IS_BETTER:
            return []
        automatic = [name for name in self.configurations_of(data_set) if name not in self.annotators]
        matches: list[Match] = []
        for shots in self.shots_of(data_set):
            target = self.estimate(data_set, baseline, shots, self.main)
            gaps = {name: self._gaps(data_set, name, (baseline, shots)) for name in automatic if name != baseline}
            needed = {
                name: next((n for n, low in lows.items() if low > -MARGIN), None) for name, lows in gaps.items() if lows
            }
            if target is not None and needed:
                matches.append(Match(baseline, shots, target.mean, needed))
        return matches

    @cached_property
    def _by_point(self) -> dict[tuple[str, str, int], list[Result]]:
        points: dict[tuple[str, str, int], list[Result]] = {}
        for row in self.results:
            points.setdefault((row.data_set, row.configuration, row.shots), []).append(row)
        return points

    @cached_property
    def _estimates(self) -> dict[tuple[str, str, int, str], Estimate | None]:
        """Estimates that have been computed."""
        return {}

    def _scores(self, data_set: str, configuration: str, shots: int) -> Splits:
        """{split: {case: score}} by the main measure."""
        rows = _by_split(self.rows(data_set, configuration, shots))
        return {split: case_scores(of_split, self.main) for split, of_split in rows.items()}

    def _paired_scores(self, data_set: str, configuration: str, shots: int) -> Splits:
        """{split: {case: score}} of the splits that every configuration has."""
        splits = [set(_by_split(self.rows(data_set, other, shots))) for other in self.configurations_of(data_set)]
        common = set.intersection(*[numbers for numbers in splits if numbers])
        scores = self._scores(data_set, configuration, shots)
        return {split: scores[split] for split in scores if split in common}

    def _gaps(self, data_set: str, configuration: str, other: tuple[str, int]) -> dict[int, float]:
        """{shots: lower end of the difference to the other point}, where that has an interval."""
        baseline = self._scores(data_set, *other)
        gaps = {
            shots: over_splits(differences(self._scores(data_set, configuration, shots), baseline)).low
            for shots in self.shots_of(data_set)
        }
        return {shots: low for shots, low in gaps.items() if not math.isnan(low)}


def _by_split(rows: Iterable[Result]) -> dict[int, list[Result]]:
    splits: dict[int, list[Result]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits
