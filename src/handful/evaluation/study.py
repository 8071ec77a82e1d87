"""An experiment's results as they are asked for by an annotator: by data set, configuration and number of labelled
cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from handful.errors import SettingsError
from handful.evaluation.evaluate import Estimate, Failure
from handful.evaluation.results import LARGER_IS_BETTER, MEASURES, Result, case_scores
from handful.evaluation.statistics import Comparison, compare_pairs, over_splits, shots_to_reach

BASELINE = "unet"
"""The method that others are asked to match with fewer labels."""


@dataclass(frozen=True)
class Picture:
    """A case that a configuration did badly on: reference and prediction drawn on the slice where they differ most."""

    data_set: str
    configuration: str
    shots: int
    split: int
    case: str
    dice: float
    """Mean over the case's labels."""
    webp: bytes


@dataclass(frozen=True)
class Cost:
    """What a configuration takes, over the fits of one number of shots."""

    fit_s: float
    """Median."""
    predict_s: float
    """Median, a case."""
    peak_mib: float
    """Most of all."""


@dataclass(frozen=True)
class Match:
    """How many labelled cases the baseline had, and how few each configuration needs to be as good, among those tried.

    As good on average over the splits and cases that both were scored on.
    """

    baseline: str
    shots: int
    score: float
    needed: dict[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a report tells."""

    title: str
    results: tuple[Result, ...]
    order: tuple[str, ...] = ()
    """Configurations in the order they are shown; those that are not named here follow."""
    measures: tuple[str, ...] = ("dice", "hd95")
    """The first one decides who is best, and is the one that is tested."""
    pictures: tuple[Picture, ...] = ()
    command: str = ""
    """What somebody types to have all this again."""
    trials: int = 0
    """Fits that were asked for."""
    done: int = 0
    """And are in `results`."""
    failed: tuple[Failure, ...] = ()
    """Fits that came to nothing, by their names."""

    def __post_init__(self) -> None:
        if unknown := [one for one in self.measures if one not in MEASURES] or not self.measures:
            raise SettingsError(f"measures {unknown or '()'}: choose one or more of {', '.join(MEASURES)}")

    @property
    def main(self) -> str:
        """The measure that decides."""
        return self.measures[0]

    @cached_property
    def data_sets(self) -> list[str]:
        return list(dict.fromkeys(row.data_set for row in self.results))

    @cached_property
    def configurations(self) -> list[str]:
        there = dict.fromkeys(row.configuration for row in self.results)
        return [configuration for configuration in self.order if configuration in there] + [
            configuration for configuration in there if configuration not in self.order
        ]

    @cached_property
    def annotators(self) -> set[str]:
        """Configurations that were prompted by a simulated annotator: bounds, not automatic results."""
        return {row.configuration for row in self.results if row.annotator}

    def configurations_of(self, data_set: str) -> list[str]:
        return [
            configuration
            for configuration in self.configurations
            if (data_set, configuration) in {key[:2] for key in self._by_point}
        ]

    def shots_of(self, data_set: str) -> list[int]:
        return sorted({shots for one, _, shots in self._by_point if one == data_set})

    def rows(self, data_set: str, configuration: str, shots: int) -> Sequence[Result]:
        return self._by_point.get((data_set, configuration, shots), ())

    def estimate(self, data_set: str, configuration: str, shots: int, measure: str) -> Estimate | None:
        """The mean over splits and its interval; None where nothing was measured."""
        key = (data_set, configuration, shots, measure)
        if key not in self._estimates:
            splits = _by_split(self.rows(data_set, configuration, shots))
            values = [list(case_scores(rows, measure).values()) for rows in splits.values()]
            self._estimates[key] = over_splits(values) if any(values) else None
        return self._estimates[key]

    def shared_shots(self, data_set: str) -> int:
        """The largest number of shots at which the most configurations were measured: where they are compared."""
        configurations, shots = self.configurations_of(data_set), self.shots_of(data_set)
        return max(
            shots,
            key=lambda n: (sum(bool(self.rows(data_set, configuration, n)) for configuration in configurations), n),
        )

    def ranking(self, data_set: str, shots: int) -> list[tuple[str, Estimate]]:
        """Automatic configurations by the main measure, the best first."""
        found = [
            (configuration, one)
            for configuration in self.configurations_of(data_set)
            if configuration not in self.annotators
            and (one := self.estimate(data_set, configuration, shots, self.main)) is not None
        ]
        sign = -1 if self.main in LARGER_IS_BETTER else 1
        return sorted(found, key=lambda entry: sign * entry[1].mean)

    def comparisons(self, data_set: str) -> list[list[Comparison]]:
        """All pairs of automatic configurations, then all of those with annotators: two families, for an annotator
        looks at the truth.

        At `shared_shots`, on each case's mean over the splits that all configurations have.
        """
        shots, configurations = self.shared_shots(data_set), self.configurations_of(data_set)
        scores = {
            configuration: self._paired_scores(data_set, configuration, shots) for configuration in configurations
        }
        families = (
            [configuration for configuration in configurations if (configuration in self.annotators) is with_annotator]
            for with_annotator in (False, True)
        )
        found = (
            compare_pairs({configuration: scores[configuration] for configuration in family if scores[configuration]})
            for family in families
        )
        return [pairs for pairs in found if pairs]

    def cost(self, data_set: str, configuration: str, shots: int) -> Cost | None:
        rows = self.rows(data_set, configuration, shots)
        if not rows:
            return None
        fits = {row.split: row.fit_s for row in rows}
        cases = {(row.split, row.case): row.predict_s for row in rows}
        return Cost(median(fits.values()), median(cases.values()), max(row.peak_mib for row in rows))

    def matches(self, data_set: str) -> list[Match]:
        """For each number of shots of the first U-Net among the configurations; none without one, or where less is
        better."""
        baseline = next((row.configuration for row in self.results if row.method == BASELINE), None)
        if baseline is None or self.main not in LARGER_IS_BETTER:
            return []
        others = [
            configuration
            for configuration in self.configurations_of(data_set)
            if configuration != baseline and configuration not in self.annotators
        ]
        found: list[Match] = []
        for shots in self.shots_of(data_set):
            target = self.estimate(data_set, baseline, shots, self.main)
            if target is not None:
                needed = {
                    configuration: self._shots_to_match(data_set, configuration, (baseline, shots))
                    for configuration in others
                }
                found.append(Match(baseline, shots, target.mean, needed))
        return found

    @cached_property
    def _by_point(self) -> dict[tuple[str, str, int], list[Result]]:
        points: dict[tuple[str, str, int], list[Result]] = {}
        for row in self.results:
            points.setdefault((row.data_set, row.configuration, row.shots), []).append(row)
        return points

    @cached_property
    def _estimates(self) -> dict[tuple[str, str, int, str], Estimate | None]:
        """Those worked out so far."""
        return {}

    def _paired_scores(self, data_set: str, configuration: str, shots: int) -> dict[str, float]:
        """Only splits that every configuration has, so that all means are over the same splits."""
        splits = [set(_by_split(self.rows(data_set, other, shots))) for other in self.configurations_of(data_set)]
        common = set.intersection(*[found for found in splits if found])
        by_case: dict[str, list[float]] = {}
        for split, rows in _by_split(self.rows(data_set, configuration, shots)).items():
            if split in common:
                for case, score in case_scores(rows, self.main).items():
                    by_case.setdefault(case, []).append(score)
        return {case: fmean(scores) for case, scores in by_case.items()}

    def _shots_to_match(self, data_set: str, configuration: str, other: tuple[str, int]) -> int | None:
        gaps = {n: self._gap(data_set, (configuration, n), other) for n in self.shots_of(data_set)}
        return shots_to_reach({n: gap for n, gap in gaps.items() if gap is not None}, 0.0)

    def _gap(self, data_set: str, first: tuple[str, int], second: tuple[str, int]) -> float | None:
        """Mean difference over the splits and cases that both were scored on; None where there are none."""
        ours, theirs = (_by_split(self.rows(data_set, *one)) for one in (first, second))
        by_split = []
        for split in ours.keys() & theirs.keys():
            mine, other = (case_scores(rows[split], self.main) for rows in (ours, theirs))
            if shared := mine.keys() & other.keys():
                by_split.append(fmean(mine[case] - other[case] for case in shared))
        # Rounded, so that scores equal but for the order of a sum are equal.
        return round(fmean(by_split), 12) if by_split else None


def _by_split(rows: Iterable[Result]) -> dict[int, list[Result]]:
    splits: dict[int, list[Result]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits
