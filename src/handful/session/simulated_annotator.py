"""A simulated annotator in a session, who clicks on a scan with a known reference; for tests and comparisons."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from handful.data.slice_grid import evenly_spaced
from handful.data.volume import LabelMap, Labels
from handful.errors import InputError, SettingsError
from handful.jobs.progress import Report, silent
from handful.prompts.heuristics import centre_points
from handful.prompts.simulation import Annotator, clicks_to_reach, correct, hard_dice
from handful.session.session import Session


@dataclass(frozen=True, eq=False)
class AnnotationResult:
    """The result of an annotation, region by region; a region is one label on one slice."""

    labels: Labels
    regions: tuple[tuple[int, int], ...]
    """Slice number and label value of each of the m regions."""
    dice: Float[Tensor, "m r"]
    """Dice of each region on its slice after each of r clicks; unchanged once there is nothing left to correct."""
    seconds: tuple[float, ...]
    """Time of each click in seconds, until the new mask was available."""
    volume_dice: dict[int, float]
    """{label value: Dice in the whole scan at the end}; nan if the reference does not contain the label."""

    def of(self, label: int) -> Float[Tensor, "i r"]:
        """Dice of the regions of one label."""
        return self.dice[torch.tensor([value == label for _, value in self.regions], dtype=torch.bool)]

    def clicks_to(self, level: float, label: int | None = None) -> float:
        """NoC: mean number of clicks that reach a Dice of `level`; regions that never do count as all clicks."""
        dice = self.dice if label is None else self.of(label)
        return float(clicks_to_reach(dice, level).float().mean())


def annotate_scan(
    session: Session,
    reference: LabelMap,
    clicks: int = 5,
    slices: int | None = None,
    annotator: Annotator | None = None,
    seed: int = 0,
    report: Report = silent,
    stop_at: float | None = None,
) -> AnnotationResult:
    """Simulate an annotator who knows the reference and clicks at most `clicks` times per label and slice.

    The first click is in the middle of the label, unless the session already has a mask of it. Each further click is in
    the largest error. The annotator segments all slices with a label and accepts each before the next. With `slices`,
    only that many evenly spaced slices are annotated, and the labels are propagated to the others. With `stop_at`, the
    annotator gives no further click once the Dice is that high, and paints a region that does not reach it with all
    clicks. Raises GeometryMismatch if the reference is on another grid.
    """
    if clicks < 1:
        raise SettingsError(f"clicks must be at least 1, got {clicks}")
    if stop_at is not None and not 0 < stop_at <= 1:
        raise SettingsError(f"stop_at must be a Dice above 0 and at most 1, got {stop_at}")
    session.volume.geometry.require_same(reference.geometry, "the scan and the reference")
    truth = session.slicer.view(session.volume).of(reference.array)
    chosen = np.flatnonzero(np.isin(truth, session.labels.values).any(axis=(1, 2)))
    if not len(chosen):
        raise InputError(f"the reference contains none of the labels {session.labels.as_dict()}; give one that does")
    if slices is not None:
        chosen = chosen[evenly_spaced(len(chosen), slices)]
    generator = Generator().manual_seed(seed)
    regions = [(int(n), value) for n in chosen for value in session.labels.values if (truth[n] == value).any()]
    rows: list[list[float]] = []
    seconds: list[float] = []
    for step, (number, value) in enumerate(regions, start=1):
        mask = torch.from_numpy(truth[number] == value)[None, None]
        region = _Region(session, number, value, mask)
        dice, times = _annotate_region(region, clicks, annotator or Annotator(), generator, stop_at)
        if stop_at is not None and dice[-1] < stop_at:
            session.paint(number, value, truth[number] == value)
        rows.append(dice)
        seconds += times
        if step == len(regions) or regions[step][0] != number:
            session.accept(number)
        report(step, len(regions), f"slice {number}")
    if slices is not None:
        session.propagate(report=report)
    result = session.export().array
    whole = {value: _dice(result == value, reference.array == value) for value in session.labels.values}
    return AnnotationResult(session.labels, tuple(regions), torch.tensor(rows), tuple(seconds), whole)


@dataclass(frozen=True, eq=False)
class _Region:
    """One label on one slice."""

    session: Session
    number: int
    value: int
    truth: Bool[Tensor, "1 1 h w"]

    def mask(self) -> Bool[Tensor, "1 1 h w"]:
        """The mask that the session has at present."""
        return torch.from_numpy(self.session.mask_of(self.number, self.value))[None, None]


def _annotate_region(
    region: _Region, clicks: int, annotator: Annotator, generator: Generator, stop_at: float | None
) -> tuple[list[float], list[float]]:
    """Dice after each click, and the time of each click; no time once there is nothing left to correct."""
    truth = region.truth
    dice: list[float] = []
    seconds: list[float] = []
    for _ in range(clicks):
        mask = region.mask()
        if stop_at is not None and float(hard_dice(mask, truth)) >= stop_at:
            dice += [float(hard_dice(mask, truth))] * (clicks - len(dice))
            break
        click = correct(mask, truth, annotator, generator) if bool(mask.any()) else centre_points(truth)
        assert click.points is not None
        assert click.point_labels is not None
        sign = int(click.point_labels[0, 0, 0])
        if sign >= 0:
            x, y = click.points[0, 0, 0].tolist()
            began = time.perf_counter()
            change = region.session.click(region.number, region.value, (x, y), positive=bool(sign))
            seconds.append(time.perf_counter() - began)
            mask = torch.from_numpy(change.mask)[None, None]
        dice.append(float(hard_dice(mask, truth)))
    return dice, seconds


def _dice(prediction: Bool[np.ndarray, "*d"], truth: Bool[np.ndarray, "*d"]) -> float:
    return float(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())) if truth.any() else float("nan")
