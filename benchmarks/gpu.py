"""Every method on the CPU and on a GPU: whether label maps agree, with the seconds and the peak memory of both.

    python benchmarks/gpu.py [--second auto] [--only METHOD ...] [--rounds 3]

Each method of the catalogue is fitted on two small phantoms and segments a third, on the CPU and on the second device,
with the same seed and handful-tiny. A training diverges between devices, because it repeats differences of rounding;
so the model that the CPU fitted is saved, opened on the second device, and the predictions of this one model are
compared. Label maps agree if the lowest Dice between them, over the labels, is at least 0.98. Borders may differ: by
default, CUDA multiplies in TF32 within convolutions.

Seconds are wall time. Memory is that of the process on a CPU and that of PyTorch's tensors on CUDA. Without a GPU
nothing is measured; `--second cpu` compares the CPU with itself, which tests this script alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handful.checkpoint.model import open_segmenter, save
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Volume
from handful.evaluation.metrics import overlap
from handful.jobs.devices import DEVICES, choose_device
from handful.jobs.memory import PeakMemory
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import METHODS, build_method, default_settings
from material import support, tiny
from measure import Check, Section, Spread, Table, show

LEAST_DICE = 0.98
NO_GPU = "not measured: no GPU on this machine"
SMALL: dict[str, object] = {
    "train.iterations": 8,
    "train.learning_rate": 2e-3,
    "views": 1,
    "batch": 2,
    "channels": 8,
    "side": 64,
    "encoder": "none",
    "initial": "nearest-slice",
    "check": False,
}
"""Settings that shorten a fit, for whatever has them: a method, or a member of one ('unet.batch')."""


def measure(rounds: int, second: str = "auto", only: Sequence[str] = tuple(METHODS)) -> Section:
    device = choose_device(second)
    if second == "auto" and device.type == "cpu":
        return Section((), notes=(NO_GPU,))
    found = {}
    for name in only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = compared(name, device, rounds)
    other = device.type if device.type != "cpu" else "cpu again"
    columns = ("method", "fit s, cpu", f"fit s, {other}", "predict s, cpu", f"predict s, {other}")
    columns += ("MiB, cpu", f"MiB, {other}", "labelled voxels", "lowest Dice")
    checks = [
        Check(f"{name}: label maps agree (Dice {one.dice:.4f}), and are not empty", one.agrees)
        for name, one in found.items()
    ]
    rows = [
        (
            name,
            one.cpu.fit_s,
            one.second.fit_s,
            *one.predict_s,
            one.cpu.mib,
            one.second.mib,
            one.voxels,
            f"{one.dice:.4f}",
        )
        for name, one in found.items()
    ]
    return Section((Table("each method on both devices", columns, tuple(rows)),), tuple(checks))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A method that was fitted on a device."""

    segmenter: Segmenter
    fit_s: float
    mib: float
    """Peak memory of the fit and a prediction."""


@dataclass(frozen=True)
class Comparison:
    """The figures of one method."""

    cpu: Fitted
    second: Fitted
    predict_s: tuple[Spread, Spread]
    voxels: int
    """Labelled voxels in the CPU's prediction."""
    dice: float
    """The lowest of all labels, between the two predictions."""

    @property
    def agrees(self) -> bool:
        return self.voxels > 0 and self.dice >= LEAST_DICE


def small(name: str) -> Method:
    """The method with settings for a short fit."""
    settings = {
        key: value for key in default_settings(name) for end, value in SMALL.items() if f".{key}".endswith(f".{end}")
    }
    return build_method(name, settings)


def compared(name: str, device: torch.device, rounds: int) -> Comparison:
    cases = support(cases=3, shape=(48, 40, 6))
    labelled, query = SupportSet(cases.cases[:2], cases.labels), cases.cases[2].read_image()
    method = small(name)
    cpu, second = (fitted(method, labelled, query, one) for one in (torch.device("cpu"), device))
    with tempfile.TemporaryDirectory() as folder:
        save(cpu.segmenter, Path(folder) / "model", method_name=name, method=method, provenance={})
        other = open_segmenter(Path(folder) / "model", device.type)
    ours, theirs = cpu.segmenter.predict(query), other.predict(query)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for one, into in zip((cpu.segmenter, other), seconds, strict=True):
            into.append(timed(lambda one=one: one.predict(query)))
    voxels = int(np.count_nonzero(np.isin(ours.array, labelled.labels.values)))
    return Comparison(cpu, second, (Spread.of(seconds[0]), Spread.of(seconds[1])), voxels, lowest_dice(ours, theirs))


def fitted(method: Method, labelled: SupportSet, query: Volume, device: torch.device) -> Fitted:
    backbone = tiny().to(device)
    memory, segmenters = PeakMemory(device), []
    seconds = timed(lambda: segmenters.append(method.fit(labelled, backbone)))
    segmenters[0].predict(query)
    return Fitted(segmenters[0], seconds, memory.mib())


def timed(call: Callable[[], object]) -> float:
    """Seconds until the call has returned and its device has finished."""
    began = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def lowest_dice(one: LabelMap, other: LabelMap) -> float:
    return min(overlap(one.array == value, other.array == value).dice for value in one.labels.values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--second", choices=DEVICES, default="auto", help="auto: the GPU, if there is one")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=3, help="predictions of each model")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    failed = show("gpu", measure(arguments.rounds, arguments.second, arguments.only))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
