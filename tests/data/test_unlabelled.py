"""Scans without labels: read when their turn comes, and never their labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.data.cases import Case
from handful.data.slice_grid import Block
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


def test_crops_follow_one_another_and_leave_the_digests_alone():
    def inner(volume: Volume) -> Block:
        i, j, k = volume.geometry.shape
        return slice(1, i), slice(0, j), slice(2, k - 1)

    case = phantom_case(0)
    plain = replace(UnlabelledScans.of((case,)), labels={case.name: case.read_reference()})
    cropped = plain.cropped(inner).cropped(inner)
    ((_, before),), ((_, after),) = plain, cropped
    assert np.array_equal(after.array, before.array[:, 2:, :, 4:-2])
    world = before.geometry.affine @ [2, 0, 4, 1]
    assert np.allclose(after.geometry.affine @ [0, 0, 0, 1], world)
    ((_, volume, labels),) = cropped.with_labels()
    assert np.array_equal(volume.array, after.array)
    assert np.array_equal(labels.array, case.read_reference().array[2:, :, 4:-2])
    labels.geometry.require_same(volume.geometry, "labels and image")
    assert cropped.digests == plain.digests


def test_scans_that_cannot_be_read_are_told_and_reading_is_reported():
    missing, reports = Case("gone", Path("no such file.nii.gz")), []
    cases = (phantom_case(0), missing, phantom_case(1))
    scans, errors = UnlabelledScans.of_readable(cases, lambda *report: reports.append(report))
    assert [case.name for case in scans.cases] == ["phantom-0", "phantom-1"]
    assert list(errors) == ["gone"]
    assert reports == [(1, 3, "phantom-0"), (2, 3, "gone"), (3, 3, "phantom-1")]
