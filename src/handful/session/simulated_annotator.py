"""A simulated annotator at work in a session: clicks on a scan whose truth is known, for tests and comparisons."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from handful.data.volume import LabelMap, Labels
from handful.errors import InputError, SettingsError
from handful.jobs.progress import Report, silent
from handful.prompts.heuristics import centre_points
from handful.prompts.simulation import Annotator, clicks_to_reach, correct, hard_dice
from handful.session.session import Session


@dataclass(frozen=True, eq=False)
class Reading:
    """What an annotator came to, region by region; a region is a label on a slice that holds it."""

    labels: Labels
    regions: tuple[tuple[int, int], ...]
    """Slice number and label value of each of the m regions."""
    dice: Float[Tensor, "m r"]
    """On its slice, after each click; where nothing was left to correct, as it was before."""
    seconds: tuple[float, ...]
    """From each click to its answer."""
    volume_dice: dict[int, float]
    """Of each label value in the whole scan, at the end; nan where the reference lacks it."""

    def of(self, label: int) -> Float[Tensor, "i r"]:
        """Dice of the regions of one label value."""
        return self.dice[torch.tensor([value == label for _, value in self.regions], dtype=torch.bool)]

    def clicks_to(self, level: float, label: int | None = None) -> float:
        """NoC: mean number of clicks to a Dice of `level`; regions that never reach it count as all clicks."""
        dice = self.dice if label is None else self.of(label)
        return float(clicks_to_reach(dice, level).float().mean())


def read_through(
    session: Session,
    reference: LabelMap,
    clicks: int = 5,
    slices: int | None = None,
    annotator: Annotator | None = None,
    seed: int = 0,
    report: Report = silent,
) -> Reading:
    """An annotator who knows the reference asks for every label that a slice holds, and corrects until nothing is
    wrong.

    Her first click is in the middle of the label unless something is shown already; each other one in the largest
    error. She reads all slices that hold a label, or `slices` of them, evenly spaced; those she accepts, and from them
    the labels are propagated to the rest. Raises GeometryMismatch where the reference lies on another grid.
    """
    if clicks < 1:
        raise SettingsError(f"clicks must be at least 1, got {clicks}")
    session.volume.geometry.require_same(reference.geometry, "the scan and the reference")
    truth = session.slicer.view(session.volume).of(reference.array)
    held = np.flatnonzero(np.isin(truth, session.labels.values).any(axis=(1, 2)))
    if not len(held):
        raise InputError(f"the reference holds none of {session.labels.as_dict()}; give one that does")
    if slices is not None:
        held = held[np.unique(np.linspace(0, len(held) - 1, min(slices, len(held))).round().astype(int))]
    generator = Generator().manual_seed(seed)
    regions = [(int(n), value) for n in held for value in session.labels.values if (truth[n] == value).any()]
    rows: list[list[float]] = []
    seconds: list[float] = []
    for step, (number, value) in enumerate(regions, start=1):
        wanted = torch.from_numpy(truth[number] == value)[None, None]
        dice, took = _corrected(session, number, value, wanted, clicks, annotator or Annotator(), generator)
        rows.append(dice)
        seconds += took
        report(step, len(regions), f"slice {number}")
    for number in held.tolist():
        session.accept(number)
    if slices is not None:
        session.propagate(report=report)
    found = session.export().array
    whole = {value: _dice(found == value, reference.array == value) for value in session.labels.values}
    return Reading(session.labels, tuple(regions), torch.tensor(rows), tuple(seconds), whole)


def _corrected(
    session: Session,
    number: int,
    value: int,
    truth: Bool[Tensor, "1 1 h w"],
    clicks: int,
    annotator: Annotator,
    generator: Generator,
) -> tuple[list[float], list[float]]:
    """Dice after each click, and the seconds each took; fewer seconds than clicks where nothing was left to correct."""
    dice: list[float] = []
    seconds: list[float] = []
    for _ in range(clicks):
        shown = torch.from_numpy(session.mask_of(number, value))[None, None]
        prompted = correct(shown, truth, annotator, generator) if bool(shown.any()) else centre_points(truth)
        assert prompted.points is not None
        assert prompted.point_labels is not None
        sign = int(prompted.point_labels[0, 0, 0])
        if sign >= 0:
            x, y = prompted.points[0, 0, 0].tolist()
            began = time.perf_counter()
            change = session.click(number, value, (x, y), positive=bool(sign))
            seconds.append(time.perf_counter() - began)
            shown = torch.from_numpy(change.mask)[None, None]
        dice.append(float(hard_dice(shown, truth)))
    return dice, seconds


def _dice(found: Bool[np.ndarray, "*d"], truth: Bool[np.ndarray, "*d"]) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum())) if truth.any() else float("nan")
