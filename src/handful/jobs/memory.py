"""Measurement of peak memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


class PeakMemory:
    """Peak memory from the creation of this object on: of this process, or of PyTorch on a CUDA device.

    On Linux, freed memory is returned first and the peak is reset, so that earlier work does not count. Where this is
    not possible, `mib` is the peak since the start of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
            if trim is not None:
                trim(0)
            _reset()

    def mib(self) -> float:
        """The peak in MiB."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 2**20
        if _STATUS.exists():
            peak = next(line for line in _STATUS.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
            return int(peak.split()[1]) / 2**10
        import resource  # not on Windows

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _reset() -> None:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:  # not permitted; the peak is then that of the process
        return
