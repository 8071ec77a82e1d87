"""Damaged scans, in a process that may die: each is read equal, refused by name, or no checksum could tell.

`make fuzz` runs many more trials; a fault is repeated by its number with FUZZ_FROM.
"""

import os
from collections import Counter

import pytest

from fuzz.judge import GOOD
from fuzz.workers import trials

COUNT, FIRST = int(os.environ.get("FUZZ", "150")), int(os.environ.get("FUZZ_FROM", "0"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_damaged_scans_are_read_equal_or_refused_or_beyond_any_checksum() -> None:
    counts: Counter[str] = Counter()
    faults = []
    for number, what, found in trials(range(FIRST, FIRST + COUNT)):
        counts[found if found in GOOD else "fault"] += 1
        if found not in GOOD:
            faults.append(f"FUZZ_FROM={number}: {what}: {found}")
    print(f"{COUNT} trials: {dict(counts)}")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
    assert counts["refused"] > COUNT // 3
    assert counts["equal"] > 0
