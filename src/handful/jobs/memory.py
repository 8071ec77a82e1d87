"""Measurement of peak memory, and a limit on what is allocated."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


class PeakMemory:
    """Peak memory from the creation of this object on: of this process, or of PyTorch on a CUDA device.

    On Linux, freed memory is returned first and the peak is reset, so that earlier work does not count. Where this is
    not possible, `mib` is the peak since the start of the process. Memory that PyTorch holds on an MPS device is not
    counted: PyTorch keeps no peak of it.
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


def is_lack_of_memory(error: Exception) -> bool:
    """Whether PyTorch could not allocate memory, of the CPU or of a GPU."""
    if not isinstance(error, RuntimeError):
        return False
    messages = ("can't allocate memory", "MPS backend out of memory")
    return type(error).__name__ == "OutOfMemoryError" or any(message in str(error) for message in messages)


class AllocationLimit(TorchFunctionMode):
    """While active, raises MemoryError before PyTorch creates more than so many bytes of new tensors in total."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.left = most_bytes

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("out") is None:
            planned = func(*args, **{**kwargs, "device": "meta"})
            self.left -= max(planned.nbytes, _SMALLEST)
            if self.left < 0:
                raise MemoryError(f"a tensor of {planned.nbytes} bytes is more than there should be")
        return func(*args, **kwargs)


_FACTORIES: tuple[Callable[..., torch.Tensor], ...] = (
    torch.arange,
    torch.empty,
    torch.empty_strided,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.zeros,
)
_SMALLEST = 2**12
"""Bytes that each tensor counts at least, so that many small ones reach the limit, too."""
