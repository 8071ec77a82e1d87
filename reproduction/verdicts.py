"""The rules of the verdicts: figures with their intervals, whether each is for or against its claim, and what follows.

A figure is for a claim, against it, or leaves it undecided. By chance alone some figures would be for it, so a verdict
asks whether there are more than chance gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binom

from handful.evaluation.evaluate import Estimate
from handful.evaluation.study import MARGIN
from reproduction.evidence import Difference, Pool, compare

ERROR = 0.025
"""Chance that an interval lies above 0 where there is no difference; as simulated, with two or more splits."""
SURE = 0.05
"""Largest probability of that many figures by chance with which they are more than chance gives."""

Vote = Literal["for", "against", "undecided"]
VOTES: tuple[Vote, ...] = ("for", "against", "undecided")
Verdict = Literal["holds", "holds in part", "mixed", "refuted here", "undecided", "not tested here"]


@dataclass(frozen=True)
class Figure:
    """One number with its 95 % interval, and what it says of the claim."""

    where: str
    what: str
    column: str
    estimate: Estimate
    vote: Vote | None
    """None where it is for comparison and decides nothing."""
    unit: Literal["", "×", "%", "n", "share"] = ""
    cases: int = 0
    splits: int = 0
    pool: str = ""
    """Name of the pool that was compared."""

    def __str__(self) -> str:
        one = self.estimate
        if self.unit in ("n", "share"):
            return f"{one.mean:,.0f}" if self.unit == "n" else f"{100 * one.mean:.0f} %"
        scale, form = {"": (1, "+.3f"), "×": (1, ".2f"), "%": (100, "+.0f")}[self.unit]
        ends = "" if math.isnan(one.low) else f" [{scale * one.low:{form}}, {scale * one.high:{form}}]"
        space = " " if self.unit == "%" else ""
        return f"{scale * one.mean:{form}}{ends}{space}{self.unit}"


@dataclass(frozen=True)
class Finding:
    """What results say of a claim."""

    figures: tuple[Figure, ...]
    missing: tuple[str, ...] = ()
    """Comparisons that the claim speaks of and nothing was measured for."""

    def __add__(self, other: Finding) -> Finding:
        return Finding(self.figures + other.figures, self.missing + other.missing)

    @property
    def deciding(self) -> list[Figure]:
        return [one for one in self.figures if one.vote is not None]

    def count(self, vote: Vote) -> int:
        """How many of the deciding figures say this."""
        return sum(one.vote == vote for one in self.deciding)

    @property
    def verdict(self) -> Verdict:
        """'holds': all figures are for the claim, and none is missing.

        'holds in part': more are for it than against it, and more than chance gives. 'mixed': more are for it than
        chance gives, but no more than are against it. 'refuted here': more are against it than for it, more than chance
        gives, and those for it may be chance.
        """
        supporting, against, total = self.count("for"), self.count("against"), len(self.deciding)
        if not total:
            return "not tested here"
        if supporting == total and not self.missing:
            return "holds"
        if beyond_chance(supporting, total):
            return "holds in part" if supporting > against else "mixed"
        return "refuted here" if against > supporting and beyond_chance(against, total) else "undecided"


def beyond_chance(count: int, total: int) -> bool:
    """Whether so many of `total` figures are more than chance gives: a binomial test with the interval's error rate."""
    return float(binom.sf(count - 1, total, ERROR)) < SURE


def vote_of(holds: bool) -> Vote:
    """Of a figure without chance, such as a number of parameters."""
    return "for" if holds else "against"


def compared(one: Estimate, least: float) -> Vote:
    """'for' where the whole interval lies above `least`, 'against' where it lies below; without an interval neither."""
    if one.low > least:
        return "for"
    return "against" if one.high < least else "undecided"


Rule = Callable[[Difference], Vote | None]


def above(one: Difference) -> Vote:
    """Judges by 0."""
    return compared(one.estimate, 0.0)


def not_below(one: Difference) -> Vote:
    """Judges by -MARGIN: not worse."""
    return compared(one.estimate, -MARGIN)


def for_context(one: Difference) -> None:
    """Decides nothing."""


def figure(one: Difference, rule: Rule) -> Figure:
    first, second = one.shots
    same = first == second
    what = f"{one.first} − {one.second}" if same else f"{one.first} with {first} − {one.second} with {second}"
    measure = {"dice": "", "iou": ", IoU", "hd95": ", HD95"}.get(one.measure, f", {one.measure}")
    column = f"{first} labelled" if same else ""
    return Figure(
        one.data_set, what + measure, column, one.estimate, rule(one), "", one.cases, one.splits, pool=one.pool
    )


def contests(
    pools: Sequence[Pool],
    pairs: Sequence[tuple[str, str]],
    rule: Rule = above,
    measure: str = "dice",
    shots: Callable[[int], bool] = lambda n: True,
) -> Finding:
    """First minus second of each pair, wherever both were measured."""
    figures: list[Figure] = []
    missing: list[str] = []
    for first, second in pairs:
        found = compare(pools, first, second, measure, shots)
        figures += [figure(one, rule) for one in found]
        if not found and rule is not for_context:
            missing.append(f"{first} − {second}")
    return Finding(tuple(figures), tuple(missing))
