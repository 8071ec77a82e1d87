"""Tasks that are learned one after the other: does the router find the expert of each scan, and is anything forgotten?

    python -m reproduction.studies.continual --part routing --data FOLDER --cache CACHE
    python -m reproduction.studies.continual --part dice --data FOLDER --configurations unet --shots 5 --cache CACHE

"routing": the data sets of ROUTED are added one after the other, each with `--shots` labelled cases. After each of
them, unseen scans of all sets so far are routed, with the product's own rule: an expert that cannot segment a scan is
passed over. This needs embeddings only, and no fit.

"dice": the data sets of TASKS, in two orders. After each, unseen scans of all tasks so far are segmented by the expert
that the router picks, and by their own expert. With "--naive", one U-Net is trained on the tasks one after the other in
place of experts; each task keeps its own last layer, and is told at prediction, so it forgets less than a net of one
last layer would. A stopped run continues; fitted experts are kept in --scratch, and their time counts from the last
start.

Labelled and unseen cases are chosen at random by the split. Settings of the router were not chosen on these scans.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from handful.backbones.base import Backbone
from handful.checkpoint.model import SavedModel, load, open_model
from handful.cohort.experts import fit_expert
from handful.cohort.fit import FitConfig
from handful.data.cases import Case
from handful.data.made_for import MadeFor
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap
from handful.methods.base import Segmenter
from handful.methods.router import Router, features_of_volume
from handful.methods.unet.method import UNet, UNetSegmenter
from handful.methods.unet.network import Net, NetPlan
from reproduction.configurations import build, parse
from reproduction.markdown import table
from reproduction.scoring import score
from reproduction.study import Line, Split, Study, Trial

ROUTED = (
    *("acdc", "chaos_mr_t2", "msd_hippocampus", "cxr_covid", "openkbp", "busi", "camus", "drishti_gs", "kvasir_seg"),
    "dsb2018",
)
TASKS = ("acdc", "chaos_mr_t2", "msd_hippocampus", "cxr_covid")
ORDERS = {"forward": TASKS, "backward": TASKS[::-1]}
ALL = "continual"
"""In place of the name of a data set, since each line is of several."""
SIDE = 128
"""Side of the slices of the U-Net that is trained on one task after the other, whose layers must fit all of them."""


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--part", choices=["routing", "dice"], default="routing")
    parser.add_argument("--configurations", nargs="+", default=["nearest-slice"], metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--naive", action="store_true", help="one U-Net, trained on one task after the other")
    parser.add_argument("--shots", type=int, default=5, help="labelled cases of each task")
    parser.add_argument("--most-unseen", type=int, default=20, help="unseen cases of each task")
    parser.add_argument("--scratch", type=Path, help="folder of fitted experts")
    parser.set_defaults(sets=[ALL])
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class RoutingTrial(Trial):
    """The router after each of the data sets of ROUTED."""

    part: str = "routing"
    shots: int
    split: int
    most_unseen: int

    def results(self, backbone: Backbone) -> list[Line]:
        splits = {name: _split(self, name) for name in ROUTED}
        routers: list[Router] = []
        kinds: dict[str, MadeFor] = {}
        for name, split in splits.items():
            support = split.support
            rows = torch.cat([features_of_volume(case.read_image(), backbone) for case in split.drawn])
            router = Router.of(name, rows)
            routers.append(routers[-1].joined(router) if routers else router)
            kinds[name] = MadeFor.of(support, support.resolve(Slicer()))
        picked: list[dict[str, dict[str, str]]] = [{} for _ in routers]
        margins: dict[str, list[float]] = {}
        seconds = 0.0
        for name, split in splits.items():
            for case in split.unseen:
                volume = case.read_image()
                began = time.process_time()
                features = features_of_volume(volume, backbone)
                seconds += time.process_time() - began
                for router, found in zip(routers, picked, strict=True):
                    if name not in router.names:
                        continue
                    scores = dict(zip(router.names, router.scores(features).mean(dim=0).tolist(), strict=True))
                    usable = {one: value for one, value in scores.items() if _takes(kinds[one], len(volume.array))}
                    best, *others = sorted(usable, key=lambda one: -usable[one])
                    found.setdefault(name, {})[case.name] = best
                    if router is routers[-1]:
                        margins.setdefault(name, []).append(usable[best] - usable[others[0]])
        scans = sum(len(split.unseen) for split in splits.values())
        return [self.key() | {"picked": picked[1:], "margins": margins, "route_core_s": round(seconds / scans, 3)}]


@dataclass(frozen=True, kw_only=True)
class DiceTrial(Trial):
    """Tasks in one order: Dice of all of them after each."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "scratch")

    part: str = "dice"
    order: str
    configuration: str
    shots: int
    split: int
    most_unseen: int
    scratch: Path | None

    def results(self, backbone: Backbone) -> list[Line]:
        name, settings = parse(self.configuration)
        method = build(name, {"roi_margin": "auto", "largest_piece": "auto", **settings}, self.split)
        splits = {task: _split(self, task) for task in ORDERS[self.order]}
        steps: list[Line] = []
        with self._folder() as folder:
            before: Path | None = None
            for task in splits:
                out = folder / f"{self.configuration.replace('/', '-')}-{self.shots}-{self.split}-{self.order}-{task}"
                began = time.process_time()
                fit_expert(
                    *(name, method, splits[task].support, backbone, out),
                    expert=task,
                    add_to=before,
                    config=FitConfig(leave_out=False),
                )
                step: Line = {"task": task, "fit_core_s": round(time.process_time() - began, 1)}
                known = {one: splits[one] for one in list(splits)[: list(splits).index(task) + 1]}
                steps.append(step | _of_experts(out, known, backbone))
                before = out
        return [self.key() | {"steps": steps}]

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            yield self.scratch
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@dataclass(frozen=True, kw_only=True)
class NaiveTrial(Trial):
    """One U-Net that is trained on the tasks one after the other."""

    part: str = "naive"
    order: str
    configuration: str
    shots: int
    split: int
    most_unseen: int

    def results(self, backbone: Backbone) -> list[Line]:
        name, settings = parse(self.configuration)
        fixed = {"roi_margin": "none", "side": SIDE, "channels": 16, "encoder": "none"}
        method = build(name, {**fixed, **settings}, self.split)
        assert isinstance(method, UNet), f"--naive is for unet, not {name}"
        splits = {task: _split(self, task) for task in ORDERS[self.order]}
        nets: dict[str, UNetSegmenter] = {}
        body: dict[str, Tensor] = {}
        steps: list[Line] = []
        for task, split in splits.items():
            began = time.process_time()
            nets[task] = _started_from(method, body).fit(split.support, backbone)
            seconds = round(time.process_time() - began, 1)
            body = _body_of(method, nets[task])
            own = {one: _of_net(_with_body(net, body), splits[one]) for one, net in nets.items()}
            steps.append({"task": task, "fit_core_s": seconds, "own": own})
        return [self.key() | {"steps": steps}]


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    common = {"data": arguments.data, "set": ALL, "digest": digest}
    numbers = {"shots": arguments.shots, "most_unseen": arguments.most_unseen}
    for split in arguments.splits:
        if arguments.part == "routing":
            yield RoutingTrial(**common, **numbers, split=split)
            continue
        for order in ORDERS:
            for configuration in arguments.configurations:
                of = {"order": order, "configuration": configuration, "split": split}
                if arguments.naive:
                    yield NaiveTrial(**common, **numbers, **of)
                else:
                    yield DiceTrial(**common, **numbers, **of, scratch=arguments.scratch)


