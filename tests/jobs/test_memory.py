"""The peak of memory is that of the stretch of work that is measured."""

import sys

import numpy as np
import pytest
import torch

from handful.jobs.memory import AllocationLimit, PeakMemory, is_lack_of_memory


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


@pytest.mark.parametrize(
    ("message", "lack"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory", True),
        ("MPS backend out of memory (MPS allocated: 5.0 GB, other allocations: 1.0 GB, max allowed: 6.8 GB)", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_lack_of_memory_is_known_by_its_message(message: str, lack: bool) -> None:
    assert is_lack_of_memory(RuntimeError(message)) == lack
