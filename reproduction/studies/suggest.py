"""Do suggested slices help more than random ones? Dice of unseen real scans at equal labels.

    python -m reproduction.studies.suggest --data FOLDER --sets acdc --method fate --budgets 4 8 16 --draws 0 1

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). A draw takes patients at random: one whose
slices are all labelled, `--pool` more whose slices may be labelled, and, of the rest, up to `--cases` unseen ones to be
scored. With `--start N` the beginning is N slices instead, dealt at random from the first patient and the pool. Each
arm then gets as many more slices of the pool as the budget says, with their reference, and the method is fitted on all
that is labelled:

    start       none more: what the others begin from
    random      slices dealt at random, but never one without signal
    coverage    what `handful suggest` says without a model
    model       what it says with the method fitted on the beginning

All arms of a draw and budget share beginning, pool and unseen scans, so differences are paired, scan by scan. A cell
(set, method, start, pool, cases, budget, draw, arm) is one line in the file, written when it is known; one that is
there already is not computed again, so a stopped run goes on where it was. Cells are spread over processes of one
thread each. With --table nothing is computed.

A case's Dice is the mean over its labels; one that is missed counts as 0. Intervals are 95 % bootstrap intervals over
all unseen cases of all draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.curation.suggest import SuggestConfig, suggest
from handful.data.cases import Case, Cohort, SupportSet
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Labels
from handful.errors import InputError
from handful.evaluation.evaluate import Estimate, score_case
from handful.methods.base import Segmenter, has_signal
from handful.methods.catalog import build_method, method_settings
from reproduction.study import Line, my_backbone, read_lines, spread

ARMS = ("start", "random", "coverage", "model")
TRIES = 1000
"""Random beginnings that are tried until one holds every label."""

Slices = dict[str, set[int]]
"""Numbers of the labelled slices of each case."""


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        todo = list(cells(arguments))
        spread(
            todo,
            measure,
            told,
            out=arguments.out,
            processes=arguments.processes,
            backbone=arguments.backbone,
            cache=arguments.cache,
        )
    lines = [line for line in read_lines(arguments.out) if not arguments.sets or line["set"] in arguments.sets]
    print(tables(lines))


@dataclass(frozen=True)
class Cell:
    """One choice of slices, one fit, and its evaluation."""

    folder: Path
    method: str
    arm: str
    start: int
    """Random slices at the beginning; 0 for one whole patient."""
    pool: int
    budget: int
    draw: int
    cases: int
    digest: str

    def key(self) -> Line:
        return {
            "set": self.folder.name,
            "method": self.method,
            "arm": self.arm,
            "start": self.start,
            "pool": self.pool,
            "budget": self.budget,
            "draw": self.draw,
            "most_cases": self.cases,
            "digest": self.digest,
        }


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All cells asked for and not in the file, draw by draw."""
    digest = load_backbone(arguments.backbone).digest()[:12]
    done = read_lines(arguments.out)
    for draw in arguments.draws:
        for name in arguments.sets:
            for budget, arm in [(0, "start")] * ("start" in arguments.arms) + [
                (budget, arm) for budget in arguments.budgets for arm in arguments.arms if arm != "start"
            ]:
                cell = Cell(
                    arguments.data / name,
                    arguments.method,
                    arm,
                    arguments.start,
                    arguments.pool,
                    budget,
                    draw,
                    arguments.cases,
                    digest,
                )
                if not any({k: line[k] for k in cell.key()} == cell.key() for line in done):
                    yield cell


def told(line: Line) -> str:
    what = f"{line['set']} {line['arm']} + {line['budget']} slices, draw {line['draw']}"
    took = f"choice {line['choose_s']:.0f} s, fit {line['fit_s']:.0f} s, scores {line['score_s']:.0f} s"
    return f"{what}: Dice {np.mean(line['dice']):.3f}, {took}"


