"""The memory that a large CT takes to segment, and how long a slice takes, in a process of its own.

Run as a script, it is that process.
"""

from __future__ import annotations

import json
import time

from handful.jobs.allocator import tune_allocator
from measure import Check, Section, Table, child, peak_mib

SHAPE = (512, 512, 300)
LIMIT_MIB = 4096


def measure(rounds: int) -> Section:
    found = {name: float(value) for name, value in child("peak_memory.py").items()}
    peak = found["peak MiB"]
    columns = ("loaded and fitted MiB", "volume MiB", "peak MiB", "core-s a slice", "wall s a slice", "wall s")
    row = (found["before MiB"], found["volume MiB"], peak, found["core"], found["wall"], found["wall"] * SHAPE[2])
    return Section(
        (Table(f"Two labels on {' × '.join(map(str, SHAPE))} int16, one run", columns, (row,)),),
        (Check(f"peak memory {peak:.0f} MiB is at most {LIMIT_MIB} MiB", peak <= LIMIT_MIB),),
    )


def main() -> dict[str, float]:
    tune_allocator()  # as the command line does
    import numpy as np

    from handful.data.volume import Geometry, Volume
    from handful.methods.few_shot_prompts.method import FewShotPrompts
    from handful.tuning.loop import TrainConfig
    from material import support, tiny

    segmenter = FewShotPrompts(views=1, train=TrainConfig(iterations=1)).fit(support(), tiny())
    before = peak_mib()
    rng = np.random.default_rng(0)
    voxels = np.empty(SHAPE[::-1], dtype=np.int16)  # slice by slice, as files are read
    for voxels_of_slice in voxels:
        voxels_of_slice[...] = rng.integers(-1000, 1000, SHAPE[1::-1], dtype=np.int16)
    volume = Volume(voxels.T[None], Geometry(SHAPE, np.diag([0.8, 0.8, 1.5, 1.0])))
    core_began, wall_began = time.process_time(), time.perf_counter()
    answer = segmenter.predict(volume)
    core, wall = time.process_time() - core_began, time.perf_counter() - wall_began
    assert answer.array.shape == SHAPE
    return {
        "before MiB": before,
        "volume MiB": voxels.nbytes / 2**20,
        "peak MiB": peak_mib(),
        "core": core / SHAPE[2],
        "wall": wall / SHAPE[2],
    }


if __name__ == "__main__":
    print(json.dumps(main()))
