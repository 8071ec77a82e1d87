"""Estimate of the time of a job before it starts, from the number of slices and one timed slice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.slice_grid import SliceGrid
from handful.data.slicing import Slicer
from handful.errors import HandfulError


@dataclass(frozen=True)
class Cost:
    """The number of slices of a job, and the estimated time to encode them on this machine."""

    cases: int
    slices: int
    seconds: float
    device: str

    def __str__(self) -> str:
        where = "this CPU" if self.device == "cpu" else self.device
        return f"{self.slices} slices in {self.cases} cases, about {duration(self.seconds)} to encode on {where}"


def estimate(backbone: Backbone, grids: Sequence[SliceGrid]) -> Cost | None:
    """The cost of encoding every slice of these grids without a cache; None if there are no grids."""
    if not grids:
        return None
    slices = sum(len(grid) for grid in grids)
    seconds = slices * _seconds_per_slice(backbone, grids[0].size)
    return Cost(len(grids), slices, seconds, backbone.device.type)


def grids_of(cases: Iterable[Case], slicer: Slicer) -> list[SliceGrid]:
    """The slice grids of the cases, from their headers. Cases that cannot be read are left out."""
    grids = []
    for case in cases:
        with suppress(HandfulError):
            grids.append(slicer.grid(case.read_geometry()))
    return grids


def duration(seconds: float) -> str:
    """A duration as text: 8 s, 4 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@torch.no_grad()
def _seconds_per_slice(backbone: Backbone, size: tuple[int, int]) -> float:
    """Seconds to encode one slice of this size. If the first call is fast, a second is timed, without set-up costs."""
    ramp = torch.linspace(0, 1, size[0] * size[1], device=backbone.device).reshape(1, 1, *size)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        backbone.plain.encode(ramp).main.sum().item()  # item() waits for the device
        seconds = time.perf_counter() - began
        if seconds > 2:
            break
    return seconds
