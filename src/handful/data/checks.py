"""Checks of scans and references, without running any model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from handful.data.cases import Case
from handful.data.formats import read_geometry, read_notes
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.errors import HandfulError
from handful.jobs.progress import Report, silent


@dataclass(frozen=True)
class Finding:
    """Something about a case that the user should know."""

    case: str
    severity: Literal["error", "warning", "note"]
    """error: the case cannot be used; warning: its result may be wrong; note: information only."""
    message: str


def check_case(case: Case) -> list[Finding]:
    """All findings about a case; empty if there are none."""
    try:
        volume = case.read_image()
    except HandfulError as error:
        return [Finding(case.name, "error", str(error))]
    findings = [Finding(case.name, "warning", message) for message in _doubts(volume)]
    findings += [Finding(case.name, "note", message) for message in _notes(case, volume)]
    try:
        reference = case.read_reference()
    except HandfulError as error:
        return [Finding(case.name, "error", str(error)), *findings]
    if reference is not None:
        findings += [Finding(case.name, "warning", message) for message in _doubts_about_labels(case, reference)]
    return findings


def check_cases(cases: Sequence[Case], report: Report = silent) -> list[Finding]:
    """The findings of `check_case` for all cases."""
    findings: list[Finding] = []
    for number, case in enumerate(cases, start=1):
        findings += check_case(case)
        report(number, len(cases), case.name)
    return findings


def _doubts(volume: Volume) -> Iterator[str]:
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        yield f"no signal: every voxel has the value {low:g}, so nothing will be segmented; check the export"
    elif (volume.modality or "").upper().startswith("CT") and (low < -2000 or high > 30000 or low >= 0):
        yield (
            f"a CT with values from {low:g} to {high:g}, which are not Hounsfield units; rescale it, "
            "or choose a window by hand"
        )


def _notes(case: Case, volume: Volume) -> Iterator[str]:
    if isinstance(case.image, Path):
        yield from read_notes(case.image)
    if 1 in volume.geometry.shape and volume.geometry.unit == "mm":
        yield f"only one slice, grid {volume.geometry.shape}; segmented like a picture"
    # voxels, 16-bit labels, and a second copy of the labels while they are written
    needed = volume.array.nbytes + 4 * int(np.prod(volume.geometry.shape))
    if needed > 2**30:
        yield f"large scan: {volume.geometry.shape} voxels need about {needed / 2**30:.1f} GiB of memory"


def _doubts_about_labels(case: Case, reference: LabelMap) -> Iterator[str]:
    if not (reference.array > 0).any():
        yield "the reference contains no label; this is right only if there is nothing to label"
    if not (reference.array != IGNORE).any():
        yield "the reference has no labelled slice; list the labelled ones in its .slices.json"
    if isinstance(case.reference, Path):
        distance = reference.geometry.corner_distance(read_geometry(case.reference))
    else:
        distance = reference.geometry.corner_distance(case.reference.geometry) if case.reference else 0.0
    if distance > 1e-3:
        yield (
            f"the grids of image and labels differ by {distance:.3g} {reference.geometry.unit}, less than half a "
            "voxel, and are treated as equal"
        )
