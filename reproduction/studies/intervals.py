"""How often do 95 % intervals cover the true value? Simulated differences between two methods, as studies find them.

    python -m reproduction.studies.intervals

The difference of a case is the sum of a part of its split (the labelled cases, and the luck of the fit), a part of the
case, and a part of both. Their standard deviations are those of two of our data sets, where splits differ by 0.04;
cases differ by 0.13 on the heart and by 0.03 on the hippocampus. Eight cases per split are scored: others in each split
("other"), the same ones ("same"), or eight of sixty ("some of 60"), as studies choose them.

Two intervals are compared: that of the package (Student's t over the means of the splits), and the two-stage percentile
bootstrap that these documents had before, which resamples splits, and cases within each.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from handful.evaluation.evaluate import Estimate
from handful.evaluation.statistics import over_splits
from reproduction.markdown import table
from reproduction.parts import RESULTS
from reproduction.study import Line

CASES = 8
BETWEEN = 0.04
"""Standard deviation of the part of a split."""
SPREADS = {"heart": 0.13, "hippocampus": 0.03}
"""Standard deviation between cases, half of its variance that of the case, half that of case and split."""
POOLS = {"other": None, "same": CASES, "some of 60": 60}
"""Cases that those of a split are chosen from; None for others in each split."""
RESAMPLES = 1000

Interval = Callable[[Sequence[Mapping[int, float]]], Estimate]


@dataclass(frozen=True)
class Situation:
    """What is simulated."""

    like: str
    splits: int
    cases: str
    """Which cases a split has: a name of POOLS."""

    def simulated(self, rng: np.random.Generator) -> list[dict[int, float]]:
        """{case: difference} of each split; the true mean is 0."""
        spread = SPREADS[self.like] / math.sqrt(2)
        size = POOLS[self.cases] or self.splits * CASES
        of_splits, of_cases = rng.normal(0, BETWEEN, self.splits), rng.normal(0, spread, size)
        found = []
        for split, offset in enumerate(of_splits):
            numbers = np.arange(CASES) + split * CASES if POOLS[self.cases] is None else rng.permutation(size)[:CASES]
            values = offset + of_cases[numbers] + rng.normal(0, spread, CASES)
            found.append(dict(zip(numbers.tolist(), values.tolist(), strict=True)))
        return found


SITUATIONS = [
    *[Situation(like, 3, cases) for like in SPREADS for cases in POOLS],
    *[Situation(like, splits, "other") for like in SPREADS for splits in (5, 2, 1)],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULTS / "intervals.jsonl")
    arguments = parser.parse_args()
    lines = []
    for situation in SITUATIONS:
        line: Line = asdict(situation) | {"rounds": arguments.rounds}
        for name, interval in INTERVALS.items():
            covers, above = coverage(situation, interval, arguments.rounds)
            line |= {f"{name}_covers": covers, f"{name}_above": above}
        lines.append(line)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(tables(lines))


def coverage(situation: Situation, interval: Interval, rounds: int, seed: int = 0) -> tuple[float, float]:
    """Shares of the rounds in which the interval covers 0, and in which it lies above 0."""
    rng = np.random.default_rng(seed)
    found = [interval(situation.simulated(rng)) for _ in range(rounds)]
    covers, above = (sum(one.low <= 0 <= one.high for one in found), sum(one.low > 0 for one in found))
    return round(covers / rounds, 4), round(above / rounds, 4)


def bootstrap(splits: Sequence[Mapping[int, float]]) -> Estimate:
    """The earlier interval: splits are resampled, and cases within each; of one split, its cases."""
    rng = np.random.default_rng(0)
    values = np.array([list(of_split.values()) for of_split in splits])
    chosen = rng.integers(0, len(splits), (RESAMPLES, len(splits)))
    cases = rng.integers(0, CASES, (RESAMPLES, len(splits), CASES))
    low, high = np.quantile(values[chosen[..., None], cases].mean(axis=(1, 2)), [0.025, 0.975])
    return Estimate(float(values.mean()), math.nan, float(low), float(high))


INTERVALS: dict[str, Interval] = {"t": over_splits, "bootstrap": bootstrap}


def tables(lines: Iterable[Line]) -> str:
    """One row per situation."""
    heads = ("like", "splits", "cases of the splits", "now covers", "lies above 0", "before covered", "lay above 0")
    return f"{table(heads, _rows(lines))}\n\n{NOTE}"


NOTE = """95 % intervals of differences whose true mean is 0, simulated: *now* Student's t over the means of the splits,
*before* the two-stage bootstrap that these documents had. They should cover 0 in 95 % and lie above it in 2.5 % of all
rounds. Between splits the standard deviation is 0.04, between cases 0.13 (as on the heart) or 0.03 (as on the
hippocampus); each split has eight cases, and these are others in each split, the same, or eight of sixty. One split has
no interval now. `python -m reproduction.studies.intervals` repeats the simulation."""


def _rows(lines: Iterable[Line]) -> Iterator[tuple[str, ...]]:
    for line in lines:
        now = [f"{100 * line[f't_{what}']:.1f} %" for what in ("covers", "above")] if line["splits"] > 1 else ["–"] * 2
        before = [f"{100 * line[f'bootstrap_{what}']:.1f} %" for what in ("covers", "above")]
        yield (line["like"], str(line["splits"]), line["cases"], *now, *before)


if __name__ == "__main__":
    main()
