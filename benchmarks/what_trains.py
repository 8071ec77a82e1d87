"""Which parameters each method trains, whether the image encoder is touched, and what keeping embeddings saves.

    python benchmarks/what_trains.py [--out reproduction/results/what_trains.jsonl] [--rounds 5]

On two phantoms, with a few steps of training: what is counted does not depend on how long. Lines are written anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import embedding_cache
from handful.methods.catalog import build_method, method_settings
from material import support, tiny
from measure import Spread

METHODS = ("fate", "few-shot-prompts", "auto-sam-unet", "interactive", "nearest-slice", "zero-shot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/what_trains.jsonl"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    lines = [trained(name) for name in METHODS] + [kept(arguments.rounds)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    arguments.out.write_text(text, encoding="utf-8")
    print(text, end="")


def trained(name: str) -> dict[str, Any]:
    """Fits a method and counts; a segmenter predicts from the scan alone, nobody is asked for prompts."""
    short = {"train.iterations": 4} if "train" in method_settings(build_method(name, {})) else {}
    backbone, shown = tiny(), support()
    before = backbone.digest()
    segmenter = build_method(name, short).fit(shown, backbone)
    image = shown.cases[0].read_image()
    return {
        "what": "trained",
        "method": name,
        "backbone": backbone.name,
        "trained_parameters": sum(p.numel() for p in segmenter.parameters() if p.requires_grad),
        "backbone_parameters": sum(p.numel() for p in backbone.parameters()),
        "backbone_is_untouched": backbone.digest() == before,
        "predicts_from_the_scan_alone": segmenter.predict(image).array.shape == image.geometry.shape,
    }


def kept(rounds: int) -> dict[str, Any]:
    """An epoch of few-shot prompts on kept embeddings, and encoding at every step; and whether results are the same."""
    section = embedding_cache.measure(rounds)
    times = next(row[-1] for row in section.tables[0].rows if row[0] == "encoded at each step")
    assert isinstance(times, Spread)
    return {
        "what": "embeddings kept",
        "method": "few-shot-prompts",
        "times_faster": [times.median, times.low, times.high],
        "rounds": rounds,
        "same_result": all(check.holds for check in section.checks),
    }


if __name__ == "__main__":
    main()
