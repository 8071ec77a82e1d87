"""The check of a choice: the chosen method and methods without training, scored on labelled cases that are left out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from handful.backbones.base import Backbone
from handful.data.support import SupportSet
from handful.jobs.progress import Report, Run
from handful.methods.base import Method
from handful.methods.left_out import mean_dice, one_left_out, score_group


@dataclass
class Stopwatch:
    """A report that measures the mean time of a training step."""

    report: Report
    steps: int
    """Number of steps of the training; reports of other parts of a fit are passed on only."""
    ticks: list[float] = field(default_factory=list)

    def __call__(self, step: int, total: int, note: str) -> None:
        self.report(step, total, note)
        if total == self.steps and step:
            self.ticks.append(time.monotonic())

    @property
    def seconds_per_step(self) -> float | None:
        """None for less than two steps."""
        if len(self.ticks) < 2:
            return None
        return (self.ticks[-1] - self.ticks[0]) / (len(self.ticks) - 1)


@dataclass(frozen=True)
class Check:
    """Mean Dice of some methods on labelled cases that were left out of their fits."""

    cases: tuple[str, ...]
    """Names of the cases."""
    dice: Mapping[str, float]
    """By name of the method."""
    seconds_per_step: float | None
    """Mean time of a training step of the chosen method; None without a training."""

    def best(self) -> str:
        return max(self.dice, key=lambda name: self.dice[name])


def scores_of(
    chosen: str, steps: int | None, methods: Mapping[str, Method], support: SupportSet, backbone: Backbone, run: Run
) -> Check | None:
    """Fit each method without a quarter of the patients, at least one, and score it on them.

    `chosen` is the method whose training of so many steps is timed. None if there is only one patient, or if each
    patient is the only one with some label.
    """
    group = one_left_out(support)
    if group is None:
        return None
    dice: dict[str, float] = {}
    watch = Stopwatch(run.report, steps or 0)
    for name, method in methods.items():
        part = run.part(f"checking {name}")
        if name == chosen:
            watch.report = part.report
            part = replace(part, report=watch)
        dice[name] = mean_dice(score_group(method, support, backbone, group, part))
    return Check(tuple(case.name for case in group), dice, watch.seconds_per_step)
