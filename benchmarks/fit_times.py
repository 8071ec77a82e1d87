"""How long each method takes to learn from a few labelled volumes and to segment another one, with its defaults.

    python benchmarks/fit_times.py --data FOLDER [--sets acdc ...] [--shots 4] [--methods fate ...] [--out FILE]

FOLDER holds one cohort per subfolder. The backbone is handful-tiny on one thread; core-seconds are those of this
process, so they hardly depend on what else the machine does. Lines that --out holds already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from handful.backbones.catalog import load_backbone
from handful.data.cases import Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.jobs.allocator import tune_allocator
from handful.methods.catalog import METHODS, build_method

BACKBONE = "handful-tiny"


def main() -> None:
    arguments = _arguments()
    tune_allocator()
    torch.set_num_threads(1)
    lines = (
        [json.loads(line) for line in arguments.out.read_text("utf-8").splitlines()] if arguments.out.exists() else []
    )
    done = {(line["set"], line["shots"], line["method"]) for line in lines}
    for name in arguments.sets:
        for method in arguments.methods:
            if (name, arguments.shots, method) not in done:
                lines.append({"set": name, **timed(read_cohort(arguments.data / name), arguments.shots, method)})
                print(lines[-1], flush=True)
                arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def timed(cohort: Cohort, shots: int, method: str) -> dict[str, object]:
    """Core-seconds and wall seconds of one fit on split 0, and of the prediction of one unseen volume."""
    assert cohort.labels is not None, cohort.name
    support, unseen = cohort.split(shots, seed=0)
    backbone = load_backbone(BACKBONE)
    began = time.process_time(), time.perf_counter()
    segmenter = build_method(method, {}).fit(SupportSet(tuple(support), cohort.labels), backbone)
    fitted = time.process_time(), time.perf_counter()
    segmenter.predict(unseen[0].read_image())
    predicted = time.process_time()
    return {
        "shots": shots,
        "method": method,
        "threads": 1,
        "fit_core_s": round(fitted[0] - began[0], 1),
        "fit_wall_s": round(fitted[1] - began[1], 1),
        "predict_core_s": round(predicted - fitted[0], 1),
        "torch": torch.__version__,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["msd_hippocampus", "acdc"])
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=sorted(METHODS))
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/fit_times.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
