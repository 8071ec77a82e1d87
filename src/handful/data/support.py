"""The labelled few that a method learns from, and what is known of them once they have been read."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from handful.data.cases import Case
from handful.data.label_limits import Limits, limits_of_labels, window_of_labels
from handful.data.modality import ModalityEvidence
from handful.data.pieces import fractions_around, shares_in_largest_piece
from handful.data.slice_grid import Block, SliceGrid, best_plane
from handful.data.slicing import Slicer, SliceView, WindowChoice, suggested_window, window_of_hounsfield
from handful.data.unlabelled import UnlabelledScans, naming
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError, UnsupportedInput
from handful.jobs.digests import digest_of
from handful.jobs.files import reserved

SAMPLE = 200_000
"""Voxels that percentiles are taken from, about."""
IN_MEMORY = 2**30
"""Bytes of scans that are held in memory at most; more are held in a temporary file."""
SCRIBBLED = 0.5
"""Share of labelled pixels below which the labels of a slice, or of the labelled slices of a case, are scribbles."""
ALIGNED = 64
"""Bytes that arrays in that file start at a multiple of."""


@dataclass(frozen=True, eq=False)
class SupportFacts:
    """What one labelled case is like, learned in a single reading of its image and its reference."""

    case: Case
    geometry: Geometry
    modality: str | None
    evidence: ModalityEvidence
    """What file, data set and voxels say about the kind of the scan."""
    window: WindowChoice
    """What a window of "auto" becomes for this image, whatever is labelled."""
    limits: dict[int, Limits]
    """Limits in HU of each label; empty for a scan that is not in Hounsfield units."""
    channels: int
    """1 for a grey image, 3 for one in colour, or the number of sequences."""
    sequences: tuple[str, ...]
    """Names of the sequences of an image that has several; else empty."""
    values: tuple[float, float]
    """0.5th and 99.5th percentile of the voxels."""
    bytes: int
    """Size of image and reference in memory."""
    image_sha256: str
    """Of the voxels as they are stored."""
    labels_sha256: str
    labelled: tuple[Bool[np.ndarray, " i"], Bool[np.ndarray, " j"], Bool[np.ndarray, " k"]]
    """For each array axis, which of its slices hold a labelled voxel, background counted."""
    voxels: dict[int, int]
    """Number of voxels of each value of the reference above 0."""
    complete: bool
    """Whether every voxel is labelled, if only as background."""
    labelled_share: float
    """Share of the voxels on the labelled slices that are labelled, of the plane in which it is largest."""
    in_largest_piece: dict[int, float]
    """Fraction of each label's voxels in its largest connected piece; unless `complete`, in that of their slice.

    Empty for scribbles, which do not show in how many pieces a label is.
    """
    around: dict[tuple[int, int], float]
    """{(value, other): fraction of the voxels around a label that have another one}; unless `complete`, within slices.

    Empty for scribbles.
    """
    extent: Block | None
    """The smallest box that holds all labels, for scribbles all strokes; None where there are none."""

    @classmethod
    def of(cls, case: Case, labels: Labels) -> SupportFacts:
        """Reads image and reference. LabelError where nothing is labelled."""
        volume = case.read_image()
        reference = require_reference(case, volume.geometry)
        valid_mask = reference.array != IGNORE
        values, counts = np.unique(reference.array, return_counts=True)
        labelled = valid_mask.any(axis=(1, 2)), valid_mask.any(axis=(0, 2)), valid_mask.any(axis=(0, 1))
        complete, share = bool(valid_mask.all()), labelled_share(valid_mask)
        parts = reference.array if complete else _along_labelled_slices(reference, labelled)
        inside = np.isin(reference.array, labels.values)
        evidence = case.modality_evidence(volume)
        shift = evidence.shift if evidence.is_ct else None
        return cls(
            case=case,
            geometry=volume.geometry,
            modality=volume.modality,
            evidence=evidence,
            window=suggested_window(volume),
            limits={} if shift is None else limits_of_labels(volume, reference, labels.values, shift),
            channels=volume.array.shape[0],
            sequences=volume.sequences,
            values=robust_range(volume),
            bytes=volume.array.nbytes + reference.array.nbytes,
            image_sha256=digest_of(volume.array),
            labels_sha256=digest_of(reference.array),
            labelled=labelled,
            voxels={int(value): int(count) for value, count in zip(values, counts, strict=True) if value > 0},
            complete=complete,
            labelled_share=share,
            in_largest_piece={}
            if share < SCRIBBLED
            else shares_in_largest_piece(parts, labels.values, per_slice=not complete),
            around={} if share < SCRIBBLED else fractions_around(parts, labels.values, per_slice=not complete),
            extent=_extent(valid_mask if share < SCRIBBLED and inside.any() else inside),
        )

    @property
    def scribbled(self) -> bool:
        """Whether the labels are scribbles: most pixels of the labelled slices are unlabelled."""
        return self.labelled_share < SCRIBBLED

    def labelled_slices(self, slicer: Slicer) -> int:
        """Number of slices, as the slicer cuts them, on which somebody labelled something."""
        return int(self.labelled[slicer.grid(self.geometry).axis].sum())


@dataclass(frozen=True, eq=False)
class LabelledSlices:
    """The slices of one case on which somebody labelled something."""

    case: str
    patient: str | None
    grid: SliceGrid
    """All slices of the case."""
    index: tuple[int, ...]
    """Number of each labelled slice among the slices of the case."""
    slices: Float[Tensor, "n c h w"]
    classes: Int[Tensor, "n h w"]
    """0 for background and for unlabelled pixels, else 1 + the index of the label."""
    labels: int
    """Number of labels."""
    valid_mask: Bool[Tensor, "n h w"]
    """False where nobody labelled: neither background nor label."""

    @property
    def scribbled(self) -> Bool[Tensor, " n"]:
        """Which slices have scribbles, not whole masks."""
        return self.valid_mask.flatten(1).float().mean(dim=1) < SCRIBBLED

    @property
    def count(self) -> int:
        """Number of slices of the case."""
        return len(self.grid)

    def masks(self, rows: slice | Sequence[int] = slice(None)) -> Float[Tensor, "m k h w"]:
        """1 inside a label, else 0, on some of the slices. Take a few at a time, since each label needs memory."""
        return (self.classes[rows][:, None] == self._numbers).float()

    def present(self) -> Bool[Tensor, "n k"]:
        """Which label is on which slice."""
        held = [(one[None] == self._numbers).flatten(1).any(dim=1) for one in self.classes]
        return torch.stack(held) if held else torch.zeros(0, self.labels, dtype=torch.bool)

    @property
    def _numbers(self) -> Int[Tensor, "k 1 1"]:
        """The class number of each label."""
        return torch.arange(1, self.labels + 1, dtype=self.classes.dtype)[:, None, None]


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """One case of a support in memory: its slices and the values of its reference on them."""

    facts: SupportFacts
    view: SliceView
    reference: LabelMap
    labels: Labels

    @property
    def classes(self) -> NDArray[Any]:
        """Values of the reference (n, h, w), IGNORE where nobody labelled."""
        return self.view.of(self.reference.array)

    def labelled(self) -> LabelledSlices:
        """The slices on which somebody labelled something."""
        classes = self.classes
        index = np.flatnonzero((classes != IGNORE).any(axis=(1, 2)))
        chosen = classes[index]
        numbers = np.zeros(chosen.shape, dtype=np.int16)
        for number, value in enumerate(self.labels.values, start=1):
            numbers[chosen == value] = number
        return LabelledSlices(
            case=self.facts.case.name,
            patient=self.facts.case.patient,
            grid=self.view.grid,
            index=tuple(index.tolist()),
            slices=self.view.take(index.tolist()),
            classes=torch.from_numpy(numbers),
            labels=len(self.labels),
            valid_mask=torch.from_numpy(chosen != IGNORE),
        )


@dataclass(frozen=True)
class SupportSet:
    """The labelled few: cases whose references, verified, hold every one of `labels`.

    Other values that a case's own labels know count as background. Each case is read once when the set is made, and
    `facts` keeps what that taught; only `scans` and `slices` read voxels again.
    """

    cases: tuple[Case, ...]
    labels: Labels
    known_facts: tuple[SupportFacts, ...] | None = field(default=None, repr=False, compare=False)
    """Facts of the cases where they are known already, so that they are not read for them again."""
    unlabelled: UnlabelledScans = field(default=UnlabelledScans(), compare=False)
    """Further scans of the cohort, for methods that learn from images without labels as well."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError("the support set is empty; give at least one labelled case")
        _require_same_sequences(self.facts)
        missing = [
            f"{name!r} ({value})"
            for value, name in self.labels.as_dict().items()
            if not any(value in facts.voxels for facts in self.facts)
        ]
        if missing:
            names = ", ".join(case.name for case in self.cases)
            raise LabelError(
                f"no support slice holds the label {', '.join(missing)} (cases {names}); "
                "add a case that shows it, or name only the other labels with --labels"
            )

    @classmethod
    def of_readable(cls, cases: Sequence[Case], labels: Labels) -> tuple[SupportSet, dict[str, Exception]]:
        """The support set of those cases that can be used, and the errors of the others by name.

        Raises the first error if no case can be used.
        """
        facts: list[SupportFacts] = []
        errors: dict[str, Exception] = {}
        for case in cases:
            try:
                facts.append(SupportFacts.of(case, labels))
            except Exception as error:  # any error concerns this case only
                errors[case.name] = error
        if errors and not facts:
            raise next(iter(errors.values()))
        return cls(tuple(one.case for one in facts), labels, known_facts=tuple(facts)), errors

    @cached_property
    def facts(self) -> tuple[SupportFacts, ...]:
        """What each case is like."""
        return self.known_facts or tuple(SupportFacts.of(case, self.labels) for case in self.cases)

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences, which all cases have in the same order; empty for grey and colour scans."""
        return self.facts[0].sequences

    @property
    def scribbled(self) -> tuple[SupportFacts, ...]:
        """The cases whose labels are scribbles."""
        return tuple(facts for facts in self.facts if facts.scribbled)

    def with_whole_masks(self, what: str = "this method") -> SupportSet:
        """The cases whose labels are whole masks, for methods that copy or prompt with masks.

        Raises LabelError if some label is in none of them; `what` needs them, in the words of its message.
        """
        if not self.scribbled:
            return self
        whole = tuple(facts for facts in self.facts if not facts.scribbled)
        for value, name in self.labels.as_dict().items():
            if not any(value in facts.voxels for facts in whole):
                raise LabelError(
                    f"{what} needs whole masks, but {len(self.scribbled)} of {len(self.facts)} cases have scribbles, "
                    f"and no other one has the label {name!r}; outline it in one case. unet and self-training learn "
                    "from scribbles"
                )
        return replace(self, cases=tuple(facts.case for facts in whole), known_facts=whole)

    def without_names(self) -> SupportSet:
        """The same cases with numbers as their names and as those of their patients, in the order of the cases."""
        facts = tuple(
            replace(facts, case=replace(facts.case, name=f"case-{number}", patient=patient))
            for number, (facts, patient) in enumerate(zip(self.facts, self._patients(), strict=True), start=1)
        )
        cases = tuple(one.case for one in facts)
        return replace(self, cases=cases, known_facts=facts, unlabelled=self.unlabelled.without_names())

    def _patients(self) -> list[str | None]:
        """The number of the patient of each case, as text; None for cases that are their own patient."""
        numbers: dict[str | None, str | None] = {None: None}
        for case in self.cases:
            numbers.setdefault(case.patient, f"patient-{len(numbers)}")
        return [numbers[case.patient] for case in self.cases]

    def resolve(self, slicer: Slicer) -> Slicer:
        """The slicer with every "auto" made concrete: what suits most of the images.

        A CT in Hounsfield units is shown by the window of its labels, see `window_of_labels`. Of scans with several
        sequences, those that are used are named. Raises SettingsError if the scans lack one that is named.
        """
        resolved = slicer.resolve_among((facts.geometry, facts.window) for facts in self.facts)
        return replace(self._with_window(slicer, resolved), sequences=self._sequences_of(slicer))

    def _sequences_of(self, slicer: Slicer) -> tuple[str, ...]:
        if self.sequences:
            return tuple(self.sequences[number] for number in slicer.channels_of(self.sequences))
        if slicer.named_sequences and slicer.sequences != ("0",):
            raise SettingsError(
                f"sequences = {','.join(slicer.sequences)}, but the scans have one sequence; leave sequences out"
            )
        return ()

    def _with_window(self, slicer: Slicer, resolved: Slicer) -> Slicer:
        """The resolved slicer with the window of the labels of a CT, if the window is "auto"."""
        alike = [facts for facts in self.facts if facts.window == resolved.window and facts.limits]
        limits = window_of_labels(facts.limits for facts in alike)
        if slicer.window != "auto" or limits is None:
            return resolved
        shift = alike[0].evidence.shift
        assert shift is not None
        return replace(resolved, window=window_of_hounsfield(*limits, shift))

    def scans(self, slicer: Slicer) -> Iterator[LabelledScan]:
        """The cases, one volume in memory at a time."""
        slicer = self.resolve(slicer)
        for facts in self.facts:
            volume = facts.case.read_image()
            reference = require_reference(facts.case, volume.geometry)
            yield LabelledScan(facts, slicer.view(volume), reference, self.labels)

    def unlabelled_views(self, slicer: Slicer) -> Iterator[tuple[str, SliceView]]:
        """Name and slices of each unlabelled scan, one volume in memory at a time.

        Raises UnsupportedInput, with the name of the case, for a scan without the sequences of the labelled ones.
        """
        slicer = self.resolve(slicer)
        for name, volume in self.unlabelled:
            with naming(name):
                if volume.sequences and not self.sequences:
                    raise UnsupportedInput(
                        f"it has the sequences {', '.join(volume.sequences)}, and the labelled scans have one; put it "
                        "into a cohort of its own"
                    )
                view = slicer.view(volume)
            yield name, view

    def slices(self, slicer: Slicer) -> Iterator[LabelledSlices]:
        """The labelled slices, case by case, so that one volume is in memory at a time."""
        return (scan.labelled() for scan in self.scans(slicer))

    @contextmanager
    def held(self) -> Iterator[SupportSet]:
        """The same support for several readings: each file is read once more, and then never again.

        Up to IN_MEMORY bytes are held in memory, more in a temporary file that has no name and ends with the process.
        """
        if not any(facts.case.is_in_files for facts in self.facts):
            yield self
            return
        with tempfile.TemporaryFile() as file:
            keep = _to_file(file) if sum(facts.bytes for facts in self.facts) > IN_MEMORY else _to_memory
            held = tuple(_held(facts, keep) for facts in self.facts)
            yield replace(self, cases=tuple(facts.case for facts in held), known_facts=held)


@dataclass(frozen=True)
class AcceptedSlices(SupportSet):
    """Labelled slices that join a support: they need not hold every label, for the others do."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise InputError("no accepted slices; accept some first")


