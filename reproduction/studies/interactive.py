"""Interactive tuning on real scans: clicks to a Dice, sensitivity to how people ask, other organs, and pruning.

    python -m reproduction.studies.interactive clicks --data FOLDER --sets chaos_mr_t2 acdc --shots 4 --out FILE
    python -m reproduction.studies.interactive generalise --fitted-on acdc --data FOLDER --sets chaos_mr_t2 --out FILE
    python -m reproduction.studies.interactive pruning --data FOLDER --sets chaos_mr_t2 acdc --seeds 0 1 2 --out FILE

FOLDER holds one subfolder per data set (images/, labels/, dataset.json).

A configuration is "backbone", which is asked without training and without slots of padding, or the method with
settings, such as "interactive:prompts=centre". All configurations answer for the same regions: each label of each
unseen case on at most --slices slices, evenly spaced among those that hold it. Each region is asked for in ten ways:
the nine prompt_mix of training (one at a time), and a click in the middle with a negative one on the neighbour; each by
--people people. First prompts are the same for all configurations. A correction is clicked in the largest error, in the
way of --annotator, by the same person with the same random numbers, and goes in with the answer before as mask prompt;
where it falls depends on that answer.

Dice after n counts the first prompt (a box and a scribble are one, too); NoC is the number of prompts until a Dice is
reached, --most where it never is. Sensitivity is the standard deviation of the Dice of one region over all ways and
people, its mean over a case's regions. All figures are means over regions, then over cases. Intervals are the
package's, over splits; tests are of each case's mean over splits.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.jobs.progress import Run
from handful.methods.interactive.method import InteractiveSegmenter
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import clicks_to_reach
from handful.tuning.pruning import Pruning
from reproduction.configurations import build, parse
from reproduction.studies.conversation import (
    AFTER,
    ANNOTATORS,
    LEVELS,
    WAYS,
    Ask,
    Manner,
    Scene,
    ask_plainly,
    converse,
    scene_of,
)
from reproduction.studies.interactive_tables import tables
from reproduction.study import Line, Split, Study, Trial

CONFIGURATIONS = ("backbone", "interactive:prompts=centre", "interactive")
RULES = ("none", "random", "infobatch", "cbdp")
SHORTER = "shorter"
"""Among the rules: a plain training of as many steps as `cbdp` makes."""


def main() -> None:
    parser = STUDY.parser(splits=(0,))
    parser.add_argument("part", choices=("clicks", "generalise", "pruning"))
    parser.add_argument("--fitted-on", help="with generalise: the set that configurations are fitted on")
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), metavar="ARM[:KEY=VALUE,…]")
    rules = (*RULES, SHORTER)
    parser.add_argument("--rules", nargs="+", default=list(rules), choices=rules, help="with pruning")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--cases", type=int, default=6, help="unseen cases a split, at most")
    parser.add_argument("--slices", type=int, default=6, help="slices of each label of a case, at most")
    parser.add_argument("--people", type=int, help="who ask for a region in each way (2; with pruning 1)")
    parser.add_argument("--most", type=int, help="prompts a region, at most (10; with pruning 3)")
    parser.add_argument("--annotator", choices=tuple(ANNOTATORS), default="mixed", help="where corrections are clicked")
    parser.add_argument("--iterations", type=int, default=300)
    STUDY.main(parser)


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    """Where nothing is fitted, the set is its own."""
    pruning = arguments.part == "pruning"
    if arguments.part == "generalise" and not arguments.fitted_on:
        raise SystemExit("generalise needs --fitted-on")
    configurations = (
        [with_rule(rule, arguments.iterations) for rule in arguments.rules] if pruning else arguments.configurations
    )
    for split in arguments.splits:
        for name in arguments.sets:
            for configuration in configurations:
                own = configuration == "backbone" or arguments.part != "generalise"
                yield InteractiveTrial(
                    part="pruning" if pruning else "clicks",
                    data=arguments.data,
                    set=name,
                    fitted_on=name if own else arguments.fitted_on,
                    configuration=configuration,
                    shots=arguments.shots,
                    split=split,
                    cases_most=arguments.cases,
                    slices=arguments.slices,
                    seeds=arguments.people or (1 if pruning else 2),
                    most=arguments.most or (3 if pruning else 10),
                    annotator=arguments.annotator,
                    iterations=0 if configuration == "backbone" else arguments.iterations,
                    digest=digest,
                )


def with_rule(rule: str, iterations: int) -> str:
    """The configuration that trains by a rule of pruning, or without any for as many steps as `cbdp` makes."""
    if rule == SHORTER:
        return f"interactive:train.iterations={round(iterations * Pruning(rule='cbdp').fraction(1))}"
    return f"interactive:pruning.rule={rule}"


@dataclass(frozen=True, kw_only=True)
class InteractiveTrial(Trial):
    """One fit and its evaluation."""

    part: str
    fitted_on: str
    configuration: str
    shots: int
    split: int
    cases_most: int
    slices: int
    seeds: int
    most: int
    annotator: str
    iterations: int

    def results(self, backbone: Backbone) -> list[Line]:
        line = self.key()
        support = self._split(self.fitted_on).support
        watch, began, began_cpu = Stopwatch(), time.monotonic(), time.process_time()
        ask: Ask = functools.partial(ask_plainly, backbone)
        if self.configuration != "backbone":
            segmenter = self._fitted(support, backbone, watch)
            backbone, ask = segmenter.encoder, functools.partial(_asked, segmenter)
            if segmenter.pruning_report is not None:
                line |= {"fraction": segmenter.pruning_report.fraction, "steps": segmenter.pruning_report.steps}
        line |= {
            "fit_s": round(time.monotonic() - began, 1),
            "fit_cpu_s": round(time.process_time() - began_cpu, 1),
            "train_cpu_s": round(watch.cpu_s(), 1),
            "support": [case.name for case in support.cases],
            "held": _held(support) if self.part == "pruning" else {},
        }
        began = time.monotonic()
        scenes = self._scenes(backbone)
        encoded, encoded_cpu = time.monotonic(), time.process_time()
        manner = Manner(self.seeds, self.most, self.annotator)
        line |= self._summary(scenes, [converse(manner, scene, ask) for scene in scenes])
        line |= {
            "encode_s": round(encoded - began, 1),
            "ask_s": round(time.monotonic() - encoded, 1),
            "ask_cpu_s": round(time.process_time() - encoded_cpu, 1),
        }
        return [line]

    def _split(self, name: str) -> Split:
        """Cases of the set that are asked about are in no fit of this split, whatever set was fitted on."""
        return Split.of(self.data / name, self.shots, self.split, self.cases_most)

    def _fitted(self, support: SupportSet, backbone: Backbone, watch: Stopwatch) -> InteractiveSegmenter:
        name, settings = parse(self.configuration)
        method = build(name, {"train.iterations": self.iterations, **settings}, self.split)
        segmenter = method.fit(support, backbone, Run(report=watch))
        assert isinstance(segmenter, InteractiveSegmenter), "other methods cannot be asked and corrected"
        return segmenter.eval()

    def _scenes(self, backbone: Backbone) -> list[Scene]:
        """The regions of a trial; those of the last trial are kept, for most configurations share the set and the
        encoder."""
        key = (self.set, self.split, backbone.image_encoder)
        if key not in _kept_scenes:
            _kept_scenes.clear()
            split = self._split(self.set)
            slicer, labels = split.support.resolve(Slicer()), split.labels.values
            _kept_scenes[key] = [scene_of(case, labels, self.slices, slicer, backbone) for case in split.unseen]
        return _kept_scenes[key]

    def _summary(self, scenes: Sequence[Scene], found: Sequence[NDArray[np.float64]]) -> Line:
        """Means over the regions of each case, in the order of the cases."""
        kept = [(scene, dice) for scene, dice in zip(scenes, found, strict=True) if len(dice)]
        line: Line = {"cases": [scene.case for scene, _ in kept], "regions": sum(len(dice) for _, dice in kept)}
        after = [n for n in AFTER if n <= self.most]
        for n in after:
            line[f"dice_{n}"] = _rounded(dice[..., n - 1].mean() for _, dice in kept)
        for n in after:
            spread = [dice[..., n - 1].reshape(len(dice), -1).std(axis=1, ddof=1).mean() for _, dice in kept]
            line[f"sensitivity_{n}"] = _rounded(spread)
        for level in LEVELS:
            name = round(100 * level)
            clicks = [clicks_to_reach(torch.from_numpy(dice), level).double() for _, dice in kept]
            line[f"noc_{name}"] = _rounded(one.mean().item() for one in clicks)
            line[f"never_{name}"] = _rounded((dice.max(axis=-1) < level).mean() for _, dice in kept)
        line["ways"] = {
            way: {f"dice_{n}": _rounded(dice[:, i, :, n - 1].mean() for _, dice in kept) for n in after}
            for i, way in enumerate(WAYS)
        }
        names = self._split(self.set).labels.names
        line["labels"] = {
            name: {f"dice_{n}": [_of_label(scene, dice[..., n - 1], k) for scene, dice in kept] for n in after}
            for k, name in enumerate(names)
        }
        return line


_kept_scenes: dict[tuple[str, int, nn.Module], list[Scene]] = {}


class Stopwatch:
    """CPU seconds of all steps of a training, without what came before the first."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def __call__(self, step: int, total: int, note: str) -> None:
        self.steps = [*self.steps[:1], (step, time.process_time())]

    def cpu_s(self) -> float:
        """The first step is taken for as long as the others."""
        if len(self.steps) < 2:
            return 0.0
        (first, began), (last, ended) = self.steps
        return (ended - began) / (last - first) * last


def _held(support: SupportSet) -> dict[str, int]:
    """Labelled slices that hold each label."""
    there = torch.cat([one.present() for one in support.slices(Slicer())])
    return dict(zip(support.labels.names, there.sum(dim=0).tolist(), strict=True))


def _asked(
    segmenter: InteractiveSegmenter, image: ImageEmbeddings, prompts: Prompts, size: tuple[int, int]
) -> Float[Tensor, "n k h w"]:
    return segmenter.segment_prompted(image, prompts, size).logits


def _of_label(scene: Scene, dice: NDArray[np.float64], column: int) -> float | None:
    rows = [r for r, (_, own) in enumerate(scene.regions) if own == column]
    return round(float(dice[rows].mean()), 5) if rows else None


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 5) for value in values]


STUDY = Study(__doc__, "interactive", trials, tables)

if __name__ == "__main__":
    main()
