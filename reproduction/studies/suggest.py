"""Do suggested slices help more than random ones? Dice of unseen real scans at equal labels.

    python -m reproduction.studies.suggest --data FOLDER --sets acdc --method fate --budgets 4 8 16 --splits 0 1

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). A split takes patients at random: one whose
slices are all labelled, `--pool` more whose slices may be labelled, and, of the rest, up to `--cases` unseen ones to be
scored. With `--start N` the beginning is N slices instead, dealt at random from the first patient and the pool. Each
configuration then gets as many more slices of the pool as the budget says, with their reference, and the method is
fitted on all that is labelled:

    start       none more: what the others begin from
    random      slices dealt at random, but never one without signal
    coverage    what `handful suggest` says without a model
    model       what it says with the method fitted on the beginning

All configurations of a split and budget share beginning, pool and unseen scans, so differences are paired, scan by
scan.

A case's Dice is the mean over its labels; one that is missed counts as 0. Intervals are the package's, over splits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from handful.backbones.base import Backbone
from handful.curation.suggest import SuggestConfig, suggest
from handful.data.cases import Case, Cohort
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels
from handful.errors import InputError
from handful.evaluation.statistics import differences, over_splits
from handful.methods.base import Segmenter, has_signal
from reproduction.configurations import build, parse
from reproduction.markdown import signed, table
from reproduction.scoring import reference_of, score
from reproduction.study import Line, Split, Study, Trial, by_split

CONFIGURATIONS = ("start", "random", "coverage", "model")
TRIES = 1000
"""Random beginnings that are tried until one holds every label."""

Slices = dict[str, set[int]]
"""Numbers of the labelled slices of each case."""
Dice = dict[int, dict[str, float]]
"""Of each split's unseen cases, by name."""


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--method", default="fate", metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=CONFIGURATIONS)
    parser.add_argument("--budgets", nargs="+", type=int, default=[4, 8, 16], help="slices labelled beyond the first")
    parser.add_argument("--start", type=int, default=0, help="begin with so many random slices, not with a patient")
    parser.add_argument("--pool", type=int, default=8, help="patients whose slices may be labelled")
    parser.add_argument("--cases", type=int, default=12, help="unseen cases a split, at most")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class SuggestTrial(Trial):
    """One choice of slices, one fit, and its evaluation."""

    method: str
    configuration: str
    start: int
    """Random slices at the beginning; 0 for one whole patient."""
    pool: int
    budget: int
    split: int
    most_cases: int

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, 1 + self.pool, self.split, self.most_cases)
        slicer = replace(Slicer().resolve(case.read_image() for case in split.drawn), neighbours=False)
        site = Site(split.drawn, split.labels, slicer)
        known = site.beginning(self.start, self.split)
        began = time.monotonic()
        chosen = choice(self, site, known, backbone)
        for case, number in chosen:
            known.setdefault(case, set()).add(number)
        chose = time.monotonic()
        segmenter = self.fitted(site.support(known), backbone)
        fitted = time.monotonic()
        scores = [score(segmenter.predict(case.read_image()), case, split.labels) for case in split.unseen]
        ended = time.monotonic()
        line = self.key() | {
            "chosen": chosen,
            "labelled": sum(map(len, known.values())),
            "cases": [case.name for case in split.unseen],
            "dice": [round(one.dice, 5) for one in scores],
            "choose_s": round(chose - began, 1),
            "fit_s": round(fitted - chose, 1),
            "score_s": round(ended - fitted, 1),
        }
        return [line]

    def fitted(self, support: SupportSet, backbone: Backbone) -> Segmenter:
        """The method on these labels, cutting slices as they were labelled."""
        return build(*parse(self.method), self.split).fit(support, backbone)


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    """Split by split."""
    chosen = [("start", 0)] if "start" in arguments.configurations else []
    chosen += [
        (configuration, budget)
        for budget in arguments.budgets
        for configuration in arguments.configurations
        if configuration != "start"
    ]
    for split in arguments.splits:
        for name in arguments.sets:
            for configuration, budget in chosen:
                yield SuggestTrial(
                    data=arguments.data,
                    set=name,
                    digest=digest,
                    method=arguments.method,
                    configuration=configuration,
                    start=arguments.start,
                    pool=arguments.pool,
                    budget=budget,
                    split=split,
                    most_cases=arguments.cases,
                )


