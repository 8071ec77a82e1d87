"""Cases and what is made of them: cohorts, the labelled few a method learns from, and what is wrong with a case."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from handful.data.formats import read_geometry, read_label_map, read_notes, read_volume, require_known
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume, require_finite
from handful.errors import HandfulError, InputError, LabelError, SettingsError
from handful.jobs.progress import Report, silent


@dataclass(frozen=True)
class Case:
    """One image, in memory or in a file, with the reference somebody drew on it, if any."""

    name: str
    image: Volume | Path
    reference: LabelMap | Path | None = None
    labels: Labels | None = None
    """The labels the reference may hold; None takes those it does hold."""
    patient: str | None = None
    """Who was scanned, where one person has several cases; None takes each case for its own patient."""
    modality: str | None = None
    ignore: int | None = None
    """Value of unlabelled voxels in the reference's file."""

    def read_image(self) -> Volume:
        """The image, verified."""
        volume = self.image if isinstance(self.image, Volume) else read_volume(self.image)
        require_finite(volume.array, f"case {self.name!r}")
        return replace(volume, modality=self.modality or volume.modality)

    def read_reference(self) -> LabelMap | None:
        """The reference, verified and on the image's very grid; None where there is none.

        Raises GeometryMismatch where its grid is another one (headers may differ by half a voxel), LabelError where it
        holds other values than `labels`.
        """
        if self.reference is None:
            return None
        if isinstance(self.reference, LabelMap):
            known = self.reference
            require_known(known.array, self.labels or known.labels, f"case {self.name!r}")
        else:
            known = read_label_map(self.reference, self.labels, self.ignore)
        geometry = self.read_geometry()
        what = f"case {self.name!r}: image and labels" + _beside(self.image, self.reference)
        geometry.require_same(known.geometry, what)
        return LabelMap(known.array, geometry, self.labels or known.labels)

    def read_geometry(self) -> Geometry:
        """The image's grid, without its voxels."""
        return self.image.geometry if isinstance(self.image, Volume) else read_geometry(self.image)


@dataclass(frozen=True)
class Cohort:
    """Cases of one task."""

    cases: tuple[Case, ...]
    labels: Labels | None
    """None where no case has a reference."""
    name: str

    def __post_init__(self) -> None:
        names = [case.name for case in self.cases]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"cohort {self.name!r}: several cases called {', '.join(double)}; give each its own name")

    def draw(self, shots: int, seed: int) -> tuple[list[Case], list[Case]]:
        """`shots` labelled cases of different patients, and all cases of the other patients.

        The draw depends on seed and names only, never on the order of cases; a larger draw contains the smaller one.
        Further cases of a drawn patient are in neither list: they would leak.
        """
        groups: dict[str, list[Case]] = {}
        for case in sorted(self.cases, key=lambda case: _rank(case.name, seed)):
            groups.setdefault(_patient(case), []).append(case)
        labelled = {who: [c for c in cases if c.reference is not None] for who, cases in groups.items()}
        candidates = sorted((who for who in groups if labelled[who]), key=lambda who: _rank(who, seed))
        if not 1 <= shots <= len(candidates):
            raise SettingsError(
                f"cohort {self.name!r}: cannot draw {shots} of {len(candidates)} labelled patients; ask for fewer"
            )
        drawn = candidates[:shots]
        rest = [case for case in self.cases if _patient(case) not in drawn]
        return [labelled[who][0] for who in drawn], sorted(rest, key=lambda case: case.name)


@dataclass(frozen=True, eq=False)
class LabelledSlices:
    """The slices of one case on which somebody labelled something."""

    case: str
    patient: str | None
    index: tuple[int, ...]
    """Number of each slice among the `count` slices of the case."""
    count: int
    slices: Float[Tensor, "n c h w"]
    masks: Float[Tensor, "n k h w"]
    """1 inside a label, else 0."""
    known: Bool[Tensor, "n h w"]
    """False where nobody labelled: neither background nor label."""


@dataclass(frozen=True)
class SupportSet:
    """The labelled few: cases whose references, verified, hold every one of `labels`.

    Other values that a case's own labels know count as background.
    """

    cases: tuple[Case, ...]
    labels: Labels

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError("the support set is empty; give at least one labelled case")
        found: set[int] = set()
        for case in self.cases:
            reference = _require_reference(case)
            found.update(np.unique(reference.array).tolist())
        missing = [f"{name!r} ({value})" for value, name in self.labels.as_dict().items() if value not in found]
        if missing:
            names = ", ".join(case.name for case in self.cases)
            raise LabelError(
                f"no support slice holds the label {', '.join(missing)} (cases {names}); "
                "add a case that shows it, or leave it out of the labels"
            )

    def images(self) -> Iterator[Volume]:
        """The images, one at a time."""
        return (case.read_image() for case in self.cases)

    def slices(self, slicer: Slicer) -> Iterator[LabelledSlices]:
        """The labelled slices, case by case, so that one volume is in memory at a time."""
        slicer = slicer.resolve(self.images())
        for case in self.cases:
            view, reference = slicer.view(case.read_image()), _require_reference(case)
            classes = view.of(reference.array)
            index = np.flatnonzero((classes != IGNORE).any(axis=(1, 2)))
            chosen = classes[index]
            masks = np.stack([chosen == value for value in self.labels.values], axis=1)
            yield LabelledSlices(
                case=case.name,
                patient=case.patient,
                index=tuple(index.tolist()),
                count=len(view),
                slices=view.take(index.tolist()),
                masks=torch.from_numpy(masks.astype(np.float32)),
                known=torch.from_numpy(chosen != IGNORE),
            )


@dataclass(frozen=True)
class AcceptedSlices(SupportSet):
    """Labelled slices that join a support: they need not hold every label, for the others do."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError("no accepted slices; accept some first")


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


def _require_reference(case: Case) -> LabelMap:
    reference = case.read_reference()
    if reference is None:
        raise LabelError(f"support case {case.name!r} has no labels; label it or leave it out")
    if not (reference.array != IGNORE).any():
        raise LabelError(f"support case {case.name!r} has no labelled slice; list some in its .slices.json")
    return reference


def _patient(case: Case) -> str:
    return case.name if case.patient is None else f"patient {case.patient}"


def _rank(name: str, seed: int) -> bytes:
    """A position in the seed's order of all names there could be."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _beside(image: Volume | Path, reference: LabelMap | Path) -> str:
    """Both file names, where there are files."""
    files = [str(part) for part in (image, reference) if isinstance(part, Path)]
    return f" ({', '.join(files)})" if files else ""