def measure(cell: Cell) -> Line:
    """Chooses, fits and scores in this process."""
    cohort = read_cohort(cell.folder)
    labels, backbone = cohort.labels, my_backbone()
    assert labels is not None
    drawn, rest = cohort.draw(1 + cell.pool, cell.draw)
    unseen = [case for case in rest if case.reference is not None][: cell.cases]
    slicer = replace(Slicer().resolve(case.read_image() for case in drawn), neighbours=False)
    site = Site(drawn, labels, slicer)
    known = site.beginning(cell.start, cell.draw)
    began = time.monotonic()
    chosen = choice(cell, site, known, backbone)
    for case, number in chosen:
        known.setdefault(case, set()).add(number)
    chose = time.monotonic()
    segmenter = fitted(cell, site.support(known), backbone)
    fit = time.monotonic()
    dice = [_dice(segmenter, case, labels) for case in unseen]
    ended = time.monotonic()
    return cell.key() | {
        "chosen": chosen,
        "labelled": sum(map(len, known.values())),
        "cases": [case.name for case in unseen],
        "dice": dice,
        "choose_s": round(chose - began, 1),
        "fit_s": round(fit - chose, 1),
        "score_s": round(ended - fit, 1),
    }


@dataclass(frozen=True)
class Site:
    """The scans that may be labelled: the first one, and the pool."""

    cases: list[Case]
    labels: Labels
    slicer: Slicer

    def beginning(self, start: int, draw: int) -> Slices:
        """All slices of the first case, or `start` of any, dealt until they hold every label."""
        if start == 0:
            first = self.cases[0]
            return {first.name: set(range(len(self.slicer.view(first.read_image()))))}
        slices, random = self.lit(), np.random.default_rng([draw, 0])
        held = self._held()
        for _ in range(TRIES):
            dealt = [slices[i] for i in random.permutation(len(slices))[:start]]
            if len(set().union(*[held[where] for where in dealt])) == len(self.labels):
                return _by_case(dealt)
        raise InputError(f"no {start} slices hold every label in {TRIES} deals; begin with more")

    def lit(self) -> list[tuple[str, int]]:
        """Case and number of all slices that hold any signal."""
        found = []
        for case in self.cases:
            view = self.slicer.view(case.read_image())
            found += [(case.name, n) for n in range(len(view)) if bool(has_signal(view.take([n]))[0])]
        return found

    def cohort(self, known: Slices) -> Cohort:
        """The scans with the labels of these slices and no others."""
        return Cohort(tuple(self._labelled(case, known.get(case.name, set())) for case in self.cases), self.labels, "")

    def support(self, known: Slices) -> SupportSet:
        return SupportSet(tuple(case for case in self.cohort(known).cases if case.reference is not None), self.labels)

    def _labelled(self, case: Case, numbers: set[int]) -> Case:
        truth = case.read_reference() if numbers else None
        if truth is None:
            return replace(case, reference=None)
        classes = np.full_like(truth.array, IGNORE)
        view = self.slicer.view(case.read_image())
        view.of(classes)[sorted(numbers)] = view.of(truth.array)[sorted(numbers)]
        return replace(case, reference=LabelMap(classes, truth.geometry, self.labels))

    def _held(self) -> dict[tuple[str, int], set[int]]:
        """The label values in each slice."""
        found = {}
        for case in self.cases:
            truth = case.read_reference()
            assert truth is not None
            for number, classes in enumerate(self.slicer.view(case.read_image()).of(truth.array)):
                found[case.name, number] = set(np.unique(classes).tolist()) - {0, IGNORE}
        return found


def choice(cell: Cell, site: Site, known: Slices, backbone: Backbone) -> list[tuple[str, int]]:
    """The slices that this arm labels beyond the beginning."""
    if cell.arm == "start":
        return []
    if cell.arm == "random":
        free = [where for where in site.lit() if where[1] not in known.get(where[0], set())]
        order = np.random.default_rng([cell.draw, 1]).permutation(len(free))
        return [free[i] for i in order[: cell.budget]]
    segmenter = fitted(cell, site.support(known), backbone) if cell.arm == "model" else None
    config = SuggestConfig(count=cell.budget, slicer=site.slicer)
    found = suggest(site.cohort(known), backbone, segmenter, config)
    assert not found.failures, found.failures
    return [(one.slice.case, one.slice.number) for one in found.suggestions]


