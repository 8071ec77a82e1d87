"""Scans without labels: read when their turn comes, and never their labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.data.cases import Case
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Volume
from handful.errors import InputError
from phantoms import phantom_case


def test_labels_are_forgotten_at_once():
    scans = UnlabelledScans.of((phantom_case(0), phantom_case(1)))
    assert len(scans) == 2
    assert all(case.reference is None for case in scans.cases)


def test_a_scan_is_read_when_its_turn_comes():
    missing = Case("gone", Path("no such file.nii.gz"))
    scans = iter(UnlabelledScans((phantom_case(0), missing)))
    name, volume = next(scans)
    assert name == phantom_case(0).name
    assert np.array_equal(volume.array, phantom_case(0).read_image().array)
    with pytest.raises(InputError, match="no such file"):
        next(scans)


def test_changes_follow_one_another_and_leave_the_digests_alone():
    def brighter(volume: Volume) -> Volume:
        return replace(volume, array=volume.array + 1)

    plain = UnlabelledScans.of((phantom_case(0),))
    changed = plain.changed(brighter).changed(lambda volume: replace(volume, array=volume.array * 2))
    ((_, before),), ((_, after),) = plain, changed
    assert np.array_equal(after.array, (before.array + 1) * 2)
    assert changed.digests == plain.digests
