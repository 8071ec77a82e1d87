"""The decision whether to crop scans to the labelled region, and how wide, from the support set and without any fit.

Each labelled case is left out in turn, with the others of its patient (each labelled slice, if there is one case), and
its labels are compared with a window of the usual size where the rest finds its region. Cases without any label say
nothing about size and place, and are not left out. A margin is safe if no left-out case loses more than 1 % of its
labelled voxels; the smallest safe margin is used. Windows are placed by features of small pictures, so this takes
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handful.data.slice_grid import evenly_spaced
from handful.data.slicing import Slicer
from handful.data.support import SupportFacts, SupportSet
from handful.data.volume import IGNORE
from handful.methods.wrappers.roi_place import (
    SLICES,
    Features,
    Locator,
    Moments,
    features_of,
    moments_and_features,
    on_slice,
)
from handful.methods.wrappers.roi_window import Region, Windows, labelled_region, labelled_regions

MARGINS = (1.4, 1.7, 2.0, 2.5)
"""Margins that are tried, the smallest first."""
LEAST_OF_ONE_PATIENT = 2.0
"""Smallest margin for cases of a single patient, which do not show how much organs vary between patients."""
LOST = 0.01
"""Maximum fraction of a left-out case's labelled voxels outside of its window."""
MOST_LEFT_OUT = 20
"""Largest number of patients (or slices) that are left out in turn."""
MOST_OF_SLICE = 0.7
"""Maximum side of a window as a fraction of the slice's; a larger window is not worth its risk."""


@dataclass(frozen=True)
class Decision:
    """Whether to crop."""

    margin: float | None
    """Side of the window divided by that of the labelled region; None for whole slices."""
    reason: str
    """One sentence for the user."""
    locator: Locator | None = None
    """What places windows, where it is known already."""


def region_is_large(support: SupportSet, slicer: Slicer) -> Decision | None:
    """The decision not to crop if it needs no reading; None if the scans have to be read.

    That is the case if even the smallest window is most of a slice, and if some labels are scribbles.
    """
    if support.scribbled:
        return Decision(None, "no crop: scribbles do not show how far the labels reach")
    share = _share(support, slicer)
    if _least(support) * share <= MOST_OF_SLICE:
        return None
    return Decision(None, f"no crop: the labelled region spans {share:.0%} of a slice")


def decide_margin(support: SupportSet, slicer: Slicer) -> Decision:
    """The smallest safe margin for a method that is fitted on this support set.

    `slicer` must be resolved. Each case is read.
    """
    share, least = _share(support, slicer), _least(support)
    cases = len(_with_labels(support))
    parts = _slices(support, slicer) if cases == 1 else _cases(support, slicer)
    if len(parts.left_out) < 2:
        return Decision(None, "no crop: a single labelled slice does not show how much positions vary")
    masses = [parts.mass_of(part) for part in parts.left_out]
    for margin in (candidate for candidate in MARGINS if candidate >= least and candidate * share <= MOST_OF_SLICE):
        worst = max(parts.lost(part, mass, margin) for part, mass in zip(parts.left_out, masses, strict=True))
        if worst <= LOST:
            return Decision(
                margin,
                f"crop to {margin:g} times the labelled region, which spans {share:.0%} of a slice: "
                f"{_each(support, parts)}, left out in turn, keeps {1 - worst:.0%} of its labels",
                parts.locator if cases > 1 else None,
            )
    return Decision(
        None, f"no crop: the labelled region spans {share:.0%} of a slice, but is not found in every case left out"
    )


def _each(support: SupportSet, parts: _Parts) -> str:
    cases = len(_with_labels(support))
    if cases == 1:
        return "each labelled slice"
    return "each labelled case" if len(parts.left_out) == cases else f"each of {len(parts.left_out)} labelled cases"


def _share(support: SupportSet, slicer: Slicer) -> float:
    """The longest side of a labelled region, as a fraction of its slice."""
    regions = labelled_regions(support.facts, slicer)
    return max(max(region.sides) / max(region.grid.size) for region in regions)