def _require_same_sequences(facts: Sequence[SupportFacts]) -> None:
    """Raise InputError unless all cases have the same sequences in the same order."""
    first = facts[0]
    for one in facts:
        if one.sequences != first.sequences:
            here, there = (", ".join(part.sequences) or "one channel" for part in (one, first))
            raise InputError(
                f"case {one.case.name!r} has {here}, and case {first.case.name!r} has {there}; "
                "put scans with other sequences into a cohort of their own"
            )


def robust_range(volume: Volume) -> tuple[float, float]:
    """0.5th and 99.5th percentile of voxels on a regular lattice."""
    step = max(1, math.ceil((volume.array.size / SAMPLE) ** (1 / 3)))
    low, high = np.percentile(volume.array[:, ::step, ::step, ::step], (0.5, 99.5)).tolist()
    return float(low), float(high)


def require_reference(case: Case, geometry: Geometry | None = None) -> LabelMap:
    """The reference of a support case; LabelError where there is none, or nothing is labelled on it.

    `geometry` is that of the image, where it is known.
    """
    reference = case.read_reference(geometry)
    if reference is None:
        raise LabelError(f"support case {case.name!r} has no labels; label it or leave it out")
    if not (reference.array != IGNORE).any():
        raise LabelError(f"support case {case.name!r} has no labelled slice; list some in its .slices.json")
    return reference


