"""Damaged DICOM series and segmentations: each is read equal, refused by name, or no checksum could tell.

DICOM is the number of trials; `make fuzz` sets a large one.
"""

import os

import pytest

from fuzz.dicom import damaged
from fuzz.workers import outcomes

COUNT, FIRST = int(os.environ.get("DICOM", "24")), int(os.environ.get("FUZZ_FROM", "0"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_damaged_dicom_is_read_equal_or_refused_or_beyond_any_checksum() -> None:
    counts = outcomes("DICOM files", range(FIRST, FIRST + COUNT), damaged)
    assert counts["refused"] > COUNT // 5
    assert counts["equal"] > 0
