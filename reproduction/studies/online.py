"""Does learning while correcting save prompts? Scans in sequence, with a simulated annotator.

    python -m reproduction.studies.online --data FOLDER --sets busi kvasir_seg --sides frozen refresh auxiliary

A split takes scans with a reference in a random order. The annotator clicks in the middle of each label on each slice,
then in the middle of the largest error, until the Dice is at least 0.90 or 10 prompts are used up. A mask that does not
get there is painted. Each slice is then accepted. Sides:

    frozen      the backbone alone
    refresh     FATE proposes a mask first, from the scans that were accepted so far; it has no training
    auxiliary   an auxiliary network learns from each accepted object

All sides of a split have the same scans in the same order, so differences are paired, scan by scan. Scans are those at
even places by name; settings were chosen on scans at odd places. A proposal that is good enough takes no prompt. An
object that does not reach a Dice counts as 10 prompts, and as a failure. Intervals are the package's, over splits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from handful.backbones.base import Backbone
from handful.data.cases import Case
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels
from handful.evaluation.statistics import differences, over_splits
from handful.methods.auxiliary.learner import Auxiliary
from handful.methods.base import Segmenter
from handful.methods.online import OnlineLearner
from handful.prompts.simulation import CAREFUL
from handful.session.session import Session, SessionConfig
from handful.session.simulated_annotator import annotate_scan
from reproduction.configurations import build
from reproduction.markdown import signed, table
from reproduction.scoring import reference_of
from reproduction.study import Line, Study, Trial

SIDES = ("frozen", "refresh", "auxiliary")
LEVELS = (0.85, 0.90)
MOST_PROMPTS = 10
QUIET = SessionConfig(background=False)


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--scans", type=int, default=30, help="scans in sequence")
    parser.add_argument("--slices", type=int, help="slices to annotate per scan, at most; default: all with a label")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class OnlineTrial(Trial):
    """One sequence of scans."""

    side: str
    scans: int
    slices: int | None
    split: int

    def results(self, backbone: Backbone) -> list[Line]:
        cohort = read_cohort(self.folder)
        assert cohort.labels is not None, self.folder
        cases = sorted((case for case in cohort.cases if case.reference is not None), key=lambda case: case.name)[::2]
        order = np.random.default_rng([self.split, 30]).permutation(len(cases))[: self.scans]
        began = time.process_time()
        sequence = Sequence(backbone, cohort.labels, self.side, self.slices, self.split)
        rows = [sequence.annotate(cases[number]) for number in order]
        line = self.key() | {
            "cases": [cases[number].name for number in order],
            "at_start": [[round(dice, 4) for dice in row.start] for row in rows],
            "after_prompts": [[[round(dice, 4) for dice in after] for after in row.after] for row in rows],
            "dice_first": [round(fmean(after[0] for after in row.after), 4) for row in rows],
            "core_s": round(time.process_time() - began, 1),
        }
        return [line]


@dataclass(frozen=True)
class Annotated:
    """The objects of one scan."""

    start: tuple[float, ...]
    """Dice of each object before the first prompt."""
    after: tuple[tuple[float, ...], ...]
    """Dice of each object after 1, 2, … prompts."""


class Sequence:
    """What one annotator and one side go through, scan by scan."""

    def __init__(self, backbone: Backbone, labels: Labels, side: str, slices: int | None, split: int) -> None:
        self.backbone, self.labels, self.side, self.slices, self.split = backbone, labels, side, slices, split
        self.learner: OnlineLearner | None = Auxiliary() if side == "auxiliary" else None
        self.segmenter: Segmenter | None = None

    def annotate(self, case: Case) -> Annotated:
        """Segment one scan, and learn from it for the next one."""
        volume, reference = case.read_image(), reference_of(case)
        source = self.segmenter or self.backbone
        labels = None if self.segmenter else self.labels
        with Session(volume, source, labels, config=QUIET, learner=self.learner) as session:
            if self.segmenter is not None:
                session.propose()
            start = _dice_of_objects(session, reference)
            result = annotate_scan(
                session, reference, MOST_PROMPTS, self.slices, CAREFUL, self.split, stop_at=max(LEVELS)
            )
            self.learner = session.learner
            if self.side == "refresh":
                self.segmenter = self._refreshed(session, case.name)
        after = tuple(tuple(row) for row in result.dice.tolist())
        return Annotated(tuple(start[region] for region in result.regions), after)

    def _refreshed(self, session: Session, name: str) -> Segmenter:
        if self.segmenter is not None:
            return session.refresh(self.segmenter, name)
        return build("fate", {}, 0).fit(SupportSet((session.case(name),), self.labels), self.backbone)


def _dice_of_objects(session: Session, reference: LabelMap) -> dict[tuple[int, int], float]:
    truth = session.slicer.view(session.volume).of(reference.array)
    objects = [(n, value) for n in range(len(session)) for value in session.labels.values if (truth[n] == value).any()]
    return {(n, value): _dice(session.mask_of(n, value), truth[n] == value) for n, value in objects}


def _dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    """Split by split."""
    for split in arguments.splits:
        for name in arguments.sets:
            for side in arguments.sides:
                yield OnlineTrial(
                    data=arguments.data,
                    set=name,
                    digest=digest,
                    side=side,
                    scans=arguments.scans,
                    slices=arguments.slices,
                    split=split,
                )


def prompts_to(start: float, after: Iterable[float], level: float) -> int | None:
    """The number of prompts after which a Dice of `level` is reached; 0 if at the start; None if never."""
    return next((prompts for prompts, dice in enumerate([start, *after]) if dice >= level), None)


def _per_scan(line: Line, of: Callable[[int | None], float], level: float, from_scan: int) -> dict[str, float]:
    """{scan: mean over its objects} of the scans from `from_scan` on."""
    rows = zip(line["cases"], line["at_start"], line["after_prompts"], strict=True)
    means = {
        name: fmean(of(prompts_to(start, after, level)) for start, after in zip(starts, afters, strict=True))
        for name, starts, afters in rows
    }
    return dict(list(means.items())[from_scan:])


def _counted(prompts: int | None) -> float:
    return MOST_PROMPTS if prompts is None else prompts


def _failed(prompts: int | None) -> float:
    return float(prompts is None)


def tables(lines: list[Line]) -> str:
    """One row per set and side: prompts and failures over all scans, and over the second half of the sequence."""
    heads = ["data set", "side", "scans", "splits", "second half only"]
    heads += [f"prompts to {level:.2f}" for level in LEVELS] + [f"failures at {level:.2f}" for level in LEVELS]
    heads += [f"prompts to {level:.2f} − frozen" for level in LEVELS]
    rows = []
    settings = dict.fromkeys((line["set"], line["scans"], line["slices"], line["digest"]) for line in lines)
    for group in settings:
        own = [line for line in lines if (line["set"], line["scans"], line["slices"], line["digest"]) == group]
        scans = max(len(line["cases"]) for line in own)  # a data set may have fewer than were asked for
        for side in (side for side in SIDES if any(line["side"] == side for line in own)):
            for from_scan in (0, scans // 2):
                rows.append(_row(own, side, from_scan, scans))
    note = (
        "Mean over splits [95 % interval]; an object that fails counts as 10 prompts. Differences are paired by scan."
    )
    return f"{table(heads, rows)}\n\n{note}"


def _row(lines: list[Line], side: str, from_scan: int, scans: int) -> list[str]:
    def of(one: str, score: Callable[[int | None], float], level: float) -> dict[int, dict[str, float]]:
        chosen = [line for line in lines if line["side"] == one]
        return {line["split"]: _per_scan(line, score, level, from_scan) for line in chosen}

    prompts = [over_splits(list(of(side, _counted, level).values())).mean for level in LEVELS]
    failures = [over_splits(list(of(side, _failed, level).values())).mean for level in LEVELS]
    gains = [differences(of(side, _counted, level), of("frozen", _counted, level)) for level in LEVELS]
    splits = len(of(side, _counted, LEVELS[0]))
    return [
        lines[0]["set"],
        side,
        str(scans),
        str(splits),
        "yes" if from_scan else "no",
        *[f"{mean:.2f}" for mean in prompts],
        *[f"{100 * mean:.0f} %" for mean in failures],
        *["–" if side == "frozen" else signed(over_splits(gain)) for gain in gains],
    ]


STUDY = Study(__doc__, "online", trials, tables)

if __name__ == "__main__":
    main()
