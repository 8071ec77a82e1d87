"""The check of a choice: the chosen method and methods without training, scored on labelled cases that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from handful.backbones.base import Backbone
from handful.data.support import SupportSet
from handful.jobs.progress import Run
from handful.methods.base import Method
from handful.methods.left_out import mean_dice, one_left_out, score_group


@dataclass(frozen=True)
class Check:
    """Mean Dice of some methods on labelled cases that were left out of their fits."""

    cases: tuple[str, ...]
    """Names of the cases."""
    dice: Mapping[str, float]
    """By name of the method."""

    def best(self) -> str:
        return max(self.dice, key=lambda name: self.dice[name])


def scores_of(methods: Mapping[str, Method], support: SupportSet, backbone: Backbone, run: Run) -> Check | None:
    """Fit each method without a quarter of the patients, at least one, and score it on them.

    None if there is only one patient, or if each patient is the only one with some label.
    """
    group = one_left_out(support)
    if group is None:
        return None
    dice = {
        name: mean_dice(score_group(method, support, backbone, group, run.part(f"checking {name}")))
        for name, method in methods.items()
    }
    return Check(tuple(case.name for case in group), dice)