@dataclass(frozen=True)
class Site:
    """The scans that may be labelled: the first one, and the pool."""

    cases: tuple[Case, ...]
    labels: Labels
    slicer: Slicer

    def beginning(self, start: int, split: int) -> Slices:
        """All slices of the first case, or `start` of any, dealt until they hold every label."""
        if start == 0:
            first = self.cases[0]
            return {first.name: set(range(len(self.slicer.view(first.read_image()))))}
        slices, random = self.lit(), np.random.default_rng([split, 0])
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
            truth = reference_of(case)
            for number, classes in enumerate(self.slicer.view(case.read_image()).of(truth.array)):
                found[case.name, number] = set(np.unique(classes).tolist()) - {0, IGNORE}
        return found


def choice(trial: SuggestTrial, site: Site, known: Slices, backbone: Backbone) -> list[tuple[str, int]]:
    """The slices that this configuration labels beyond the beginning."""
    if trial.configuration == "start":
        return []
    if trial.configuration == "random":
        free = [where for where in site.lit() if where[1] not in known.get(where[0], set())]
        order = np.random.default_rng([trial.split, 1]).permutation(len(free))
        return [free[i] for i in order[: trial.budget]]
    segmenter = trial.fitted(site.support(known), backbone) if trial.configuration == "model" else None
    config = SuggestConfig(count=trial.budget, slicer=site.slicer)
    found = suggest(site.cohort(known), backbone, segmenter, config)
    assert not found.failures, found.failures
    return [(one.slice.case, one.slice.number) for one in found.suggestions]


def _by_case(slices: Iterable[tuple[str, int]]) -> Slices:
    found: Slices = {}
    for case, number in slices:
        found.setdefault(case, set()).add(number)
    return found


def tables(lines: list[Line]) -> str:
    """One row per set, method, beginning and budget: Dice of each configuration and its paired difference to random."""
    heads = ["data set", "method", "starts with", "slices added", "none added", "random", "coverage", "with model"]
    heads += ["coverage − random", "with model − random"]
    settings = ("set", "method", "start", "pool", "most_cases", "digest", "unseen")
    rows = []
    for group in dict.fromkeys(tuple(line.get(k) for k in settings) for line in lines):
        own = [line for line in lines if tuple(line.get(k) for k in settings) == group]
        begin = f"{group[2]} random slices" if group[2] else "one patient"
        for budget in sorted({line["budget"] for line in own} - {0}):
            by_configuration = {
                configuration: _of(own, configuration, 0 if configuration == "start" else budget)
                for configuration in CONFIGURATIONS
            }
            means = [_mean(by_configuration[configuration]) for configuration in CONFIGURATIONS]
            differences = [
                _difference(by_configuration[configuration], by_configuration["random"])
                for configuration in ("coverage", "model")
            ]
            rows.append((group[0], group[1], begin, str(budget), *means, *differences))
    note = "Mean Dice of unseen scans [95 % interval]; differences are paired by scan. Last: splits in which Dice rose."
    return f"{table(heads, rows)}\n\n{note}"


def _of(lines: list[Line], configuration: str, budget: int) -> Dice:
    return by_split(
        [line for line in lines if (line["configuration"], line["budget"]) == (configuration, budget)], "dice"
    )


def _mean(dice: Dice) -> str:
    return f"{over_splits(list(dice.values())).mean:.3f}" if dice else "–"


def _difference(ours: Dice, random: Dice) -> str:
    """Over splits that both have: mean and interval, and how many splits gained."""
    gains = differences(ours, random)
    gained = sum(fmean(gain.values()) > 0 for gain in gains)
    return f"{signed(over_splits(gains))}, {gained} of {len(gains)}" if gains else "–"


STUDY = Study(__doc__, "suggest", trials, tables)

if __name__ == "__main__":
    main()
