"""Checks of scans and references, without running any model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from handful.data.cases import Case
from handful.data.formats import is_scan, read_geometry, read_notes
from handful.data.label_values import doubt_about_values
from handful.data.modality import ModalityEvidence
from handful.data.support import SCRIBBLED, labelled_share
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.errors import reason_of
from handful.jobs.progress import Report, silent

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The most serious first."""


@dataclass(frozen=True)
class Finding:
    """Something about a case that the user should know."""

    case: str
    severity: Severity
    """error: the case cannot be used; warning: its result may be wrong; note: information only."""
    message: str


def check_case(case: Case) -> list[Finding]:
    """All findings about a case on its own; empty if there are none."""
    return _checked(case)[0]


def check_cases(cases: Sequence[Case], report: Report = silent) -> list[Finding]:
    """The findings of `check_case` for all cases, the kind of each scan, and which scans are stored otherwise.

    Errors come first, then warnings, then notes.
    """
    findings: list[Finding] = []
    shifts: dict[str, float] = {}
    for number, case in enumerate(cases, start=1):
        case_findings, evidence = _checked(case)
        findings += case_findings
        if evidence is not None:
            findings.append(Finding(case.name, "note", str(evidence)))
            if evidence.is_ct and evidence.shift is not None:
                shifts[case.name] = evidence.shift
        report(number, len(cases), case.name)
    return sorted(findings + _stored_otherwise(shifts), key=lambda finding: SEVERITIES.index(finding.severity))


def _checked(case: Case) -> tuple[list[Finding], ModalityEvidence | None]:
    """The findings about a case, and what kind of scan it is; None for a picture, and if it cannot be read."""
    try:
        volume = case.read_image()
    except Exception as error:  # any error concerns this case only
        return [Finding(case.name, "error", reason_of(error))], None
    findings: list[Finding] = []
    evidence: ModalityEvidence | None = None
    try:
        evidence = case.modality_evidence(volume) if volume.geometry.unit == "mm" else None
        doubts = (*_doubts(volume), *(evidence.disagreements() if evidence else ()))
        findings += [Finding(case.name, "warning", message) for message in doubts]
        findings += [Finding(case.name, "note", message) for message in _notes(case, volume)]
        reference = case.read_reference()
        if reference is not None and (share := labelled_share(reference.array != IGNORE)) < SCRIBBLED:
            message = f"the labels are scribbles: {share:.2%} of the pixels of the labelled slices"
            findings.append(Finding(case.name, "note", message))
        if reference is not None:
            findings += [Finding(case.name, "warning", message) for message in _doubts_about_labels(case, reference)]
    except Exception as error:  # as above
        findings.insert(0, Finding(case.name, "error", reason_of(error)))
    return findings, evidence


def _stored_otherwise(shifts: Mapping[str, float]) -> list[Finding]:
    """A warning for each CT whose offset from Hounsfield units differs from that of most others."""
    counts = Counter(shifts.values())
    if len(counts) < 2:
        return []
    usual = max(counts, key=lambda shift: (counts[shift], -shift))
    message = (
        "stored as Hounsfield units + {:g}, most others as Hounsfield units + {:g}, but a model shows all scans by one "
        "window; store them the same way"
    )
    return [Finding(name, "warning", message.format(shift, usual)) for name, shift in shifts.items() if shift != usual]


def _doubts(volume: Volume) -> Iterator[str]:
    parts = dict(zip(volume.sequences, volume.array, strict=True)) if volume.sequences else {"": volume.array}
    for name, voxels in parts.items():
        low, high = float(voxels.min()), float(voxels.max())
        if low == high:
            where = f"no signal in {name}" if name else "no signal"
            then = "it shows nothing" if name else "nothing will be segmented"
            yield f"{where}: every voxel has the value {low:g}, so {then}; check the export"


def _notes(case: Case, volume: Volume) -> Iterator[str]:
    in_one_file = volume.sequences and len(case.files) == 1
    for file in case.files:
        yield from read_notes(file, case.choice, len(volume.sequences) if in_one_file else 1)
    if 1 in volume.geometry.shape and volume.geometry.unit == "mm":
        yield f"only one slice, grid {volume.geometry.shape}; segmented like a picture"
    # voxels, 16-bit labels, and a second copy of the labels while they are written
    needed = volume.array.nbytes + 4 * int(np.prod(volume.geometry.shape))
    if needed > 2**30:
        yield (
            f"large scan: {volume.geometry.shape} voxels need about {needed / 2**30:.1f} GiB for temporary files in "
            f"{tempfile.gettempdir()}; TMPDIR names another folder"
        )


def _doubts_about_labels(case: Case, reference: LabelMap) -> Iterator[str]:
    if not (reference.array > 0).any():
        yield "the reference contains no label; this is right only if there is nothing to label"
    if not (reference.array != IGNORE).any():
        yield "the reference has no labelled slice; list the labelled ones in its .slices.json"
    if (doubt := doubt_about_values(reference.array, reference.labels)) is not None:
        yield doubt
    if isinstance(case.reference, LabelMap):
        stored = case.reference.geometry
    elif isinstance(case.reference, Path) and is_scan(case.reference):
        stored = read_geometry(case.reference)
    else:  # DICOM segmentations are placed on the grid of their scan
        return
    grid = reference.geometry
    if stored.shape != grid.shape or (distance := grid.corner_distance(stored)) > grid.spacing.min() / 2:
        yield "the labels are stored in another order of voxels than the image, and are turned"
    elif distance > 1e-3:
        yield (
            f"the grids of image and labels differ by {distance:.3g} {grid.unit}, less than half a "
            "voxel, and are treated as equal"
        )
