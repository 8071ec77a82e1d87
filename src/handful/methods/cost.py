"""Estimates of the time of a job before it starts.

Each method counts its work (`Method.work`). A few training steps and a few slices of a small phantom scan, of the same
size and with as many labels, are timed with the same method, backbone and machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.slice_grid import SliceGrid, cropped_volume
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import HandfulError
from handful.jobs.plain_text import counted
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter, Work
from handful.tuning.loop import TrainConfig
from handful.tuning.pruning import Pruning

STEPS, MORE_STEPS = 2, 10
"""Training steps of a timed fit, of which the first one does not count; more in a second fit where they are fast."""
FAST_S = 3.0
"""Duration of a timed fit or prediction in seconds, up to which it is repeated, to leave out set-up costs."""
SLOW_S = 60.0
"""Duration of a training step in seconds, from which on one is enough."""
PREDICTED = 3
"""Slices of the scan whose prediction is timed, for methods that use neighbouring slices; one for the others."""
WORTH_ESTIMATING = 4
"""Slices of a prediction below which its time is not estimated."""
MANY_PREDICTED = 8
"""Most slices of a scan of the user whose prediction is timed in a second try, where one is fast."""
ONE_IN = 20
"""Slices of a prediction for each slice of the second try."""


@dataclass(frozen=True)
class Cost:
    """The number of slices of a job, and the estimated time of it on this machine."""

    cases: int
    slices: int
    seconds: float
    device: str
    job: Literal["encode", "segment"]

    def __str__(self) -> str:
        slices = f"{counted(self.slices, 'slice')} in {counted(self.cases)}"
        return f"{slices}, about {duration(self.seconds)} to {self.job} on {_place(self.device)}"


@dataclass(frozen=True)
class FitCost:
    """The work of a fit, and its estimated time on this machine."""

    encoded: int
    """Slices that are encoded, each augmented view counted."""
    steps: int
    """Training steps."""
    fit_s: float
    """Seconds of the fit."""
    predict_s: float | None
    """Seconds of the prediction of one scan that is as large as the labelled ones; None if unknown."""
    device: str

    def __str__(self) -> str:
        parts = [f"{counted(self.encoded, 'slice')} to encode"] * (self.encoded > 0)
        parts += [counted(self.steps, "step")] * (self.steps > 0)
        work = f" ({', '.join(parts)})" if parts else ""
        then = "" if self.predict_s is None else f", then {duration(self.predict_s)} to predict one scan"
        return f"about {duration(self.fit_s)} to fit on {_place(self.device)}{work}{then}"


@dataclass(frozen=True)
class Rates:
    """Seconds that the parts of the work of a method take on this machine."""

    encoded: float
    """Of a labelled slice that is encoded for the fit."""
    step: float
    """Of a training step."""
    segmented: float | None
    """Of a predicted slice; None if it was not timed."""


def estimate(backbone: Backbone, grids: Sequence[SliceGrid], channels: int = 1) -> Cost | None:
    """The cost of encoding every slice of these grids without a cache; None if there are no grids.

    A slice of median size is timed. None if that fails: a job never fails by its estimate.
    """
    if not grids:
        return None
    slices = sum(len(grid) for grid in grids)
    sizes = sorted((grid.size for grid in grids), key=lambda size: size[0] * size[1])
    try:
        seconds = slices * _seconds_per_slice(backbone, sizes[(len(sizes) - 1) // 2], channels)
    except Exception:  # a broken header may state any size; its case fails when it is read
        return None
    return Cost(len(grids), slices, seconds, backbone.device.type, "encode")


def estimate_prediction(segmenter: Segmenter, scan: Volume, cases: int) -> Cost | None:
    """The cost of predicting so many scans of the size of this one, without a cache of embeddings.

    Slices from its middle are predicted for it: one, or several in a second try where one is fast and there are many.
    None if that fails, since a job never fails by its estimate, and for a job of few slices, which costs little more.
    """
    try:
        grid = segmenter.slicer.grid(scan.geometry)
        if len(grid) * cases < WORTH_ESTIMATING:
            return None
        seconds = _seconds_to_predict(segmenter, scan, grid, 1)
        several = min(MANY_PREDICTED, len(grid) * cases // ONE_IN)
        if several > 1 and seconds < FAST_S < seconds * len(grid) * cases:
            seconds = _seconds_to_predict(segmenter, scan, grid, several)
    except Exception:  # the scan fails with its reason when its turn comes
        return None
    return Cost(cases, len(grid) * cases, seconds * len(grid) * cases, segmenter.backbone.device.type, "segment")


def estimate_fit(method: Method, support: SupportSet, backbone: Backbone) -> FitCost | None:
    """The cost of a fit without a cache of embeddings.

    None if the method cannot say its work or cannot be fitted on a phantom scan, and for a training so short that the
    estimate would take longer.
    """
    works = method.work(support, backbone)
    if not works or 0 < max(work.steps for work in works) <= MORE_STEPS:
        return None
    rates: list[tuple[Work, Rates]] = []
    try:
        for work in works:
            known = next((found for other, found in rates if _same_rates(other, work)), None)
            rates.append((work, known or measure_rates(work, backbone)))
    except HandfulError:
        return None
    return total_cost(rates, [facts.geometry for facts in support.facts], backbone.device.type)


def total_cost(rates: Sequence[tuple[Work, Rates]], scans: Sequence[Geometry], device: str) -> FitCost:
    """The cost of all works at these rates; `scans` are the grids of typical scans."""
    fit_s = sum(
        work.encoded * rate.encoded + work.steps * rate.step + work.segmented * (rate.segmented or 0.0)
        for work, rate in rates
    )
    per_scan = [
        [len(work.method.slicer.grid(scan)) * rate.segmented for work, rate in rates if rate.segmented is not None]
        for scan in scans
    ]
    timed = all(rate.segmented is not None for _, rate in rates)
    return FitCost(
        encoded=sum(work.encoded for work, _ in rates),
        steps=sum(work.steps for work, _ in rates),
        fit_s=fit_s,
        predict_s=fmean(map(sum, per_scan)) if timed else None,
        device=device,
    )


def measure_rates(work: Work, backbone: Backbone) -> Rates:
    """Time a short fit of the method, and a prediction. The user's cache is not used."""
    began = time.perf_counter()
    rates = _timed(work, backbone.plain, STEPS)
    return rates if time.perf_counter() - began > FAST_S else _timed(work, backbone.plain, MORE_STEPS)


