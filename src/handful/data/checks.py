"""What is wrong with a case, or doubtful, found without computing anything."""

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
    """Something about a case that its owner should know."""

    case: str
    severity: Literal["error", "warning", "note"]
    """An error stops the case, a warning doubts its result, a note explains."""
    message: str


def check_case(case: Case) -> list[Finding]:
    """All input checks of a case, without computing anything; empty where there is nothing to say."""
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
    """What `check_case` finds in all cases."""
    findings: list[Finding] = []
    for number, case in enumerate(cases, start=1):
        findings += check_case(case)
        report(number, len(cases), case.name)
    return findings


def _doubts(volume: Volume) -> Iterator[str]:
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        yield f"no signal: every voxel is {low:g}, so nothing will be segmented; check the export"
    elif (volume.modality or "").upper().startswith("CT") and (low < -2000 or high > 30000 or low >= 0):
        yield f"a CT with values from {low:g} to {high:g}, not Hounsfield units; rescale it, or choose a window by hand"


def _notes(case: Case, volume: Volume) -> Iterator[str]:
    if isinstance(case.image, Path):
        yield from read_notes(case.image)
    if 1 in volume.geometry.shape and volume.geometry.unit == "mm":
        yield f"one slice only, grid {volume.geometry.shape}; segmented like a picture"
    # voxels, 16-bit labels, and a second copy while the labels are written
    needed = volume.array.nbytes + 4 * int(np.prod(volume.geometry.shape))
    if needed > 2**30:
        yield f"large: {volume.geometry.shape} voxels need about {needed / 2**30:.1f} GiB of memory"


def _doubts_about_labels(case: Case, reference: LabelMap) -> Iterator[str]:
    if not (reference.array > 0).any():
        yield "the reference holds no label; fine only if there is nothing to label"
    if not (reference.array != IGNORE).any():
        yield "the reference has no labelled slice; list some in its .slices.json"
    if isinstance(case.reference, Path):
        distance = reference.geometry.corner_distance(read_geometry(case.reference))
    else:
        distance = reference.geometry.corner_distance(case.reference.geometry) if case.reference else 0.0
    if distance > 1e-3:
        yield f"image and labels lie {distance:.3g} {reference.geometry.unit} apart, within half a voxel; taken as one"
