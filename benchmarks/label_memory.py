"""The memory that reading a labelled scan and a fit take with few and with many labels, each in a process of its own.

Run as a script with the number of labels, it is that process.
"""

from __future__ import annotations

import json
import sys

from handful.jobs.allocator import tune_allocator
from measure import Check, Section, Table, child, peak_mib

SHAPE = (256, 256, 64)
COUNTS = (2, 117)
MOST = 1.2
"""Largest ratio of the peaks, with the logits of one slice left out."""


def measure(rounds: int) -> Section:
    found = {count: child("label_memory.py", str(count)) for count in COUNTS}
    rows = tuple((count, float(one["slices MiB"]), float(one["fit MiB"])) for count, one in found.items())
    few, many = (float(found[count]["slices MiB"]) for count in COUNTS)
    return Section(
        (Table(f"Labels on {' × '.join(map(str, SHAPE))} int16, one run", ("labels", "read MiB", "fit MiB"), rows),),
        (Check(f"{COUNTS[1]} labels take {many / few:.2f} of the memory of {COUNTS[0]} to read", many <= MOST * few),),
    )


def main(count: int) -> dict[str, float]:
    tune_allocator()
    import numpy as np

    from handful.data.cases import Case
    from handful.data.slicing import Slicer
    from handful.data.support import SupportSet
    from handful.data.volume import Geometry, LabelMap, Labels, Volume
    from handful.methods.nearest_slice import NearestSlice
    from material import tiny

    rng = np.random.default_rng(0)
    geometry = Geometry(SHAPE, np.diag([0.8, 0.8, 1.5, 1.0]))
    labels = Labels(tuple(range(1, count + 1)), tuple(f"label {value}" for value in range(1, count + 1)))
    image = Volume(rng.integers(0, 1000, SHAPE, dtype=np.int16)[None], geometry, "MR")
    reference = LabelMap(rng.integers(0, count + 1, SHAPE, dtype=np.int16), geometry, labels)
    backbone = tiny()
    support = SupportSet((Case("one", image, reference, labels),), labels)
    slices = list(support.slices(Slicer()))
    read = peak_mib()
    del slices
    NearestSlice().fit(support, backbone)
    return {"slices MiB": read, "fit MiB": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
