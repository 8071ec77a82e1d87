"""How well a backbone does on the synthetic episodes that score the training of handful-small.

    python -m reproduction.studies.synthetic --backbone handful-tiny --out reproduction/results/FILE.jsonl

A minute on one core. It adds a line to those of the training, which come from its validation.jsonl: "part" is the part
of the training, or here the backbone. What is in the file is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from handful.backbones.base import MemoryBackbone
from handful.backbones.catalog import load_backbone
from handful.pretraining.validation import validate
from handful.synthesis.worlds import WIDE_WORLD
from reproduction.markdown import table
from reproduction.parts import RESULTS
from reproduction.study import Line, add_lines, read_lines

EPISODES = 24
COLUMNS = {
    "memory": "memory",
    "box": "box",
    "click_1": "1 click",
    "click_5": "5 clicks",
    "detected": "present ones found",
    "rejected": "absent ones rejected",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--out", type=Path, default=RESULTS / "handful_small_validation.jsonl")
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    assert isinstance(backbone, MemoryBackbone)
    key = {"part": arguments.backbone, "digest": backbone.digest()[:12]}
    if not any(key.items() <= line.items() for line in read_lines(arguments.out)):
        add_lines(arguments.out, [key | validate(backbone, WIDE_WORLD, EPISODES)])


def table_of(lines: Sequence[Line]) -> str:
    """One row per validation of the training, and per backbone that was measured for comparison."""
    rows = [(_what(line), *[f"{line[name]:.2f}" for name in COLUMNS]) for line in lines]
    return table(("weights", *COLUMNS.values()), rows)


def _what(line: Line) -> str:
    return f"{line['part']}, after {line['step']} steps" if "step" in line else f"`{line['part']}`"


if __name__ == "__main__":
    main()
