"""Few-shot prompts on real scans compared with copying the nearest slice, and with prompts that say nothing.

    python -m reproduction.studies.controls --data FOLDER [--controls]

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). Four volumes or sixteen pictures are learned
from. The two controls, which no plan of `handful experiment` can express, ask a tuned decoder for each label with the
embeddings of the next one, and with zeros.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from handful.backbones.base import Backbone
from handful.evaluation.evaluate import Estimate
from handful.evaluation.statistics import over_splits
from handful.methods.base import Segmenter
from handful.methods.few_shot_prompts.method import FewShotSegmenter
from reproduction.configurations import build
from reproduction.markdown import interval, table
from reproduction.scoring import score
from reproduction.study import Line, Split, Study, Trial, by_split

SHOTS = {"msd_hippocampus": 4, "acdc": 4, "chaos_mr_t2": 4, "cxr_covid": 16, "kvasir_seg": 16}
"""Labelled cases of each data set."""
PLAIN = "few-shot-prompts"
METHODS = ("nearest-slice", PLAIN)
CONTROLS = ("wrong tokens", "zero tokens")
MOST_CASES = 25
WEIGHTS = {"b1988182af42": "first weights", "f7c69a0ef2df": "second", "d74f55573237": "today's"}
"""Digests of the versions of handful-tiny that were measured."""


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of few-shot-prompts")
    parser.add_argument("--controls", action="store_true", help="also ask with wrong and with zero class embeddings")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class ControlTrial(Trial):
    """One fit, with its controls, on one split."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "controls")

    method: str
    seed: int
    settings: tuple[str, ...]
    controls: tuple[str, ...]

    def line_keys(self) -> list[Line]:
        return [self.key() | {"method": name} for name in (self.method, *self.controls)]

    def results(self, backbone: Backbone) -> list[Line]:
        split = Split.of(self.folder, SHOTS[self.set], self.seed, MOST_CASES)
        settings: dict[str, object] = {}
        if self.method == PLAIN:
            settings |= dict(pair.split("=", 1) for pair in self.settings)
        began = time.monotonic()
        segmenter = build(self.method, settings, self.seed).fit(split.support, backbone)
        fitted = time.monotonic() - began
        variants = {self.method: segmenter}
        if isinstance(segmenter, FewShotSegmenter):
            variants |= {control: with_tokens(segmenter, control) for control in self.controls}
        return [self._line(split, name, one) | {"fit_s": round(fitted, 1)} for name, one in variants.items()]

    def _line(self, split: Split, name: str, segmenter: Segmenter) -> Line:
        began = time.monotonic()
        scores = [score(segmenter.predict(case.read_image()), case, split.labels) for case in split.unseen]
        return {
            **self.key(),
            "method": name,
            "shots": len(split.drawn),
            **split.names(),
            "dice": [one.dice for one in scores],
            "hd95": [one.hd95 for one in scores],
            "missed": sum(one.missed for one in scores),
            "case_s": round((time.monotonic() - began) / len(split.unseen), 3),
        }


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for name in arguments.sets:
        for seed in arguments.splits:
            for method in arguments.methods:
                yield ControlTrial(
                    data=arguments.data,
                    set=name,
                    digest=digest,
                    method=method,
                    seed=seed,
                    settings=tuple(arguments.set),
                    controls=CONTROLS if arguments.controls and method == PLAIN else (),
                )


def with_tokens(segmenter: FewShotSegmenter, control: str) -> FewShotSegmenter:
    """The same decoder asked with class embeddings that say nothing, or each label with those of the next one.

    Where there is one label only, it changes places with the background.
    """
    tokens, count = segmenter.tokens, len(segmenter.labels)
    if control == "zero tokens":
        changed = dataclasses.replace(tokens, vectors=torch.zeros_like(tokens.vectors))
    elif count > 1:
        moved = torch.where(tokens.classes < count, (tokens.classes + 1) % count, tokens.classes)
        changed = dataclasses.replace(tokens, classes=moved)
    else:
        changed = dataclasses.replace(tokens, classes=1 - tokens.classes)
    return FewShotSegmenter(
        segmenter.labels, segmenter.slicer, segmenter.backbone, segmenter.method, segmenter.decoder, changed
    )


def tables(lines: Sequence[Line]) -> str:
    """A table for the weights of each backbone, in the order in which they were measured."""
    digests = dict.fromkeys(line["digest"] for line in lines)
    return "\n\n".join(f"{one}\n\n{methods_table(lines, one)}" for one in digests)


def methods_table(lines: Sequence[Line], digest: str, methods: Sequence[str] = (*METHODS, *CONTROLS)) -> str:
    """Dice of each method and control with these weights, one row per data set."""
    own = [line for line in lines if line["digest"] == digest and not line["settings"]]
    shown = [method for method in methods if any(line["method"] == method for line in own)]
    rows = []
    for name in _sets_of(own):
        of_set = [line for line in own if line["set"] == name]
        size = f"{len({line['seed'] for line in of_set})} × {len(of_set[0]['cases'])}"
        rows.append((name, str(of_set[0]["shots"]), size, *[_dice(of_set, method) for method in shown]))
    return table(("data set", "labelled", "splits × unseen", *shown), rows)


def weights_table(lines: Sequence[Line]) -> str:
    """Dice of few-shot prompts with all weights that were measured."""
    own = [line for line in lines if line["method"] == PLAIN and not line["settings"]]
    rows = []
    for name in _sets_of(own):
        of_set = [line for line in own if line["set"] == name]
        splits = str(len({line["seed"] for line in of_set}))
        by_digest = [[line for line in of_set if line["digest"] == digest] for digest in WEIGHTS]
        rows.append((f"`{name}`", splits, *[_dice(some, PLAIN) for some in by_digest]))
    return table(("data set", "splits", *WEIGHTS.values()), rows)


def tokens_table(lines: Sequence[Line]) -> str:
    """Mean Dice of the same decoders prompted with right tokens, wrong ones and zeros, on splits that have all
    three."""
    own = [line for line in lines if not line["settings"]]
    asked = {(line["set"], line["digest"], line["seed"]) for line in own if line["method"] in CONTROLS}
    rows = []
    for name in _sets_of(own):
        some = [line for line in own if (line["set"], line["digest"], line["seed"]) in asked and line["set"] == name]
        rows.append((f"`{name}`", *[f"{_over_splits(some, method).mean:.3f}" for method in (PLAIN, *CONTROLS)]))
    return table(("data set (first split)", "right", "wrong label", "zeros"), rows)


def _sets_of(lines: Sequence[Line]) -> list[str]:
    return [name for name in SHOTS if any(line["set"] == name for line in lines)]


def _dice(lines: Sequence[Line], method: str) -> str:
    return interval(_over_splits(lines, method))


def _over_splits(lines: Sequence[Line], method: str) -> Estimate:
    return over_splits([*by_split([line for line in lines if line["method"] == method], "dice").values()])


STUDY = Study(__doc__, "few_shot_prompts", trials, tables, tuple(SHOTS))

if __name__ == "__main__":
    main()
