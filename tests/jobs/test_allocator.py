import subprocess
import sys

import pytest

from handful.jobs.allocator import tune_allocator

CHURN = """
import resource, sys
from handful.jobs.allocator import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(25):  # glibc settles after a few
    before = before if turn > 15 else faults()
    torch.ones(16 * 2**20)
print(faults() - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_tensors_come_to_cost_no_page_faults():
    assert faults("tuned") < faults("plain") / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tune_allocator() is False