def _split(trial: RoutingTrial | DiceTrial | NaiveTrial, name: str) -> Split:
    return Split.of(trial.data / name, trial.shots, trial.split, trial.most_unseen)


def _takes(kind: MadeFor, channels: int) -> bool:
    return channels in kind.channels


def _of_experts(out: Path, splits: Mapping[str, Split], backbone: Backbone) -> Line:
    """Dice of each task so far by the expert that the router picks and by its own, and the size of the last expert."""
    segmenter, model = load(out, backbone), open_model(out)
    routed: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}
    for task, split in splits.items():
        for case in split.unseen:
            picked = segmenter.route(case.read_image()).expert
            dice = {one: _dice(segmenter.experts[one], model, task, case, split) for one in {picked, task}}
            routed.setdefault(task, []).append(dice[picked])
            own.setdefault(task, []).append(dice[task])
            right.setdefault(task, []).append(picked == task)
    last = model.folder / "experts" / list(splits)[-1]
    size = sum(file.stat().st_size for file in last.iterdir())
    return {"routed": routed, "own": own, "right": right, "expert_bytes": size}


def _dice(segmenter: Segmenter, model: SavedModel, task: str, case: Case, split: Split) -> float:
    """The mean Dice of the labels of a task, whose values are those of its own data set."""
    found = segmenter.predict(case.read_image())
    values = model.record.experts[task].values
    array = np.zeros_like(found.array)
    for old, new in values.items():
        array[found.array == new] = old
    return score(LabelMap(array, found.geometry, split.labels), case, split.labels).dice


