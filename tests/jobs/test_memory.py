"""The peak of memory is that of the stretch of work that is measured."""

import sys

import numpy as np
import pytest
import torch

from handful.jobs.memory import AllocationLimit, PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account of the peak is Linux's")
def test_peak_memory_is_that_of_the_stretch_not_of_what_was_before():
    before = np.ones(300 * 2**17)  # 300 MiB
    del before
    memory = PeakMemory(torch.device("cpu"))
    start = memory.mib()
    during = np.ones(100 * 2**17)
    assert 95 < memory.mib() - start < 150
    del during


def test_tensors_beyond_the_limit_are_refused_before_they_are_created() -> None:
    with AllocationLimit(2**20):
        torch.nn.Linear(100, 100)
        with pytest.raises(MemoryError, match="4000000000000 bytes"):
            torch.nn.Linear(10**6, 10**6)
    with AllocationLimit(2**20), pytest.raises(MemoryError):
        torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(1000))
