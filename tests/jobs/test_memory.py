"""The peak of memory is that of the stretch of work that is measured."""

import sys

import numpy as np
import pytest
import torch

from handful.jobs.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account of the peak is Linux's")
def test_peak_memory_is_that_of_the_stretch_not_of_what_was_before():
    before = np.ones(300 * 2**17)  # 300 MiB
    del before
    memory = PeakMemory(torch.device("cpu"))
    start = memory.mib()
    during = np.ones(100 * 2**17)
    assert 95 < memory.mib() - start < 150
    del during
