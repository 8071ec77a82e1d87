"""What FATE's settings do, one at a time: Dice, HD95, and how often a label is found where there is none.

    python -m reproduction.studies.fate_settings --data FOLDER --sets acdc --configurations fate fate:window=0
    fate:shuffled=1

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). A configuration is a method, or a method with
settings such as "fate:window=0,roi_margin=1.4". Two things that no plan of `handful experiment` can express are why
this is a study: the pseudo-setting "shuffled=1" of fate, which deals its supports out at random, for comparison with
those it retrieves; and *absent called present*, the share of pairs of a slice and a label of which the reference holds
nothing but the prediction does, and how many voxels that is on average over such pairs.

A larger split contains the smaller ones, and all configurations of a split have the same support and the same unseen
cases. A case's Dice and HD95 (mm, pixels for pictures) are means over its labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.evaluation.statistics import over_splits
from handful.methods.base import Segmenter
from handful.methods.fate.method import FateSegmenter
from reproduction.configurations import build, parse
from reproduction.evidence import FIRST
from reproduction.markdown import interval, table
from reproduction.scoring import called_present, score
from reproduction.study import Line, Split, Study, Trial, by_split


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--configurations", nargs="+", default=["fate"], metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--shots", nargs="+", type=int, default=[4])
    parser.add_argument("--cases", type=int, default=8, help="unseen cases a split, at most")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class SettingTrial(Trial):
    """One fit and its evaluation."""

    configuration: str
    shots: int
    split: int
    most_cases: int

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, self.shots, self.split, self.most_cases)
        began = time.monotonic()
        segmenter = self._fitted(split, backbone)
        fitted = time.monotonic()
        predictions = [(case, segmenter.predict(case.read_image())) for case in split.unseen]
        ended = time.monotonic()
        scores = [score(prediction, case, split.labels) for case, prediction in predictions]
        line = self.key() | split.names()
        line |= {
            "dice": [round(one.dice, 5) for one in scores],
            "hd95": [round(one.hd95, 3) for one in scores],
            "missed": sum(one.missed for one in scores),
            "absent": [called_present(segmenter.slicer, case, prediction) for case, prediction in predictions],
            "fit_s": round(fitted - began, 1),
            "case_s": round((ended - fitted) / len(split.unseen), 3),
        }
        return [line]

    def _fitted(self, split: Split, backbone: Backbone) -> Segmenter:
        name, settings = parse(self.configuration)
        shuffled = settings.pop("shuffled", None)
        segmenter = build(name, settings, self.split).fit(split.support, backbone)
        if shuffled and isinstance(segmenter, FateSegmenter):
            generator = torch.Generator().manual_seed(self.split)
            for signature in segmenter.bank.signatures:
                signature.copy_(signature[torch.randperm(len(signature), generator=generator)])
        return segmenter


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for shots in arguments.shots:
        for split in arguments.splits:
            for name in arguments.sets:
                for configuration in arguments.configurations:
                    yield SettingTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        configuration=configuration,
                        shots=shots,
                        split=split,
                        most_cases=arguments.cases,
                    )


def tables(lines: Iterable[Line]) -> str:
    """A table per data set, number of labelled cases, weights and way to choose unseen cases: Dice, HD95 and absent
    labels of each configuration."""
    groups: dict[tuple[str, int, str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["set"], line["shots"], line["digest"], line.get("unseen", FIRST)), []).append(line)
    return "\n\n".join(
        f"**{name}**, {shots} labelled, weights {digest}, unseen cases: {chosen}\n\n{table_of(own)}"
        for (name, shots, digest, chosen), own in groups.items()
    )


def table_of(lines: Iterable[Line]) -> str:
    """One row per configuration and number of unseen cases that it was to be measured on."""
    by_configuration: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        by_configuration.setdefault((line["configuration"], line["most_cases"]), []).append(line)
    rows = []
    for (configuration, _), own in by_configuration.items():
        cases = sorted({len(line["cases"]) for line in own})
        dice, hd95 = (over_splits([*by_split(own, measure).values()]) for measure in ("dice", "hd95"))
        counts = [str(len(own)), " / ".join(map(str, cases))]
        rows.append((f"`{configuration}`", interval(dice), f"{hd95.mean:.1f}", absent(own), *counts))
    return table(("configuration", "Dice", "HD95", "absent called present", "splits", "cases a split"), rows)


def by_setting(lines: Iterable[Line]) -> str:
    """One row per setting of FATE, with Dice, HD95 and absent labels on each data set that has any."""
    own = [line for line in lines if line["configuration"].partition(":")[0] == "fate"]
    sets = list(dict.fromkeys(line["set"] for line in own))
    rows = []
    for configuration in dict.fromkeys(line["configuration"] for line in own):
        cells = [f"`{configuration.removeprefix('fate:')}`" if ":" in configuration else "default"]
        for name in sets:
            found = [line for line in own if (line["configuration"], line["set"]) == (configuration, name)]
            dice, hd95 = (over_splits([*by_split(found, measure).values()]) for measure in ("dice", "hd95"))
            cells += [interval(dice), f"{hd95.mean:.1f}", absent(found)] if found else ["–"] * 3
        rows.append(cells)
    heads = [head for name in sets for head in (f"{name}, Dice", "HD95", "absent called present")]
    return table(("setting", *heads), rows)


def absent(lines: Iterable[Line]) -> str:
    """Share of pairs and voxels a pair, over all cases; a dash where every slice holds every label."""
    pairs, called, voxels = np.sum([one for line in lines for one in line["absent"]], axis=0)
    return f"{100 * called / pairs:.0f} %, {voxels / pairs:.0f} voxels" if pairs else "–"


STUDY = Study(__doc__, "label_efficiency", trials, tables)

if __name__ == "__main__":
    main()