def labelled_share(valid_mask: NDArray[np.bool_]) -> float:
    """Share of the voxels (i, j, k) on the labelled slices that are labelled, of the plane in which it is largest.

    Planes in which a slice is a single line of voxels do not count. 1 if no voxel is labelled.
    """
    found = []
    for axis in range(3):
        size = valid_mask.size // valid_mask.shape[axis]
        others = tuple(length for place, length in enumerate(valid_mask.shape) if place != axis)
        if min(others) > 1 or max(valid_mask.shape) == 1:
            counts = np.count_nonzero(valid_mask, axis=tuple(place for place in range(3) if place != axis))
            found.append(float(counts.sum() / (size * max(1, np.count_nonzero(counts)))))
    return max(found, default=1.0)


def _along_labelled_slices(reference: LabelMap, labelled: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    """The array with the axis first whose slices somebody labelled; `labelled` are those along each axis."""
    shares = [float(slices.mean()) for slices in labelled]
    usual = SliceGrid(reference.geometry, best_plane(reference.geometry)).axis
    return np.moveaxis(reference.array, usual if min(shares) == 1 else int(np.argmin(shares)), 0)


def _extent(inside: Bool[np.ndarray, "i j k"]) -> Block | None:
    ranges = []
    for others in ((1, 2), (0, 2), (0, 1)):
        held = np.flatnonzero(inside.any(axis=others))
        if not held.size:
            return None
        ranges.append(slice(int(held[0]), int(held[-1]) + 1))
    i, j, k = ranges
    return i, j, k


_Keep = Callable[[NDArray[Any]], NDArray[Any]]


def _held(facts: SupportFacts, keep: _Keep) -> SupportFacts:
    """The same case with its voxels at hand."""
    volume = facts.case.read_image()
    reference = require_reference(facts.case, volume.geometry)
    image = replace(volume, array=keep(volume.array))
    labels = replace(reference, array=keep(reference.array))
    return replace(facts, case=replace(facts.case, image=image, reference=labels))


def _to_memory(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _to_file(file: IO[bytes]) -> _Keep:
    """Appends arrays to the file and gives them back as a part of it, in the memory order they had."""

    def keep(array: NDArray[Any]) -> NDArray[Any]:
        order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
        offset = -(-file.seek(0, 2) // ALIGNED) * ALIGNED
        kept = reserved(file, array.dtype, array.shape, offset, order)
        kept[...] = array
        return kept

    return keep