def fitted(cell: Cell, support: SupportSet, backbone: Backbone) -> Segmenter:
    """The method on these labels, cutting slices as they were labelled."""
    name, _, text = cell.method.partition(":")
    settings: dict[str, object] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        settings[key] = value
    if "train" in method_settings(build_method(name, {})):
        settings.setdefault("train.seed", cell.draw)
    return build_method(name, settings).fit(support, backbone)


def _by_case(slices: Iterable[tuple[str, int]]) -> Slices:
    found: Slices = {}
    for case, number in slices:
        found.setdefault(case, set()).add(number)
    return found


def _dice(segmenter: Segmenter, case: Case, labels: Labels) -> float:
    reference = case.read_reference()
    assert reference is not None
    rows = score_case(case.name, segmenter.predict(case.read_image()), reference, labels=labels)
    return round(float(np.mean([row.dice for row in rows if row.status != "absent"])), 5)


def tables(lines: list[Line]) -> str:
    """Markdown: a row a set, method, beginning and budget; Dice of each arm and its paired difference to random."""
    heads = ["data set", "method", "begins with", "more slices", "none more", "random", "coverage", "with model"]
    heads += ["coverage − random", "with model − random"]
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    settings = ("set", "method", "start", "pool", "most_cases", "digest")
    groups = dict.fromkeys(tuple(line[k] for k in settings) for line in lines)
    for group in groups:
        own = [line for line in lines if tuple(line[k] for k in settings) == group]
        begin = f"{group[2]} random slices" if group[2] else "one patient"
        for budget in sorted({line["budget"] for line in own} - {0}):
            by_arm = {arm: _of(own, arm, 0 if arm == "start" else budget) for arm in ARMS}
            row = [group[0], group[1], begin, str(budget), *[_dice_of(by_arm[arm]) for arm in ARMS]]
            row += [_difference(by_arm[arm], by_arm["random"]) for arm in ("coverage", "model")]
            rows.append("| " + " | ".join(row) + " |")
    note = "Mean Dice of unseen scans [95 % interval]; differences are paired by scan, then the draws that gained."
    return "\n".join([*rows, "", note])


def _of(lines: list[Line], arm: str, budget: int) -> dict[int, list[float]]:
    """The Dice of each draw's unseen cases."""
    return {line["draw"]: line["dice"] for line in lines if (line["arm"], line["budget"]) == (arm, budget)}


def _dice_of(draws: dict[int, list[float]]) -> str:
    values = [dice for own in draws.values() for dice in own]
    return f"{np.mean(values):.3f}" if values else "–"


def _difference(ours: dict[int, list[float]], random: dict[int, list[float]]) -> str:
    """Over draws that both have: mean and interval over scans, and how many draws gained."""
    both = sorted(ours.keys() & random.keys())
    if not both:
        return "–"
    found = Estimate.of([a - b for draw in both for a, b in zip(ours[draw], random[draw], strict=True)])
    gained = sum(float(np.mean(ours[draw])) > float(np.mean(random[draw])) for draw in both)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {gained} of {len(both)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/suggest.jsonl"))
    parser.add_argument("--sets", nargs="+", default=[], help="names of data sets in it")
    parser.add_argument("--method", default="fate", metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--budgets", nargs="+", type=int, default=[4, 8, 16], help="slices labelled beyond the first")
    parser.add_argument("--start", type=int, default=0, help="begin with so many random slices, not with a patient")
    parser.add_argument("--pool", type=int, default=8, help="patients whose slices may be labelled")
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=12, help="unseen cases a draw, at most")
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="folder of kept embeddings; slices are then encoded once")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, compute nothing")
    found = parser.parse_args()
    if not found.table and not (found.data and found.sets):
        parser.error("give --data and --sets, or --table")
    return found


if __name__ == "__main__":
    main()
