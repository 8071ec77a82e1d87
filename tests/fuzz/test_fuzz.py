"""Damaged scans, in a process that may die: each is read equal, refused by name, or no checksum could tell.

`make fuzz` runs many more trials; a fault is repeated by its number with FUZZ_FROM.
"""

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from fuzz.judge import outcome
from fuzz.mutations import mutate
from fuzz.originals import Original, originals
from fuzz.workers import Trial, outcomes
from handful.data.formats import read_volume
from handful.data.volume import Volume

COUNT, FIRST = int(os.environ.get("FUZZ", "150")), int(os.environ.get("FUZZ_FROM", "0"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_damaged_scans_are_read_equal_or_refused_or_beyond_any_checksum() -> None:
    counts = outcomes("scans", range(FIRST, FIRST + COUNT), damaged_scan)
    assert counts["refused"] > COUNT // 3
    assert counts["equal"] > 0


def damaged_scan(number: int) -> Trial:
    files = _originals()
    mutated = mutate(files[number % len(files)], np.random.default_rng([27, number]))
    original = mutated.original
    where = "header" if mutated.in_header else "file"
    return f"{where} {original.name}: {mutated.what}", lambda folder: outcome(mutated, _truth(original.name), folder)


_originals = cache(originals)


@cache
def _truth(name: str) -> Volume:
    original: Original = next(one for one in _originals() if one.name == name)
    with TemporaryDirectory() as folder:
        path = Path(folder) / original.name
        path.write_bytes(original.content)
        if original.beside is not None:
            (path.parent / original.beside[0]).write_bytes(original.beside[1])
        return read_volume(path)
