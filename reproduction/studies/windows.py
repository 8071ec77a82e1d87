"""Where is the crop placed in an unseen scan? The share of its labels that lie outside.

    python -m reproduction.studies.windows --data FOLDER --sets acdc drishti_gs openkbp

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). Crops are 1.4 times as large as the largest
labelled region, and are placed in two ways:

    features        where the slices look like labelled regions, as every method does
    similar slice   where the most similar labelled slices have their labels, as earlier versions did

Both ways have the same labelled and unseen cases. No method is fitted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

import numpy as np

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer, SliceView
from handful.methods.promptable import TransferredPrompts
from handful.methods.wrappers.roi_place import Locator
from handful.methods.wrappers.roi_window import Region, Windows, labelled_regions, region_of
from reproduction.markdown import table
from reproduction.study import Line, Split, Study, Trial

Way = Literal["similar slice", "features"]
MARGIN = 1.4
LOST = (0.01, 0.05, 0.2)
"""Shares of the labels outside of the crop, above which cases are counted."""
OUTLIERS = 0.02
"""Fraction of the boxes of similar slices that is ignored on each side."""


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--shots", nargs="+", type=int, default=[2, 4, 8], help="labelled cases")
    parser.add_argument("--cases", type=int, default=20, help="unseen cases a split, at most")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class WindowsTrial(Trial):
    """The crops of the unseen cases of a split, placed in one way."""

    way: Way
    shots: int
    split: int
    most_cases: int

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, self.shots, self.split, self.most_cases)
        support = split.support
        slicer = support.resolve(Slicer())
        windows = Windows.of(labelled_regions(support.facts, slicer), MARGIN)
        labelled = [scan.labelled() for scan in support.scans(slicer)]
        locator, similar = Locator.of(labelled), TransferredPrompts.of(labelled, "box", seed=0)
        lost, shift = [], []
        for case in split.unseen:
            stack = slicer.view(case.read_image())
            reference = case.read_reference(stack.volume.geometry)
            assert reference is not None
            truth = region_of(stack, reference)
            if truth is None:
                continue
            by_features = self.way == "features"
            window = (
                windows.around_mass(stack.grid, locator(stack)) if by_features else _around(windows, stack, similar)
            )
            inside, total = (np.count_nonzero(part) for part in (reference.array[window.block], reference.array))
            lost.append(round(1 - inside / total, 5))
            apart = np.hypot(*np.subtract(window.middle, truth.middle)) / max(window.sides)
            shift.append(round(float(apart), 4))
        return [self.key() | split.names() | {"lost": lost, "shift": shift}]


def _around(windows: Windows, stack: SliceView, similar: TransferredPrompts) -> Region:
    boxes = similar(stack).boxes
    assert boxes is not None
    given = (boxes != 0).any(dim=2)
    if not given.any():
        return windows.around_mass(stack.grid, np.zeros((1, 1)))  # the default position
    left, top, right, bottom = boxes[given].numpy().T
    rows, columns = (
        (np.quantile(low, OUTLIERS), np.quantile(high, 1 - OUTLIERS) + 1)
        for low, high in ((top, bottom), (left, right))
    )
    return windows.around(Region(stack.grid, float(rows[0]), float(columns[0]), float(rows[1]), float(columns[1])))


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for name in arguments.sets:
        for shots in arguments.shots:
            for split in arguments.splits:
                for way in get_args(Way):
                    yield WindowsTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        way=way,
                        shots=shots,
                        split=split,
                        most_cases=arguments.cases,
                    )


def tables(lines: Iterable[Line]) -> str:
    """A row per data set, number of labelled cases and way: what lies outside of the crop, over all splits."""
    lines = list(lines)
    groups = dict.fromkeys((line["set"], line["shots"], line["way"]) for line in lines)
    rows = []
    for group in sorted(groups, key=lambda one: (one[0], one[1], get_args(Way).index(one[2]))):
        own = [line for line in lines if (line["set"], line["shots"], line["way"]) == group]
        lost, shift = ([one for line in own for one in line[key]] for key in ("lost", "shift"))
        counts = (str(sum(one > limit for one in lost)) for limit in LOST)
        rows.append(
            (group[0], str(group[1]), group[2], str(len(lost)), *counts, f"{fmean(lost):.1%}", f"{fmean(shift):.2f}")
        )
    above = (f"more than {limit:.0%} outside" for limit in LOST)
    return table(("data set", "labelled", "placed by", "scans", *above, "mean outside", "mean shift"), rows)


STUDY = Study(about=__doc__, results="windows", trials=trials, tables=tables)

if __name__ == "__main__":
    main()
