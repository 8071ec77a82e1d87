"""What the signals are worth: a predicted Dice as a linear function of them, fitted on labelled cases left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from handful.curation.signals import SIGNALS, Signals
from handful.data.volume import Labels

LEAST_CASES = 3
"""Labelled cases that a calibration needs."""
WEIGHT_PENALTY, OFFSET_PENALTY = 0.15, 1.0
"""Ridge penalties: of the signals' weights for differing from equal weights, of the labels' offsets for differing from
each other. Each is the variance of the Dice that signals do not explain over a prior variance: 0.1² / 0.26² and
0.1² / 0.1²."""


@dataclass(frozen=True)
class Compared:
    """A label of a labelled case that was left out: its signals and its true Dice."""

    case: str
    label: int
    signals: Signals
    dice: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Predicted Dice as a linear function of the signals that decreases in none of them, with an offset per label."""

    weights: dict[str, float]
    """By the names of the signals; one that the support does not have is missing."""
    usual: dict[str, float]
    """Mean of each signal; replaces one that a case lacks."""
    offsets: dict[int, float]
    """By label value: Dice of a case whose signals are the usual ones."""
    cases: int
    """Labelled cases that it was fitted on."""
    error: float
    """Mean absolute error of the predicted Dice on a labelled case that neither model nor calibration was fitted on."""

    def dice(self, label: int, signals: Signals) -> float:
        """The predicted Dice of a label."""
        found = self.offsets[label]
        for name, weight in self.weights.items():
            value = getattr(signals, name)
            found += weight * ((self.usual[name] if np.isnan(value) else value) - self.usual[name])
        return float(np.clip(found, 0, 1))


def calibrate(compared: Sequence[Compared], labels: Labels) -> Calibration | None:
    """Ridge regression towards equal weights of all signals and one offset of all labels; no weight is negative.

    None from fewer than three cases.
    """
    names = [name for name in SIGNALS if any(not np.isnan(getattr(one.signals, name)) for one in compared)]
    cases = list(dict.fromkeys(one.case for one in compared))
    if len(cases) < LEAST_CASES:
        return None
    errors = []
    for case in cases:
        rest = [one for one in compared if one.case != case]
        found = _fitted(rest, names, labels, len(cases), 0.0)
        errors += [abs(found.dice(one.label, one.signals) - one.dice) for one in compared if one.case == case]
    return _fitted(compared, names, labels, len(cases), float(np.mean(errors)))


def _fitted(
    compared: Sequence[Compared], names: Sequence[str], labels: Labels, cases: int, error: float
) -> Calibration:
    n, s, k = len(compared), len(names), len(labels)
    values = np.array([[getattr(one.signals, name) for name in names] for one in compared]).reshape(n, s)
    known = ~np.isnan(values)
    usual = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - usual, 0)
    member = np.array([[float(one.label == value) for value in labels.values] for one in compared])
    penalty = np.diag([WEIGHT_PENALTY**0.5] * s + [OFFSET_PENALTY**0.5] * k + [0.0])[: s + k]
    system = np.vstack([np.hstack([centred, member, np.ones((n, 1))]), penalty])
    wanted = np.concatenate([[one.dice for one in compared], np.full(s, WEIGHT_PENALTY**0.5 / max(s, 1)), np.zeros(k)])
    bounds = (np.array([0.0] * s + [-np.inf] * (k + 1)), np.full(s + k + 1, np.inf))
    found = lsq_linear(system, wanted, bounds).x
    return Calibration(
        weights=dict(zip(names, found[:s].tolist(), strict=True)),
        usual=dict(zip(names, usual.tolist(), strict=True)),
        offsets=dict(zip(labels.values, (found[s : s + k] + found[-1]).tolist(), strict=True)),
        cases=cases,
        error=error,
    )
