"""From click to mask in a session: how long it takes, what 200 clicks leave in memory, whether undo is exact.

    python benchmarks/session_latency.py [--backbone handful-tiny] [--threads 2] [--clicks 200]

A phantom scan; each click falls somewhere inside a label of a slice that is encoded already, corrections going in with
the answer before them. Slices take turns, so that prompts pile up to as many as a patient reader gives. Clicks without
a background are the figure to compare; those with one share the cores with the slices being encoded. Memory is what the
process holds (RSS) after garbage was collected, before the first of the clicks counted and after the last.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import numpy as np
import torch

from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.jobs.allocator import tune_allocator
from handful.session.session import Session, SessionConfig
from handful.synthesis.episodes import phantom_cohort
from measure import Spread

WARM_UP = 20
ENLARGED = 4
"""Times that the phantom's rows and columns are repeated, for slices as large as those of scans."""


def main() -> None:
    arguments = _arguments()
    tune_allocator()
    torch.set_num_threads(arguments.threads)
    backbone = load_backbone(arguments.backbone)
    volume, reference = scan()
    quiet = Session(volume, backbone, reference.labels, config=SessionConfig(background=False))
    print(f"{backbone.name}, {len(quiet)} slices of {quiet.size}, {arguments.threads} threads")
    began = time.perf_counter()
    quiet.click(*places(quiet, reference, 1)[0])
    print(f"first click on a slice, with its encode: {1000 * (time.perf_counter() - began):.0f} ms")

    clicks = places(quiet, reference, WARM_UP + arguments.clicks)
    timed(quiet, clicks[:WARM_UP])
    before = resident_mib()
    took = timed(quiet, clicks[WARM_UP:])
    after = resident_mib()
    print(f"click to mask, embedding kept: {Spread.of(took)} ms over {len(took)} clicks")
    each = 1024 * (after - before) / len(took)
    print(f"memory: {before:.1f} MiB before, {after:.1f} MiB after, {each:.1f} KiB a click")
    print(f"undo and redo restore bit for bit: {'yes' if undo_is_exact(quiet, 50) else 'NO'}")
    beside = Spread.of(beside_the_background(backbone, volume, reference))
    print(f"click to mask while the background encodes: {beside} ms")


def scan() -> tuple[Volume, LabelMap]:
    phantom = next(iter(phantom_cohort(1, 0)))
    image, classes = (a.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for a in (phantom.image, phantom.labels))
    geometry = Geometry(image.shape, phantom.affine @ np.diag([1 / ENLARGED, 1 / ENLARGED, 1, 1]))
    labels = Labels.of(phantom.names)
    return Volume(image[None], geometry), LabelMap(classes, geometry, labels)


def places(session: Session, reference: LabelMap, count: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Slice, label and (x, y) of clicks inside labels, on the eight slices in the middle, in turn."""
    truth = session.slicer.view(session.volume).of(reference.array)
    middle = range(len(session) // 2 - 4, len(session) // 2 + 4)
    regions = [(n, int(v)) for n in middle for v in np.unique(truth[n]) if v in session.labels.values]
    rng = np.random.default_rng(0)
    chosen = []
    for turn in range(count):
        number, value = regions[turn % len(regions)]
        y, x = rng.choice(np.argwhere(truth[number] == value)).tolist()
        chosen.append((number, value, (float(x), float(y))))
    return chosen


def timed(session: Session, clicks: list[tuple[int, int, tuple[float, float]]]) -> list[float]:
    """Milliseconds of each click; slices that were never encoded are so before."""
    for number in sorted({number for number, _, _ in clicks}):
        session.click(number, clicks[0][1], (1.0, 1.0))
        session.undo()
    took = []
    for number, value, xy in clicks:
        began = time.perf_counter()
        session.click(number, value, xy)
        took.append(1000 * (time.perf_counter() - began))
    return took


def undo_is_exact(session: Session, steps: int) -> bool:
    """Steps back and forth, the whole segmentation compared at both ends and half-way."""
    states = [session.export().array]
    for _ in range(2):
        for _ in range(steps // 2):
            session.undo()
        states.append(session.export().array)
    exact = True
    for state in reversed(states[:-1]):
        for _ in range(steps // 2):
            session.redo()
        exact = exact and np.array_equal(session.export().array, state)
    return exact and not np.array_equal(states[0], states[-1])


def beside_the_background(backbone: Backbone, volume: Volume, reference: LabelMap) -> list[float]:
    """Milliseconds of clicks on one slice while those beside it are encoded; the first waits for its own encode."""
    with Session(volume, backbone, reference.labels) as session:
        clicks = [one for one in places(session, reference, 64) if one[0] == len(session) // 2]
        took = []
        for number, value, xy in clicks:
            began = time.perf_counter()
            session.click(number, value, xy)
            took.append(1000 * (time.perf_counter() - began))
    return took[1:]


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clicks", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    main()