def _started_from(method: UNet, body: Mapping[str, Tensor]) -> UNet:
    """The same method, whose nets start from those of these weights that have the right shape."""

    class Continued(UNet):
        def net(self, plan: NetPlan, labels: int, pretrained: bool = True) -> Net:
            net = super().net(plan, labels, pretrained)
            _load_fitting(net, body)
            return net

    return Continued(**{field.name: getattr(method, field.name) for field in dataclasses.fields(method)})


def _body_of(method: UNet, segmenter: UNetSegmenter) -> dict[str, Tensor]:
    """All weights but those of the last layers, whose shape depends on the number of labels."""
    other = method.net(segmenter.net.plan, len(segmenter.labels) + 1, pretrained=False).state_dict()
    return {name: one for name, one in segmenter.net.state_dict().items() if one.shape == other[name].shape}


def _of_net(segmenter: Segmenter, split: Split) -> list[float]:
    return [score(segmenter.predict(case.read_image()), case, split.labels).dice for case in split.unseen]


def _with_body(segmenter: UNetSegmenter, body: Mapping[str, Tensor]) -> UNetSegmenter:
    changed = copy.deepcopy(segmenter)
    _load_fitting(changed.net, body)
    return changed


def _load_fitting(net: Net, body: Mapping[str, Tensor]) -> None:
    own = net.state_dict()
    fitting = {name: one for name, one in body.items() if name in own and own[name].shape == one.shape}
    net.load_state_dict(own | fitting)


def tables(lines: list[Line]) -> str:
    """Routing after all sets and after each, Dice after each step, and the mean loss of earlier tasks."""
    parts = {part: [line for line in lines if line["part"] == part] for part in ("routing", "dice", "naive")}
    found = []
    if parts["routing"]:
        found += [_after_all(parts["routing"]), _after_each(parts["routing"])]
    if parts["dice"] or parts["naive"]:
        found.append(_dice_table([*parts["dice"], *parts["naive"]]))
    return "\n\n".join(found)


def _after_all(lines: Sequence[Line]) -> str:
    rows = []
    for name in ROUTED:
        picks = [pick for line in lines for pick in line["picked"][-1][name].values()]
        wrong = sorted({pick for pick in picks if pick != name}, key=lambda one: -picks.count(one))
        margins = [margin for line in lines for margin in line["margins"][name]]
        named = ", ".join(f"{one} ({picks.count(one)})" for one in wrong) or "–"
        right = f"{picks.count(name)} of {len(picks)}"
        rows.append([name, right, named, f"{fmean(margins):.2f}", f"{min(margins):.2f}"])
    return table(["data set", "right expert", "others (scans)", "mean margin", "lowest"], rows)


def _after_each(lines: Sequence[Line]) -> str:
    rows = []
    for number in range(len(ROUTED) - 1):
        by_set = [(name, found) for line in lines for name, found in line["picked"][number].items()]
        picks = [pick == name for name, found in by_set for pick in found.values()]
        rows.append([str(number + 2), ROUTED[number + 1], f"{sum(picks)} of {len(picks)}"])
    return table(["experts", "added last", "right expert, all sets so far"], rows)


def _dice_table(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        for step in line["steps"]:
            dice = step.get("routed", step["own"])
            shown = ", ".join(f"{task} {fmean(values):.3f}" for task, values in dice.items())
            first = {task: fmean(_first(line, task)) for task in dice}
            lost = [fmean(values) - first[task] for task, values in dice.items() if task != step["task"]]
            change = f"{fmean(lost):+.3f}" if lost else "–"
            size = f"{step['expert_bytes'] / 1e6:.1f} MB" if "expert_bytes" in step else "–"
            names = [f"{line['configuration']}, {'one net' if line['part'] == 'naive' else 'experts'}", line["order"]]
            rows.append([*names, str(line["split"]), step["task"], shown, change, size])
    heads = ["method", "order", "split", "after", "Dice of each task", "change of earlier tasks", "size of the expert"]
    return table(heads, rows)


def _first(line: Line, task: str) -> list[float]:
    """Dice of a task right after it was learned."""
    step = next(step for step in line["steps"] if step["task"] == task)
    found: list[float] = step.get("routed", step["own"])[task]
    return found


STUDY = Study(about=__doc__ or "", results="continual", trials=trials, tables=tables, sets=(ALL,))

if __name__ == "__main__":
    main()
