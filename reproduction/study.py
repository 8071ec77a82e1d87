"""Cells of a benchmark over processes of one thread each; a JSON line a cell, written as soon as it is known."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import torch

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.jobs.allocator import tune_allocator

Line = dict[str, Any]
Cell = TypeVar("Cell")
_backbones: dict[str, Backbone] = {}


def spread(
    todo: Sequence[Cell],
    measure: Callable[[Cell], Line],
    told: Callable[[Line], str],
    *,
    out: Path,
    processes: int,
    backbone: str,
    cache: Path | None = None,
) -> None:
    """Adds the line of each cell to `out` as it ends, and prints what is `told` of it with the time that is left.

    With a `cache`, a folder of kept embeddings, each slice is encoded once by all cells.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    context, began = multiprocessing.get_context("spawn"), time.monotonic()
    with ProcessPoolExecutor(processes, context, _start, (backbone, cache)) as pool:
        for number, future in enumerate(as_completed([pool.submit(measure, cell) for cell in todo]), start=1):
            line = future.result()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            left = (time.monotonic() - began) / number * (len(todo) - number) / 60
            print(f"{number}/{len(todo)} {told(line)}; {left:.0f} min left", flush=True)


def my_backbone() -> Backbone:
    """The backbone of this process, loaded once."""
    return _backbones["mine"]


def read_lines(path: Path) -> list[Line]:
    """The lines that are there; none where the file is not."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _start(backbone: str, cache: Path | None) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    plain = load_backbone(backbone)
    _backbones["mine"] = cached(plain, cache) if cache else plain
