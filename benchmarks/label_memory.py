"""The memory that reading, fitting and predicting take with few and with many labels, each in a process of its own.

Run as a script with a step and a number of labels, it is that process.
"""

from __future__ import annotations

import json
import sys

from handful.jobs.allocator import tune_allocator
from measure import Check, Section, Table, child, peak_mib

SHAPE = (256, 256, 48)
COUNTS = (2, 117)
MOST = 1.2
"""Largest ratio of the peaks, with the logits of one slice left out."""
ONE_SLICE = 4 * SHAPE[0] * SHAPE[1] / 2**20
"""MiB of the logits of one label on one slice."""
METHODS: dict[str, dict[str, object]] = {
    "nearest-slice": {},
    "few-shot-prompts": {"views": 2, "batch": 1, "train.iterations": 2},
    "unet": {"encoder": "none", "channels": 8, "side": 128, "batch": 1, "train.iterations": 2},
}
"""Settings of the fits that are measured."""
STEPS = ("read", *(f"{name}: {step}" for name in METHODS for step in ("fit", "predict")))


def measure(rounds: int) -> Section:
    rows, checks = [], []
    for step in STEPS:
        few, many = (float(child("label_memory.py", step, str(count))["MiB"]) for count in COUNTS)
        ratio = (many - COUNTS[1] * ONE_SLICE) / few
        rows.append((step, few, many, ratio))
        checks.append(
            Check(f"{step} with {COUNTS[1]} labels takes {ratio:.2f} of the memory with {COUNTS[0]}", ratio <= MOST)
        )
    columns = ("step", *(f"{count} labels, MiB" for count in COUNTS), "ratio, one slice's logits left out")
    title = f"Peak memory on {' × '.join(map(str, SHAPE))} int16, one run"
    return Section((Table(title, columns, tuple(rows)),), tuple(checks))


def main(step: str, count: int) -> dict[str, float]:
    tune_allocator()
    import numpy as np

    from handful.data.cases import Case
    from handful.data.slicing import Slicer
    from handful.data.support import SupportSet
    from handful.data.volume import Geometry, LabelMap, Labels, Volume
    from handful.jobs.memory import PeakMemory
    from handful.methods.catalog import build_method
    from material import tiny

    rng = np.random.default_rng(0)
    geometry = Geometry(SHAPE, np.diag([0.8, 0.8, 1.5, 1.0]))
    labels = Labels(tuple(range(1, count + 1)), tuple(f"label {value}" for value in range(1, count + 1)))
    image = Volume(rng.integers(0, 1000, SHAPE, dtype=np.int16)[None], geometry, "MR")
    grid = [side // 16 for side in SHAPE]
    blocks = rng.permutation(np.arange(np.prod(grid), dtype=np.int16) % (count + 1)).reshape(grid)  # 16 voxels wide
    reference = LabelMap(blocks.repeat(16, 0).repeat(16, 1).repeat(16, 2), geometry, labels)
    support = SupportSet((Case("one", image, reference, labels),), labels)
    if step == "read":
        for _ in support.slices(Slicer()):
            pass
        return {"MiB": peak_mib()}
    name, _, what = step.partition(": ")
    plain = {"roi_margin": "none", "largest_piece": "none"}
    segmenter = build_method(name, {**plain, **METHODS[name]}).fit(support, tiny())
    if what == "predict":
        memory = PeakMemory(segmenter.backbone.device)  # from here on
        segmenter.predict(image)
        return {"MiB": memory.mib()}
    return {"MiB": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
