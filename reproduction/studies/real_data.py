"""Accuracy on real scans from a few labels: methods side by side on the same draws, and what becomes of wrong prompts.

    python -m reproduction.studies.real_data --data FOLDER --out reproduction/results/few_shot_prompts.jsonl

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). Every result is one line in the file, written
when it is known; a line that is there already is not computed again, so a stopped run goes on where it was. With
--table nothing is computed: the Markdown table of the lines so far is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case, SupportSet
from handful.data.files import read_cohort
from handful.evaluation.evaluate import Estimate, score_case
from handful.jobs.allocator import tune_allocator
from handful.methods.base import Segmenter
from handful.methods.catalog import build_method
from handful.methods.few_shot_prompts.method import FewShotSegmenter

SHOTS = {"3D": 4, "2D": 16}
SETS = {"msd_hippocampus": "3D", "acdc": "3D", "chaos_mr_t2": "3D", "cxr_covid": "2D", "kvasir_seg": "2D"}
METHODS = ("nearest-slice", "few-shot-prompts")
CONTROLS = ("wrong tokens", "zero tokens")
MOST_CASES = 25


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        tune_allocator()
        torch.set_num_threads(arguments.threads)
        backbone = load_backbone(arguments.backbone)
        for name in arguments.sets:
            for seed in arguments.seeds:
                for method in arguments.methods:
                    run(arguments, backbone, name, method, seed)
    print(tables(read_lines(arguments.out)))


def run(arguments: argparse.Namespace, backbone: Backbone, name: str, method: str, seed: int) -> None:
    """Fits one method on one draw, scores the unseen cases, and adds a line a method and control to the file."""
    key = {"set": name, "method": method, "seed": seed, "settings": arguments.set, "digest": backbone.digest()[:12]}
    done = [{k: line[k] for k in key} for line in read_lines(arguments.out)]
    if key in done:
        return
    cohort = read_cohort(arguments.data / name)
    assert cohort.labels is not None
    drawn, rest = cohort.draw(SHOTS[SETS[name]], seed)
    unseen = [case for case in rest if case.reference is not None][:MOST_CASES]
    settings: dict[str, object] = dict(pair.split("=", 1) for pair in arguments.set) if "few-shot" in method else {}
    if "few-shot" in method:
        settings["train.seed"] = seed
    began = time.monotonic()
    segmenter = build_method(method, settings).fit(SupportSet(tuple(drawn), cohort.labels), backbone)
    fitted = time.monotonic() - began
    variants: dict[str, Segmenter] = {method: segmenter}
    if isinstance(segmenter, FewShotSegmenter) and arguments.controls:
        variants |= {control: with_tokens(segmenter, control) for control in CONTROLS}
    for variant, one in variants.items():
        began = time.monotonic()
        scores = [score(one, case) for case in unseen]
        line = key | {
            "method": variant,
            "shots": len(drawn),
            "support": [case.name for case in drawn],
            "cases": [case.name for case in unseen],
            "dice": [dice for dice, _, _ in scores],
            "hd95": [distance for _, distance, _ in scores],
            "missed": sum(missed for _, _, missed in scores),
            "fit_s": round(fitted, 1),
            "case_s": round((time.monotonic() - began) / len(unseen), 3),
        }
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(name, seed, variant, f"Dice {np.mean(line['dice']):.3f}", f"fit {fitted:.0f} s", flush=True)


def score(segmenter: Segmenter, case: Case) -> tuple[float, float, int]:
    """Mean Dice and HD95 over the labels of a case (absent ones left out), and how many labels were missed."""
    reference = case.read_reference()
    assert reference is not None
    rows = score_case(case.name, segmenter.predict(case.read_image()), reference, labels=segmenter.labels)
    rows = [row for row in rows if row.status != "absent"]
    missed = sum(row.status == "missed" for row in rows)
    return float(np.mean([r.dice for r in rows])), float(np.mean([r.hd95 for r in rows])), missed


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


def tables(lines: list[dict[str, object]]) -> str:
    """A table for the weights of each backbone, by digest, in the order in which they were measured."""
    digests = dict.fromkeys(str(line["digest"]) for line in lines)
    return "\n\n".join(f"{one}\n\n{table([line for line in lines if line['digest'] == one])}" for one in digests)


def table(lines: list[dict[str, object]]) -> str:
    """Mean Dice over all cases of all draws with its 95 % bootstrap interval, as a Markdown table."""
    names = [name for name in SETS if any(line["set"] == name for line in lines)]
    methods = [m for m in (*METHODS, *CONTROLS) if any(line["method"] == m for line in lines)]
    rows = ["| data set | labelled | draws × unseen | " + " | ".join(methods) + " |"]
    rows.append("|---" * (3 + len(methods)) + "|")
    for name in names:
        of_set = [line for line in lines if line["set"] == name]
        draws = len({line["seed"] for line in of_set})
        cells = [name, str(of_set[0]["shots"]), f"{draws} × {len(of_set[0]['cases'])}"]  # type: ignore[arg-type]
        for method in methods:
            dice = [d for line in of_set if line["method"] == method for d in line["dice"]]  # type: ignore[attr-defined]
            if dice:
                estimate = Estimate.of(dice)
                cells.append(f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")
            else:
                cells.append("–")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/few_shot_prompts.jsonl"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of few-shot-prompts")
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--controls", action="store_true", help="also ask with wrong and with zero class embeddings")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, compute nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
