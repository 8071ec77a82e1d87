"""The rules of the verdicts: figures with their intervals, whether each supports its claim, and what follows of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from handful.evaluation.evaluate import Estimate
from reproduction.evidence import Difference, Pool, compare

MARGIN = 0.02
"""How much worse still passes for as good, in Dice or IoU."""

Verdict = Literal["holds", "holds in part", "does not hold", "not tested here"]


@dataclass(frozen=True)
class Figure:
    """One number with its 95 % interval, and whether it speaks for the claim."""

    where: str
    what: str
    column: str
    estimate: Estimate
    supports: bool | None
    """None where it is for context and decides nothing."""
    unit: Literal["", "×", "%", "n", "share"] = ""
    cases: int = 0
    splits: int = 0

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
        return [one for one in self.figures if one.supports is not None]

    @property
    def verdict(self) -> Verdict:
        """By how many of the deciding figures support the claim; one that is missing keeps it from 'holds'."""
        support = [bool(one.supports) for one in self.deciding]
        if not support:
            return "not tested here"
        if all(support) and not self.missing:
            return "holds"
        return "holds in part" if any(support) else "does not hold"


Rule = Callable[[Difference], bool | None]


def above(one: Difference) -> bool:
    """The whole interval lies above 0."""
    return one.estimate.low > 0


def not_below(one: Difference) -> bool:
    """The whole interval lies above -MARGIN."""
    return one.estimate.low > -MARGIN


def for_context(one: Difference) -> None:
    """Decides nothing."""


def figure(one: Difference, rule: Rule) -> Figure:
    first, second = one.shots
    same = first == second
    what = f"{one.first} − {one.second}" if same else f"{one.first} with {first} − {one.second} with {second}"
    measure = {"dice": "", "iou": ", IoU", "hd95": ", HD95"}.get(one.measure, f", {one.measure}")
    column = f"{first} labelled" if same else ""
    return Figure(one.data_set, what + measure, column, one.estimate, rule(one), cases=one.cases, splits=one.splits)


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
