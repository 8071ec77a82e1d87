"""What each method makes of 1, 2, 4, 8 … labelled volumes of real scans: Dice and HD95 of unseen ones, and curves.

    python -m reproduction.studies.label_efficiency --data FOLDER --sets acdc --arms fate unet --shots 1 2 4 8

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). An arm is a method, or a method with settings
such as "fate:window=0,closer=1.4"; the pseudo-setting "shuffled=1" of fate deals its supports out at random, for
comparison with those it retrieves; "reader-box" and "reader-points-1" (3, 5) are the backbone as it is, asked with
prompts out of each scan's own reference on every slice: a bound for that much work, never an automatic result. A cell
(set, arm, shots, draw) is one line in the file, written when it is known; one that is there already is not computed
again, so a stopped run goes on where it was. A larger draw contains the smaller ones, and all arms of a draw see the
same support and the same unseen cases. Cells are spread over processes of one thread each. With --table nothing is
computed; --curves draws a picture.

A case's Dice and HD95 (mm, pixels for pictures) are means over its labels; a missed organ counts with Dice 0 and the
largest distance in its scan. Intervals are 95 % bootstrap intervals over all cases of all draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case, SupportSet
from handful.data.files import read_cohort
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap
from handful.evaluation.evaluate import Estimate, score_case
from handful.methods.base import Segmenter
from handful.methods.catalog import build_method, method_settings
from handful.methods.fate.method import FateSegmenter
from handful.methods.promptable import PromptKind, oracle
from handful.methods.zero_shot import ZeroShot
from reproduction.studies.foundation import called_present
from reproduction.study import Line, my_backbone, read_lines, spread

SETS = (
    "msd_hippocampus",
    "acdc",
    "chaos_mr_t2",
    "openkbp",
    "busi",
    "camus",
    "cxr_covid",
    "drishti_gs",
    "kvasir_seg",
    "dsb2018",
)
READERS: dict[str, PromptKind] = {
    "reader-box": "box",
    "reader-points-1": "points-1",
    "reader-points-3": "points-3",
    "reader-points-5": "points-5",
}
JITTER = 0.05
"""Each side of a reader's box is off by up to this share of the box."""
MOST_CASES = {"openkbp": 6}
"""Unseen cases at most, where a volume takes long."""


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        todo = list(cells(arguments))
        spread(todo, measure, told, out=arguments.out, processes=arguments.processes, backbone=arguments.backbone)
    lines = [line for line in read_lines(arguments.out) if not arguments.sets or line["set"] in arguments.sets]
    print(tables(lines, arguments.arms))
    if arguments.curves:
        draw(lines, arguments.arms or list(dict.fromkeys(line["arm"] for line in lines)), arguments.curves)