def _least(support: SupportSet) -> float:
    return MARGINS[0] if len({_patient(facts) for facts in _with_labels(support)}) > 1 else LEAST_OF_ONE_PATIENT


def _with_labels(support: SupportSet) -> list[SupportFacts]:
    """The cases that have labels; the others show neither a size nor a place."""
    return [facts for facts in support.facts if facts.extent is not None]


def _patient(facts: SupportFacts) -> str:
    return facts.case.patient_key


def _case_name(facts: SupportFacts) -> str:
    return facts.case.name


@dataclass(frozen=True, eq=False)
class _Part:
    """A case (or a slice of the only case) that is left out in turn."""

    region: Region
    moments: Moments
    features: Features
    """Of the slices in which a window is placed."""
    labelled: NDArray[np.int64]
    """Number of labelled voxels at each row and column."""
    patient: str
    """Parts of one patient are left out together."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """What is left out in turn, and what never is."""

    left_out: list[_Part]
    regions: list[Region]
    """Of the other cases."""
    moments: list[Moments]
    """Of the other cases (or of slices of the only case)."""

    @property
    def locator(self) -> Locator:
        """That of everything."""
        return Locator(Moments.joined([*(part.moments for part in self.left_out), *self.moments]))

    def mass_of(self, left: _Part) -> NDArray[np.floating]:
        """The mass in a part by which the others place its window."""
        others = [part.moments for part in self.left_out if part.patient != left.patient]
        locator = Locator(Moments.joined([*others, *self.moments]))
        return on_slice(locator.mass(left.features), left.region.grid.size)

    def lost(self, left: _Part, mass: NDArray[np.floating], margin: float) -> float:
        """Fraction of the labelled voxels of a part outside of the window where the others find it."""
        total = int(left.labelled.sum())
        if not total:
            return 0.0
        windows = Windows.of([*(part.region for part in self.left_out), *self.regions], margin)
        window = windows.around_mass(left.region.grid, mass)
        inside = left.labelled[int(window.top) : int(window.bottom), int(window.left) : int(window.right)]
        return 1.0 - int(inside.sum()) / total


def _cases(support: SupportSet, slicer: Slicer) -> _Parts:
    parts, labelled = _Parts([], [], []), _with_labels(support)
    name_of = _patient if len({_patient(facts) for facts in labelled}) > 1 else _case_name
    each = list(dict.fromkeys(name_of(facts) for facts in labelled))
    chosen = {each[number] for number in evenly_spaced(len(each), MOST_LEFT_OUT)}
    for scan in support.scans(slicer):
        region, name = labelled_region(scan.facts, slicer), name_of(scan.facts)
        moments, features = moments_and_features(scan)
        if region and name in chosen:
            parts.left_out.append(_Part(region, moments, features, _count(scan.classes), name))
        else:
            parts.regions.extend([region] if region else [])
            parts.moments[:] = [Moments.joined([*parts.moments, moments])]
    return parts


def _slices(support: SupportSet, slicer: Slicer) -> _Parts:
    [one] = _with_labels(support)
    scan = next(scan for scan in support.scans(slicer) if scan.facts.case.name == one.case.name)
    labelled, classes, parts = scan.labelled(), scan.classes, _Parts([], [], [])
    shows = [row for row, number in enumerate(labelled.index) if _count(classes[number][None]).any()]
    chosen = {shows[number] for number in evenly_spaced(len(shows), MOST_LEFT_OUT)}
    for row in sorted({*evenly_spaced(len(labelled.index), SLICES), *chosen}):
        features = features_of(labelled.slices[[row]])
        moments = Moments.of(features, labelled, [row])
        if row not in chosen:
            parts.moments[:] = [Moments.joined([*parts.moments, moments])]
            continue
        counts = _count(classes[labelled.index[row]][None])
        rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
        region = Region(scan.view.grid, int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        parts.left_out.append(_Part(region, moments, features, counts, patient=str(row)))
    return parts


def _count(classes: NDArray[np.generic]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.count_nonzero((classes != 0) & (classes != IGNORE), axis=0)
    return counts
