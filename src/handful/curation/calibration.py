"""Calibration of the quality estimate: the predicted Dice as a linear function of the signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from handful.curation.signals import SIGNALS, Signals
from handful.data.volume import Labels

LEAST_CASES = 3
"""Minimum number of labelled cases for a calibration."""
WEIGHT_PENALTY, OFFSET_PENALTY = 0.15, 1.0
"""Ridge penalties: 0.15 pulls the weights of the signals towards equal weights, 1.0 pulls the offsets of the labels
towards each other. Each is residual variance / prior variance: 0.1² / 0.26² and 0.1² / 0.1²."""


@dataclass(frozen=True)
class Compared:
    """The signals and the true Dice of a label in a labelled case that was left out."""

    case: str
    label: int
    signals: Signals
    dice: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The predicted Dice as a linear function of the signals, with non-negative weights and one offset per label."""

    weights: dict[str, float]
    """{signal: weight}; signals that were not available on the support set are missing."""
    usual: dict[str, float]
    """{signal: mean on the support set}; used for a signal that is missing in a case."""
    offsets: dict[int, float]
    """{label value: predicted Dice of a case with mean signals}."""
    cases: int
    """Number of labelled cases that it was fitted on."""
    error: float
    """Mean absolute error of the predicted Dice on labelled cases left out of both model and calibration."""

    def dice(self, label: int, signals: Signals) -> float:
        """The predicted Dice of a label, in [0, 1]."""
        dice = self.offsets[label]
        for name, weight in self.weights.items():
            value = getattr(signals, name)
            dice += weight * ((self.usual[name] if np.isnan(value) else value) - self.usual[name])
        return float(np.clip(dice, 0, 1))


def calibrate(compared: Sequence[Compared], labels: Labels) -> Calibration | None:
    """Fit a calibration by ridge regression with non-negative weights; None for fewer than three cases.

    Weights are regularised towards equal weights of all signals, offsets towards a common offset of all labels.
    """
    names = [name for name in SIGNALS if any(not np.isnan(getattr(row.signals, name)) for row in compared)]
    cases = list(dict.fromkeys(row.case for row in compared))
    if len(cases) < LEAST_CASES:
        return None
    errors = []
    for case in cases:
        calibration = _fitted([row for row in compared if row.case != case], names, labels, len(cases), 0.0)
        errors += [abs(calibration.dice(row.label, row.signals) - row.dice) for row in compared if row.case == case]
    return _fitted(compared, names, labels, len(cases), float(np.mean(errors)))


def _fitted(
    compared: Sequence[Compared], names: Sequence[str], labels: Labels, cases: int, error: float
) -> Calibration:
    n, s, k = len(compared), len(names), len(labels)
    values = np.array([[getattr(row.signals, name) for name in names] for row in compared]).reshape(n, s)
    measured = ~np.isnan(values)
    usual = np.where(measured, values, 0).sum(axis=0) / np.maximum(measured.sum(axis=0), 1)
    centred = np.where(measured, values - usual, 0)
    member = np.array([[float(row.label == value) for value in labels.values] for row in compared])
    penalty = np.diag([WEIGHT_PENALTY**0.5] * s + [OFFSET_PENALTY**0.5] * k + [0.0])[: s + k]
    system = np.vstack([np.hstack([centred, member, np.ones((n, 1))]), penalty])
    target = np.concatenate([[row.dice for row in compared], np.full(s, WEIGHT_PENALTY**0.5 / max(s, 1)), np.zeros(k)])
    bounds = (np.array([0.0] * s + [-np.inf] * (k + 1)), np.full(s + k + 1, np.inf))
    solution = lsq_linear(system, target, bounds).x
    return Calibration(
        weights=dict(zip(names, solution[:s].tolist(), strict=True)),
        usual=dict(zip(names, usual.tolist(), strict=True)),
        offsets=dict(zip(labels.values, (solution[s : s + k] + solution[-1]).tolist(), strict=True)),
        cases=cases,
        error=error,
    )