@dataclass(frozen=True)
class Cell:
    """One fit and its evaluation."""

    folder: Path
    arm: str
    shots: int
    draw: int
    most: int
    digest: str

    def key(self) -> Line:
        return {
            "set": self.folder.name,
            "arm": self.arm,
            "shots": self.shots,
            "draw": self.draw,
            "most_cases": self.most,
            "digest": self.digest,
        }


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All cells asked for and not in the file, small draws first."""
    digest = load_backbone(arguments.backbone).digest()[:12]
    done = read_lines(arguments.out)
    for shots in arguments.shots:
        for seed in arguments.draws:
            for name in arguments.sets:
                for arm in arguments.arms:
                    most = min(arguments.cases, MOST_CASES.get(name, arguments.cases))
                    cell = Cell(arguments.data / name, arm, shots, seed, most, digest)
                    if not any({k: line[k] for k in cell.key()} == cell.key() for line in done):
                        yield cell


def told(line: Line) -> str:
    what = f"{line['set']} {line['arm']} {line['shots']} shots, draw {line['draw']}"
    took = f"fit {line['fit_s']:.0f} s, {line['case_s']:.1f} s a case"
    return f"{what}: Dice {np.mean(line['dice']):.3f}, {took}"


def measure(cell: Cell) -> Line:
    """Fits and scores a cell in this process."""
    cohort = read_cohort(cell.folder)
    assert cohort.labels is not None
    drawn, rest = cohort.draw(cell.shots, cell.draw)
    unseen = [case for case in rest if case.reference is not None][: cell.most]
    support, backbone = SupportSet(tuple(drawn), cohort.labels), my_backbone()
    began = time.monotonic()
    slicer = Slicer().resolve(support.images())
    if cell.arm in READERS:
        segment = oracle(ZeroShot().promptable(cohort.labels, backbone, slicer), READERS[cell.arm], JITTER)
    else:
        segmenter = _fitted(cell, support, backbone)

        def segment(case: Case) -> LabelMap:
            return segmenter.predict(case.read_image())

    fitted = time.monotonic()
    dice, distance, missed, absent = [], [], 0, []
    for case in unseen:
        reference = case.read_reference()
        assert reference is not None
        found = segment(case)
        rows = [r for r in score_case(case.name, found, reference, labels=cohort.labels) if r.status != "absent"]
        dice.append(round(float(np.mean([row.dice for row in rows])), 5))
        distance.append(round(float(np.mean([row.hd95 for row in rows])), 3))
        missed += sum(row.status == "missed" for row in rows)
        absent.append(called_present(slicer, case, found))
    ended = time.monotonic()
    return cell.key() | {
        "support": [case.name for case in drawn],
        "cases": [case.name for case in unseen],
        "dice": dice,
        "hd95": distance,
        "missed": missed,
        "absent": absent,
        "fit_s": round(fitted - began, 1),
        "case_s": round((ended - fitted) / len(unseen), 3),
    }


def _fitted(cell: Cell, support: SupportSet, backbone: Backbone) -> Segmenter:
    name, _, text = cell.arm.partition(":")
    settings: dict[str, object] = {}
    last = ""
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if equals:
            last, settings[key] = key, value
        elif pair:  # the next value of a list
            settings[last] = f"{settings[last]},{pair}"
    shuffled = settings.pop("shuffled", None)
    if "train" in method_settings(build_method(name, {})):
        settings["train.seed"] = cell.draw
    segmenter = build_method(name, settings).fit(support, backbone)
    if shuffled and isinstance(segmenter, FateSegmenter):
        generator = torch.Generator().manual_seed(cell.draw)
        for signature in segmenter.bank.signatures:
            signature.copy_(signature[torch.randperm(len(signature), generator=generator)])
    return segmenter


def tables(lines: list[Line], arms: list[str]) -> str:
    """A Markdown table a set and backbone: Dice and HD95 of each arm and number of labelled cases."""
    parts = []
    for name, digest in dict.fromkeys((line["set"], line["digest"]) for line in lines):
        own = [line for line in lines if (line["set"], line["digest"]) == (name, digest)]
        shots = sorted({line["shots"] for line in own})
        draws, most = len({line["draw"] for line in own}), max(len(line["cases"]) for line in own)
        rows = [f"**{name}** ({digest}; {draws} draws, up to {most} unseen cases each)", ""]
        heads = [*[f"{n} labelled" for n in shots], "HD95", "absent called present", "fit, s a case"]
        rows.append("| method | " + " | ".join(heads) + " |")
        rows.append("|---" * (1 + len(heads)) + "|")
        for arm in [a for a in arms if any(line["arm"] == a for line in own)] or dict.fromkeys(
            line["arm"] for line in own
        ):
            of_arm = [line for line in own if line["arm"] == arm]
            row = [_estimate([d for line in of_arm if line["shots"] == n for d in line["dice"]]) for n in shots]
            largest = [line for line in of_arm if line["shots"] == max(line["shots"] for line in of_arm)]
            far = " / ".join(_mean([d for line in of_arm if line["shots"] == n for d in line["hd95"]]) for n in shots)
            fit, case = (np.mean([line[key] for line in largest]) for key in ("fit_s", "case_s"))
            absent = np.sum([one for line in of_arm for one in line["absent"]], axis=0)
            invented = f"{100 * absent[1] / absent[0]:.0f} %, {absent[2] / absent[0]:.0f} voxels" if absent[0] else "–"
            rows.append("| " + " | ".join([arm, *row, far, invented, f"{fit:.0f}, {case:.1f}"]) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _estimate(values: list[float]) -> str:
    if not values:
        return "–"
    found = Estimate.of(values)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" if values else "–"


def draw(lines: list[Line], arms: list[str], path: Path) -> None:
    """Dice over the number of labelled cases, a panel a set; bars are the intervals."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line["set"] for line in lines))
    figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        own = [line for line in lines if line["set"] == name]
        for number, arm in enumerate(arms):
            shots = sorted({line["shots"] for line in own if line["arm"] == arm})
            if not shots:
                continue
            found = [
                Estimate.of([d for line in own if (line["arm"], line["shots"]) == (arm, n) for d in line["dice"]])
                for n in shots
            ]
            means = np.array([one.mean for one in found])
            reach = [means - [one.low for one in found], [one.high for one in found] - means]
            style = "--" if arm in READERS else "-"
            axes.errorbar(
                shots, means, reach, label=arm, color=f"C{number % 10}", linestyle=style, marker="o", ms=4, capsize=2
            )
        axes.set(title=name, xlabel="labelled cases", ylabel="mean Dice of unseen cases", xscale="log", ylim=(0, 1))
        ticks = sorted({line["shots"] for line in own})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/label_efficiency.jsonl"))
    parser.add_argument("--sets", nargs="+", default=[], choices=SETS)
    parser.add_argument("--arms", nargs="+", default=[], metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=12, help="unseen cases a draw, at most")
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, compute nothing")
    parser.add_argument("--curves", type=Path, help="picture to draw")
    found = parser.parse_args()
    if not found.table and not (found.data and found.sets and found.arms):
        parser.error("give --data, --sets and --arms, or --table")
    return found


if __name__ == "__main__":
    main()
