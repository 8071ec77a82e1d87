"""Large arrays are in files, and work on blocks gives what work on the whole gives."""

from pathlib import Path

import numpy as np
import pytest

from handful.jobs import scratch
from handful.jobs.scratch import blocks, converted, counts, zeros, zeros_like


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(scratch, "LARGE", 1)
    monkeypatch.setattr(scratch, "BLOCK", 100)
    return str(request.param)


def in_file(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def test_zeros_are_in_a_file_without_a_name_if_they_are_large(place: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = zeros((3, 4, 5), np.int16)
    array[1, 2] = 7
    assert (array.sum(), array.shape, array.dtype) == (35, (3, 4, 5), np.int16)
    assert in_file(array) == (place == "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_another_type_keeps_values_and_memory_order(place: str, order: str):
    array = np.asarray(np.arange(2 * 30 * 4).reshape(2, 30, 4), dtype=">i2", order=order)
    found = converted(array, np.float32, lambda block: block * 2.0)
    np.testing.assert_array_equal(found, array * 2.0)
    assert np.argsort(found.strides).tolist() == np.argsort(array.strides).tolist()
    assert in_file(found) == (place == "file")
    assert converted(found, np.float32) is found
    assert zeros_like(found, np.uint8).strides[np.argmin(array.strides)] == 1


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_blocks_are_small_and_hold_every_voxel_once(place: str, axes: tuple[int, int, int]):
    array = np.random.default_rng(0).integers(0, 5, (7, 8, 9)).astype(np.int16).transpose(axes)
    parts = list(blocks(array))
    assert max(part.nbytes for part in parts) <= 100
    assert sum(part.size for part in parts) == array.size
    assert counts(array) == {value: int((array == value).sum()) for value in range(5)}
