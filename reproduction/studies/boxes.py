"""What is one box per unlabelled picture worth?

    python -m reproduction.studies.boxes --data FOLDER --sets kvasir_seg busi

FOLDER holds one subfolder per data set of pictures (images/, labels/, dataset.json). Each picture that is neither
labelled nor tested gets a box around its label, taken from the reference: a person who makes no mistake. As with
`handful fit -i COHORT --boxes boxes.csv`, the backbone turns boxes into masks, and `auto` learns from the labelled
pictures and from these masks. The masks are compared with the reference as well. Labelled and tested pictures are those
of the plan `cohort`, in which the same pictures have no boxes. With `--marks outlines` the reference itself takes the
place of the masks: what boxes could be worth at best.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

import numpy as np

from handful.backbones.base import Backbone
from handful.cohort.boxes import with_boxes
from handful.data.boxes import COLUMNS
from handful.data.cases import Case
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Labels
from handful.evaluation.statistics import over_splits
from reproduction.configurations import build
from reproduction.markdown import interval, table
from reproduction.scoring import reference_of, score
from reproduction.study import Line, Split, Study, Trial, by_split

Marks = Literal["boxes", "outlines"]


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--shots", nargs="+", type=int, default=[4], help="labelled pictures")
    parser.add_argument("--cases", type=int, default=20, help="tested pictures a split, at most")
    parser.add_argument("--marks", nargs="+", default=list(get_args(Marks)), choices=get_args(Marks))
    parser.add_argument("--minutes", type=float, default=20, help="time of a fit")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class BoxesTrial(Trial):
    """One fit on labelled pictures and boxes."""

    marks: Marks
    shots: int
    split: int
    most_cases: int
    minutes: float

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, self.shots, self.split, self.most_cases)
        taken = {case.name for case in (*split.drawn, *split.unseen)}
        boxed = tuple(case for case in read_cohort(self.folder).cases if case.name not in taken)
        support = SupportSet(split.drawn, split.labels, unlabelled=UnlabelledScans.of(boxed))
        if self.marks == "boxes":
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "boxes.csv"
                write_boxes(file, boxed, split.labels)
                support = with_boxes(support, file, Slicer(), backbone)
        else:
            outlines = {case.name: reference_of(case) for case in boxed}
            support = replace(support, unlabelled=UnlabelledScans(boxed, labels=outlines))
        masks = [score(support.unlabelled.labels[case.name], case, split.labels) for case in boxed]
        wrapped = {"roi_margin": "auto", "largest_piece": "auto", "budget_minutes": self.minutes}
        began = time.monotonic()
        segmenter = build("auto", wrapped, self.split).fit(support, backbone)
        seconds = time.monotonic() - began
        found = [score(segmenter.predict(case.read_image()), case, split.labels) for case in split.unseen]
        return [
            self.key()
            | split.names()
            | {
                "dice": [round(one.dice, 5) for one in found],
                "masks": [round(one.dice, 5) for one in masks],
                "decisions": segmenter.decisions,
                "fit_s": round(seconds, 1),
            }
        ]


def write_boxes(file: Path, cases: Sequence[Case], labels: Labels) -> None:
    """A box around each label of each picture, from its reference."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for case in cases:
            [classes] = Slicer().view(case.read_image()).of(reference_of(case).array)
            for value in labels.values:
                rows, columns = np.nonzero(classes == value)
                if rows.size:
                    table.writerow([case.name, value, columns.min(), rows.min(), columns.max(), rows.max()])


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for split in arguments.splits:
        for name in arguments.sets:
            for shots in arguments.shots:
                for marks in arguments.marks:
                    yield BoxesTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        marks=marks,
                        shots=shots,
                        split=split,
                        most_cases=arguments.cases,
                        minutes=arguments.minutes,
                    )


def tables(lines: Iterable[Line]) -> str:
    """A row per data set and number of labelled pictures: Dice on tested pictures, and that of the masks."""
    lines = list(lines)
    rows = []
    for group in dict.fromkeys((line["set"], line["shots"], line["marks"]) for line in lines):
        own = [line for line in lines if (line["set"], line["shots"], line["marks"]) == group]
        name, shots, marks = group
        tested = [*by_split(own, "dice").values()]
        means = ", ".join(f"{fmean(one.values()):.3f}" for one in tested)
        masks = fmean(fmean(line["masks"]) for line in own)
        marked, pictures = (str(max(len(line[key]) for line in own)) for key in ("masks", "dice"))
        mean = over_splits(tested)
        dice = interval(mean) if len(tested) > 2 else f"{mean.mean:.3f}"  # two are too few for an interval
        rows.append((name, str(shots), f"{marked} {marks}", pictures, f"{masks:.3f}", dice, means))
    header = ("data set", "labelled", "others", "test pictures", "Dice of the masks", "Dice", "of each split")
    return table(header, rows)


STUDY = Study(about=__doc__, results="boxes", trials=trials, tables=tables)

if __name__ == "__main__":
    main()
