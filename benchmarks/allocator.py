"""Start-up tuning of the memory allocator: on and off by turns, each in a process of its own.

Run as a script with "on" or "off" and the number of rounds, it is that process.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from handful.jobs.allocator import tune_allocator
from measure import Cell, Check, Section, Spread, Table, child, peak_mib

WORK = ("tiny", "larger")
FIGURES = ("core", "system", "wall", "faults")
PROCESSES = 3

Found = dict[str, float | str]


def measure(rounds: int) -> Section:
    answers: dict[str, list[Found]] = {"off": [], "on": []}
    for _ in range(min(rounds, PROCESSES)):
        for mode, found in answers.items():
            found.append(child("allocator.py", mode, str(rounds)))
    rows: list[tuple[Cell, ...]] = []
    checks = []
    for work in WORK:
        name = str(answers["off"][0][f"{work} name"])
        before = _column(answers["off"], f"{work} core")
        for mode, found in answers.items():
            figures = [Spread.of(_column(found, f"{work} {what}")) for what in FIGURES]
            after = _column(found, f"{work} core")
            gain = Spread.of([slow / fast for slow, fast in zip(before, after, strict=True)])
            peak = round(statistics.median(_column(found, f"{work} peak")))
            rows.append((name, mode, *figures, peak, gain))
        hashes = {one[f"{work} hash"] for found in answers.values() for one in found}
        checks.append(Check(f"{name}: the same output with and without, bit by bit", len(hashes) == 1))
    columns = ("encode", "tuned", "core-s", "of it system", "wall s", "page faults", "peak MiB", "× speed-up")
    notes = () if all(one["tuned"] for one in answers["on"]) else ("Not glibc: tuning does nothing here.",)
    return Section((Table("tune_allocator(), figures a call", columns, tuple(rows)),), tuple(checks), notes)


def _column(found: list[Found], key: str) -> list[float]:
    return [float(one[key]) for one in found]


def main(mode: str, rounds: int) -> Found:
    """Figures of one process: handful-tiny first, then the larger model."""
    tuned = mode == "on" and tune_allocator()
    import torch

    from handful.jobs.digests import digest_of
    from material import sam2_tiny, slices, tiny

    found: Found = {"tuned": tuned}
    for work, make, count in (("tiny", tiny, 8), ("larger", sam2_tiny, 1)):
        backbone = make()
        shown = slices(count, backbone.side)
        with torch.inference_mode():
            digest = digest_of(*backbone.encode(shown).features)
            samples = [_sample(partial(backbone.encode, shown)) for _ in range(rounds)]
        for what, column in zip(FIGURES, zip(*samples, strict=True), strict=True):
            found[f"{work} {what}"] = statistics.median(column)
        found[f"{work} name"] = f"{backbone.name}, {count} slice{'s' * (count > 1)}"
        found[f"{work} hash"] = digest
        found[f"{work} peak"] = peak_mib()
    return found


def _sample(call: Callable[[], object]) -> tuple[float, float, float, int]:
    """FIGURES of one call."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return system + after.ru_utime - before.ru_utime, system, wall, after.ru_minflt - before.ru_minflt


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
