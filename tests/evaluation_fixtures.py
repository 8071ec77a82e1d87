"""Small label maps whose scores can be worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from handful.data.volume import Geometry, LabelMap, Labels, Volume

SPACING = (1.0, 2.0, 3.0)
LABELS = Labels((1, 2), ("liver", "spleen"))


@pytest.fixture
def label_map() -> Callable[..., LabelMap]:
    """Boxes {label: (i, j, k slices)} painted on a 12 x 10 x 8 grid of 1 x 2 x 3 mm voxels."""

    def paint(boxes: dict[int, tuple[slice, slice, slice]], labels: Labels = LABELS, unit: str = "mm") -> LabelMap:
        array = np.zeros((12, 10, 8), dtype=np.int16)
        for value, box in boxes.items():
            array[box] = value
        return LabelMap(array, Geometry(array.shape, np.diag([*SPACING, 1.0]), unit), labels)

    return paint


@pytest.fixture
def cube() -> Callable[..., tuple[slice, slice, slice]]:
    """A 3 x 3 x 3 box starting at a voxel."""
    return lambda i=1, j=1, k=1: (slice(i, i + 3), slice(j, j + 3), slice(k, k + 3))


@pytest.fixture
def scan() -> Callable[[LabelMap], Volume]:
    """A grey image in which each label of a map is a little brighter than the one before."""

    def render(labels: LabelMap) -> Volume:
        noise = np.random.default_rng(0).normal(0, 5, labels.array.shape)
        return Volume((100.0 + 40 * labels.array + noise).astype(np.float32)[None], labels.geometry)

    return render
