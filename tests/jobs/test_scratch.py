"""Large arrays are in files, and work on blocks gives what work on the whole gives."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from handful.errors import InputError
from handful.jobs import scratch
from handful.jobs.scratch import blocks, bytes_in_file, converted, counts, row_major_blocks, zeros, zeros_like


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(scratch, "LARGE", 1)
    for limit in ("BLOCK", "_COPY"):
        monkeypatch.setattr(scratch, limit, 100)
    monkeypatch.setattr(scratch, "_TILE", 12)
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


@pytest.mark.parametrize("axes", itertools.permutations(range(3)))
def test_row_major_blocks_are_small_copies_in_row_major_order(place: str, axes: tuple[int, int, int]):
    array = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9).transpose(axes)[:, ::-1]
    parts = list(row_major_blocks(array))
    assert max(part.nbytes for part in parts) <= max(100, array[0].nbytes)
    assert b"".join(part.tobytes() for part in parts) == array.tobytes()
    assert all(part.flags.c_contiguous for part in parts)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file can become larger, as on a full disk."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(__import__("signal"), "SIGXFSZ"), reason="the system cannot limit the size of files")
@pytest.mark.parametrize("make", [lambda: zeros((3000,), np.uint8), lambda: bytes_in_file([bytes(3000)])])
def test_a_full_disk_is_explained(make, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "LARGE", 1)
    with at_most(2000), pytest.raises(InputError, match=rf"{tmp_path}: .*cannot be written.*free space.*TMPDIR"):
        make()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"missing: .*No such file.*TMPDIR"):
        bytes_in_file([b"voxels"])


def test_an_error_of_what_is_stored_is_not_one_of_the_folder():
    def broken() -> Iterator[bytes]:
        yield b"voxels"
        raise OSError("the scan's disk")

    with pytest.raises(OSError, match="the scan's disk"):
        bytes_in_file(broken())