def grids_of(cases: Iterable[Case], slicer: Slicer) -> list[SliceGrid]:
    """The slice grids of the cases, from their headers. Cases that cannot be read are left out."""
    grids = []
    for case in cases:
        with suppress(Exception):  # a library may raise anything for a broken file, which fails when it is read
            grids.append(slicer.grid(case.read_geometry()))
    return grids


def duration(seconds: float) -> str:
    """A duration as text: 8 s, 4 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _place(device: str) -> str:
    return "this CPU" if device == "cpu" else device


def _same_rates(one: Work, other: Work) -> bool:
    return (one.method, one.size, one.labels, one.retrieved, one.sequences) == (
        other.method,
        other.size,
        other.labels,
        other.retrieved,
        other.sequences,
    )


class _OneIsEnoughError(Exception):
    """Ends a fit after its first training step."""


class _Clock:
    """The times at which training steps end."""

    def __init__(self, impatient: bool) -> None:
        self.began, self.impatient = time.perf_counter(), impatient
        self.ends: list[float] = []

    def __call__(self, step: int, total: int, note: str) -> None:
        self.ends.append(time.perf_counter() - self.began)
        if self.impatient and self.ends[0] > SLOW_S:
            raise _OneIsEnoughError


def _timed(work: Work, backbone: Backbone, steps: int) -> Rates:
    """The rates of a fit of so many steps on a phantom scan."""
    method, support = _shortened(work.method, steps), _phantom(work, work.retrieved)
    clock = _Clock(impatient=work.steps > 0 and work.encoded == 0)
    try:
        with _encoding_times(backbone) as encoding:
            segmenter = method.fit(support, backbone, Run(report=clock))
    except _OneIsEnoughError:
        return Rates(0.0, clock.ends[0], None)
    encoded, step = (time.perf_counter() - clock.began) / work.retrieved, 0.0
    if work.steps:  # the fit was mostly training
        encoded = sum(encoding) / work.retrieved
        step = median(later - earlier for earlier, later in pairwise(clock.ends))
    return Rates(encoded, step, _per_slice(work, segmenter, encoded))


def _seconds_to_predict(segmenter: Segmenter, scan: Volume, grid: SliceGrid, slices: int) -> float:
    """Seconds per slice of so many slices from the middle of a scan."""
    number = min(slices, len(grid))
    start = (len(grid) - number) // 2
    block = [slice(0, extent) for extent in grid.geometry.shape]
    block[grid.axis] = slice(start, start + number)
    part = cropped_volume(scan, (block[0], block[1], block[2]))
    with segmenter.backbone.without_cache():
        began = time.perf_counter()
        segmenter.predict(part)
        return (time.perf_counter() - began) / number


@contextmanager
def _encoding_times(backbone: Backbone) -> Iterator[list[float]]:
    """A list that is filled with the seconds of each call of the image encoder."""
    times: list[float] = []
    hooks = [
        backbone.image_encoder.register_forward_pre_hook(lambda *_: times.append(-time.perf_counter())),
        backbone.image_encoder.register_forward_hook(lambda *_: _stop(times)),
    ]
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def _stop(times: list[float]) -> None:
    times[-1] += time.perf_counter()


def _per_slice(work: Work, segmenter: Segmenter, encoded: float) -> float:
    """Seconds of a slice of a long scan, which has more neighbours than the few slices that are timed."""
    slices = PREDICTED if work.neighbours else 1
    scan = _phantom(work, slices).cases[0].read_image()
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        segmenter.predict(scan)
        seconds = (time.perf_counter() - began) / slices
        if slices * seconds > FAST_S:
            break
    here = fmean(min(number, work.neighbours) for number in range(slices))
    more = (work.retrieved + work.neighbours) / (work.retrieved + here)
    return seconds + (more - 1) * max(0.0, seconds - encoded)


def _shortened(method: Method, steps: int) -> Method:
    """The method with so many training steps, one view of each slice, no early stopping and no pruning."""
    fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    settings: Any = method
    changes: dict[str, Any] = {"slicer": dataclasses.replace(method.slicer, plane="axial", window=(0.0, 1.0))}
    plain = {"views": 1, "validate_from": 0, "pruning": Pruning()}
    changes |= {name: value for name, value in plain.items() if name in fields}
    if "train" in fields and isinstance(settings.train, TrainConfig):
        changes["train"] = dataclasses.replace(settings.train, iterations=steps)
    shortened: Method = dataclasses.replace(settings, **changes)
    return shortened


def _phantom(work: Work, slices: int) -> SupportSet:
    """A scan of noise with these slices, in which each label is a vertical stripe; the top third is background."""
    rows, columns = work.size
    classes = np.zeros((columns, rows, slices), dtype=np.int16)
    edges = np.linspace(0, columns, work.labels + 1).astype(int)
    for value in range(1, work.labels + 1):
        classes[edges[value - 1] : edges[value], rows // 3 :] = value
    channels = max(1, len(work.sequences))
    grey = np.random.default_rng(0).random((channels, *classes.shape), dtype=np.float32)
    geometry = Geometry((columns, rows, slices), np.eye(4))
    labels = Labels(tuple(range(1, work.labels + 1)), tuple(f"label {value}" for value in range(1, work.labels + 1)))
    case = Case(
        "phantom", Volume(grey, geometry, sequences=work.sequences), LabelMap(classes, geometry, labels), labels
    )
    return SupportSet((case,), labels)


@torch.no_grad()
def _seconds_per_slice(backbone: Backbone, size: tuple[int, int], channels: int) -> float:
    """Seconds to encode one slice of this size. If the first call is fast, a second is timed, without set-up costs."""
    ramp = torch.linspace(0, 1, size[0] * size[1], device=backbone.device).expand(1, channels, -1)
    ramp = ramp.reshape(1, channels, *size)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        backbone.plain.encode(ramp).main.sum().item()  # item() waits for the device
        seconds = time.perf_counter() - began
        if seconds > 2:
            break
    return seconds
