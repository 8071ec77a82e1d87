"""Speed and memory of handful on this machine, part by part: tables for people, JSON for comparisons.

    python benchmarks/run.py [--only NAME ...] [--rounds N] [--json FILE]

Ends with status 1 where something that must hold does not. How figures are taken says measure.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import time
from pathlib import Path

from measure import Section, console, show

PARTS = {
    "start-up": "start_up",
    "encode-decode": "encode_decode",
    "fast": "fast",
    "int8": "int8",
    "against-transformers": "against_transformers",
    "peers": "peers",
    "all-labels": "all_labels",
    "cache": "embedding_cache",
    "allocator": "allocator",
    "peak-memory": "peak_memory",
    "label-memory": "label_memory",
    "multi-region": "multi_region",
    "gpu": "gpu",
}


def main() -> int:
    arguments = _arguments()
    # Waiting threads that spin would count as work; read when torch is first imported, here and in child processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    machine = _machine()
    out = console()
    out.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    sections: dict[str, Section] = {}
    seconds: dict[str, float] = {}
    failed = 0
    for name in arguments.only:
        began = time.perf_counter()
        sections[name] = importlib.import_module(PARTS[name]).measure(arguments.rounds)
        seconds[name] = time.perf_counter() - began
        failed += show(f"{name} ({seconds[name]:.0f} s)", sections[name])
    if arguments.json:
        found = {name: dataclasses.asdict(section) | {"seconds": seconds[name]} for name, section in sections.items()}
        arguments.json.write_text(json.dumps({"machine": machine, "parts": found}, indent=2) + "\n", encoding="utf-8")
    out.print(f"{sum(seconds.values()):.0f} s in all; {failed} of the checks failed")
    return 1 if failed else 0


def _machine() -> dict[str, str | int | float]:
    """What the figures depend on; torch is tuned here as the command line tunes it."""
    from handful.jobs.allocator import tune_allocator

    tuned = tune_allocator()
    import torch

    return {
        "handful on Python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 1),
        "allocator tuned": str(tuned),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="NAME", help=str([*PARTS])
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
