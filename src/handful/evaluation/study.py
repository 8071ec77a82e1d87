"""An experiment's results as they are asked for by a reader: by data set, arm and number of labelled cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from handful.errors import SettingsError
from handful.evaluation.evaluate import Estimate, Failure
from handful.evaluation.results import LARGER_IS_BETTER, MEASURES, Result, case_scores
from handful.evaluation.statistics import Comparison, compare_pairs, over_draws, shots_to_reach

BASELINE = "unet"
"""The method that others are asked to match with fewer labels."""


@dataclass(frozen=True)
class Picture:
    """A case that an arm did badly on: reference and prediction drawn on the slice where they differ most."""

    data_set: str
    arm: str
    shots: int
    draw: int
    case: str
    dice: float
    """Mean over the case's labels."""
    webp: bytes


@dataclass(frozen=True)
class Cost:
    """What an arm takes, over the fits of one number of shots."""

    fit_s: float
    """Median."""
    predict_s: float
    """Median, a case."""
    peak_mib: float
    """Most of all."""


@dataclass(frozen=True)
class Match:
    """How many labelled cases the baseline had, and how few each arm needs to be as good, among those tried.

    As good on average over the draws and cases that both were scored on.
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
    """Arms in the order they are shown; those that are not named here follow."""
    measures: tuple[str, ...] = ("dice", "hd95")
    """The first one decides who is best, and is the one that is tested."""
    pictures: tuple[Picture, ...] = ()
    command: str = ""
    """What somebody types to have all this again."""
    cells: int = 0
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
    def arms(self) -> list[str]:
        there = dict.fromkeys(row.arm for row in self.results)
        return [arm for arm in self.order if arm in there] + [arm for arm in there if arm not in self.order]

    @cached_property
    def readers(self) -> set[str]:
        """Arms that were prompted by a simulated reader: bounds, not automatic results."""
        return {row.arm for row in self.results if row.reader}

    def arms_of(self, data_set: str) -> list[str]:
        return [arm for arm in self.arms if (data_set, arm) in {key[:2] for key in self._by_point}]

    def shots_of(self, data_set: str) -> list[int]:
        return sorted({shots for one, _, shots in self._by_point if one == data_set})

    def rows(self, data_set: str, arm: str, shots: int) -> Sequence[Result]:
        return self._by_point.get((data_set, arm, shots), ())

    def estimate(self, data_set: str, arm: str, shots: int, measure: str) -> Estimate | None:
        """The mean over draws and its interval; None where nothing was measured."""
        key = (data_set, arm, shots, measure)
        if key not in self._estimates:
            draws = _by_draw(self.rows(data_set, arm, shots))
            values = [list(case_scores(rows, measure).values()) for rows in draws.values()]
            self._estimates[key] = over_draws(values) if any(values) else None
        return self._estimates[key]

    def shared_shots(self, data_set: str) -> int:
        """The largest number of shots at which the most arms were measured: where they are compared."""
        arms, shots = self.arms_of(data_set), self.shots_of(data_set)
        return max(shots, key=lambda n: (sum(bool(self.rows(data_set, arm, n)) for arm in arms), n))

    def ranking(self, data_set: str, shots: int) -> list[tuple[str, Estimate]]:
        """Automatic arms by the main measure, the best first."""
        found = [
            (arm, one)
            for arm in self.arms_of(data_set)
            if arm not in self.readers and (one := self.estimate(data_set, arm, shots, self.main)) is not None
        ]
        sign = -1 if self.main in LARGER_IS_BETTER else 1
        return sorted(found, key=lambda entry: sign * entry[1].mean)

    def comparisons(self, data_set: str) -> list[list[Comparison]]:
        """All pairs of automatic arms, then all of those with readers: two families, for a reader looks at the truth.

        At `shared_shots`, on each case's mean over the draws that all arms have.
        """
        shots, arms = self.shared_shots(data_set), self.arms_of(data_set)
        scores = {arm: self._paired_scores(data_set, arm, shots) for arm in arms}
        families = ([arm for arm in arms if (arm in self.readers) is with_reader] for with_reader in (False, True))
        found = (compare_pairs({arm: scores[arm] for arm in family if scores[arm]}) for family in families)
        return [pairs for pairs in found if pairs]

    def cost(self, data_set: str, arm: str, shots: int) -> Cost | None:
        rows = self.rows(data_set, arm, shots)
        if not rows:
            return None
        fits = {row.draw: row.fit_s for row in rows}
        cases = {(row.draw, row.case): row.predict_s for row in rows}
        return Cost(median(fits.values()), median(cases.values()), max(row.peak_mib for row in rows))

    def matches(self, data_set: str) -> list[Match]:
        """For each number of shots of the first U-Net among the arms; none without one, or where less is better."""
        baseline = next((row.arm for row in self.results if row.method == BASELINE), None)
        if baseline is None or self.main not in LARGER_IS_BETTER:
            return []
        others = [arm for arm in self.arms_of(data_set) if arm != baseline and arm not in self.readers]
        found: list[Match] = []
        for shots in self.shots_of(data_set):
            target = self.estimate(data_set, baseline, shots, self.main)
            if target is not None:
                needed = {arm: self._shots_to_match(data_set, arm, (baseline, shots)) for arm in others}
                found.append(Match(baseline, shots, target.mean, needed))
        return found

    @cached_property
    def _by_point(self) -> dict[tuple[str, str, int], list[Result]]:
        points: dict[tuple[str, str, int], list[Result]] = {}
        for row in self.results:
            points.setdefault((row.data_set, row.arm, row.shots), []).append(row)
        return points

    @cached_property
    def _estimates(self) -> dict[tuple[str, str, int, str], Estimate | None]:
        """Those worked out so far."""
        return {}

    def _paired_scores(self, data_set: str, arm: str, shots: int) -> dict[str, float]:
        """Only draws that every arm has, so that all means are over the same draws."""
        draws = [set(_by_draw(self.rows(data_set, other, shots))) for other in self.arms_of(data_set)]
        common = set.intersection(*[found for found in draws if found])
        by_case: dict[str, list[float]] = {}
        for draw, rows in _by_draw(self.rows(data_set, arm, shots)).items():
            if draw in common:
                for case, score in case_scores(rows, self.main).items():
                    by_case.setdefault(case, []).append(score)
        return {case: fmean(scores) for case, scores in by_case.items()}

    def _shots_to_match(self, data_set: str, arm: str, other: tuple[str, int]) -> int | None:
        gaps = {n: self._gap(data_set, (arm, n), other) for n in self.shots_of(data_set)}
        return shots_to_reach({n: gap for n, gap in gaps.items() if gap is not None}, 0.0)

    def _gap(self, data_set: str, first: tuple[str, int], second: tuple[str, int]) -> float | None:
        """Mean difference over the draws and cases that both were scored on; None where there are none."""
        ours, theirs = (_by_draw(self.rows(data_set, *one)) for one in (first, second))
        by_draw = []
        for draw in ours.keys() & theirs.keys():
            mine, other = (case_scores(rows[draw], self.main) for rows in (ours, theirs))
            if shared := mine.keys() & other.keys():
                by_draw.append(fmean(mine[case] - other[case] for case in shared))
        # Rounded, so that scores equal but for the order of a sum are equal.
        return round(fmean(by_draw), 12) if by_draw else None


def _by_draw(rows: Iterable[Result]) -> dict[int, list[Result]]:
    draws: dict[int, list[Result]] = {}
    for row in rows:
        draws.setdefault(row.draw, []).append(row)
    return draws
