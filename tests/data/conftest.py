"""What the tests of the data room share: a small scan on an oblique grid, and its label map."""

import numpy as np
import pytest

from handful.data.volume import Geometry, LabelMap, Labels, Volume


@pytest.fixture
def labels() -> Labels:
    return Labels((1, 3), ("ball", "egg"))


@pytest.fixture
def geometry() -> Geometry:
    turn = np.deg2rad(10)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine[:3, :3] *= [0.7, -0.8, 3.0]
    affine[:3, 3] = [-30.5, 12.25, 100]
    return Geometry((9, 7, 5), affine)


@pytest.fixture
def volume(geometry: Geometry) -> Volume:
    """16-bit integers, all different."""
    return Volume(np.arange(9 * 7 * 5, dtype=np.int16).reshape(1, 9, 7, 5), geometry)


@pytest.fixture
def label_map(geometry: Geometry, labels: Labels) -> LabelMap:
    """Label 1 in slices 1 and 2, label 3 in slice 3 of the last axis."""
    array = np.zeros((9, 7, 5), dtype=np.int16)
    array[2:5, 2:5, 1:3] = 1
    array[5:8, 3:6, 3] = 3
    return LabelMap(array, geometry, labels)
