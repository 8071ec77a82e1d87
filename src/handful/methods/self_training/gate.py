"""The reliability gate: how far student, teacher and first labels agree on each unlabelled case.

After Ma et al., "Steady progress beats stagnation: mutual aid of foundation and conventional models in mixed domain
semi-supervised medical image segmentation" (SynFoC, CVPR 2025): reliability is the Dice of student and teacher, times
that of the teacher and another prediction. There it weighs two predictions pixel by pixel; here it also decides
when to stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from handful.jobs.atomic import write_atomically
from handful.jobs.plain_text import counted
from handful.methods.base import CHUNK
from handful.methods.self_training.pool import Pool
from handful.methods.stacks import UNKNOWN, evenly

MOST_CHECKED = 384
"""Slices of the pool that are checked, of each case at least two."""
ROUNDS = 8
"""Checks in a training, evenly spaced."""
PATIENCE = 3
"""Checks with first labels before which nothing is stopped: a student needs time to come to agree with them."""

Classes = Int[Tensor, "b s s"]


@dataclass(frozen=True)
class Reliability:
    """What a check found."""

    step: int
    of_case: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.of_case))


class Gate:
    """Compares the predictions on each case at given steps, and decides which cases to learn from.

    What was found is kept in a file, so that a training that is killed and resumed continues with the same values.
    """

    def __init__(
        self, pool: Pool, threshold: float, first: int, steps: int, initial: Classes | None, scratch: Path | None
    ) -> None:
        """Unlabelled slices are learned from as of step `first` of `steps`.

        `initial` has the first labels of all slices of the pool; pixels whose first label is UNKNOWN are left out of
        the comparison with them. Without first labels, the teacher's labels are compared with those of the check
        before. The first two checks then are at the end of the training with labels alone, and can stop what follows:
        once a teacher learns from its own labels, it agrees with itself more and more, right or wrong.
        """
        self.pool, self.threshold = pool, threshold
        self.every = max(1, (steps - first) // ROUNDS)
        self.begin = first if initial is not None else max(0, first - self.every)
        self.judged = self.begin + self.every * (1 if initial is None else PATIENCE)
        self.rows = _checked_rows(pool)
        self.initial = None if initial is None else initial[self.rows]
        self.checks: list[Reliability] = []
        self._before: Classes | None = None
        self._file = scratch and scratch / "gate.safetensors"
        if self._file and self._file.exists():
            with safe_open(self._file, framework="pt") as file:
                self.checks = [Reliability(one[0], tuple(one[1])) for one in json.loads(file.metadata()["checks"])]
                self._before = file.get_tensor("teacher")

    def check(self, step: int, student: Callable[[Tensor], Classes], teacher: Callable[[Tensor], Classes]) -> None:
        """Compares the predictions where a check is due at this step; each takes slices and gives class numbers."""
        due = step >= self.begin and (step - self.begin) % self.every == 0
        if not due or any(one.step == step for one in self.checks):
            return
        own, other = (torch.cat([classes_of(part) for part in self._slices()]) for classes_of in (student, teacher))
        third = next(one for one in (self.initial, self._before, other) if one is not None)
        self.checks.append(Reliability(step, self._of_cases(own, other, third)))
        self._before = other
        if self._file:
            note = json.dumps([[one.step, one.of_case] for one in self.checks])
            write_atomically(self._file, save({"teacher": other.contiguous()}, metadata={"checks": note}))

    def _of_cases(self, own: Classes, other: Classes, third: Classes) -> tuple[float, ...]:
        """Agreement on each case. A case that shows nothing in the few of its slices that are checked gets the median
        of the others."""
        cases, compared = self.pool.case[self.rows], other.masked_fill(third == UNKNOWN, 0)
        found: list[float | None] = []
        for case in range(len(self.pool.names)):
            here = cases == case
            is_part = int(here.sum()) < int((self.pool.case == case).sum())
            if is_part and not any(bool((one[here] > 0).any()) for one in (own, other, third)):
                found.append(None)
            else:
                found.append(round(dice(own[here], other[here]) * dice(compared[here], third[here]), 4))
        known = [one for one in found if one is not None]
        median = float(np.median(known)) if known else 0.0
        return tuple(median if one is None else one for one in found)

    def at(self, step: int) -> Reliability | None:
        """What the last check up to this step found."""
        return next((one for one in reversed(self.checks) if one.step <= step), None)

    def reliable(self, step: int) -> Bool[Tensor, " v"]:
        """Which slices of the pool to learn from at this step.

        None of them once the median case was below the threshold: later agreement is no sign of better labels, since
        it grows as the learning rate falls.
        """
        found, stopped = self.at(step), self._stopped
        if found is None or not self._is_active(found):
            return torch.ones(len(self.pool), dtype=torch.bool)
        if stopped is not None and stopped.step <= step:
            return torch.zeros(len(self.pool), dtype=torch.bool)
        return torch.tensor(found.of_case)[self.pool.case] >= self.threshold

    def of_cases(self) -> dict[str, float]:
        """Reliability of each case by the last check, by name."""
        return dict(zip(self.pool.names, self.checks[-1].of_case, strict=True)) if self.checks else {}

    def summary(self) -> tuple[str, ...]:
        """What was learned from unlabelled scans, in a sentence for the user."""
        if not self.checks:
            return ()
        last, stopped = self.checks[-1], self._stopped
        fewer = sum(value < self.threshold for value in last.of_case)
        scans = counted(len(last.of_case), "unlabelled scan")
        sources = "teacher and U-Net" if self.initial is None else "first labels, teacher and U-Net"
        agreement = f"{sources} agree with a median Dice of {(stopped or last).median:.2f}"
        if stopped:
            return (
                f"left out {scans} after step {stopped.step}: {agreement}, "
                f"less than {self.threshold:g}, so labels made for them would mislead; label more cases",
            )
        left_out = f", {fewer} of {len(last.of_case)} left out in the end" if fewer else ""
        return (f"learned from {scans}: {agreement}{left_out}",)

    @property
    def _stopped(self) -> Reliability | None:
        """The check that found the median case below the threshold."""
        return next((one for one in self.checks if self._is_active(one) and one.median < self.threshold), None)

    def _is_active(self, found: Reliability) -> bool:
        """Whether there was time for the predictions to come to agree."""
        return found.step >= self.judged

    def _slices(self) -> list[Tensor]:
        return [self.pool.slices[part].float() for part in torch.split(self.rows, CHUNK)]


def dice(one: Classes, other: Classes) -> float:
    """Mean Dice of the labels that either holds; 0 where neither holds any, for that is no agreement to build on."""
    found = []
    for number in range(1, 1 + int(torch.maximum(one, other).max())):
        a, b = one == number, other == number
        if size := int(a.sum() + b.sum()):
            found.append(2 * int((a & b).sum()) / size)
    return float(np.mean(found)) if found else 0.0


def combined_probabilities(
    teacher: Float[Tensor, "b l s s"], initial: Classes, reliability: Float[Tensor, " b"]
) -> Float[Tensor, "b l s s"]:
    """Probabilities of teacher and first labels together, by the reliability of each slice's case.

    Those of the teacher alone where the first label is UNKNOWN.
    """
    labels = teacher.shape[1]
    first = torch.nn.functional.one_hot(initial.long().clamp_min(0), labels).movedim(-1, 1).to(teacher)
    weight = reliability[:, None, None, None].to(teacher)
    weight = torch.where((initial == UNKNOWN)[:, None], torch.ones_like(weight), weight)
    return weight * teacher + (1 - weight) * first


def _checked_rows(pool: Pool) -> Int[Tensor, " r"]:
    """Evenly spaced slices of each case."""
    most = max(2, MOST_CHECKED // max(1, len(pool.names)))
    found = []
    for case in range(len(pool.names)):
        rows = torch.nonzero(pool.case == case)[:, 0]
        found.append(rows[evenly(len(rows), most)])
    return torch.cat(found)
