import os
from pathlib import Path

import numpy as np
import pytest

from handful.errors import InputError
from handful.jobs.files import open_file, reserved


def test_a_part_of_a_file_holds_an_array(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as file:
        first = reserved(file, np.dtype(np.int16), (3, 4))
        second = reserved(file, np.dtype(np.float32), (2, 5), offset=64, order="F")
        first[...], second[...] = 7, 0.5
        assert (first == 7).all()
        assert second.flags.f_contiguous
    assert (tmp_path / "f").stat().st_size == 64 + 40


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "r+b", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        reserved(full, np.dtype(np.float16), (10,))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_file(tmp_path / "nothing")
