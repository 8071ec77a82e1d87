"""What forward passes compute in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def computing_in(precision: Precision, device: str) -> torch.autocast:
    """Within it operations compute in that precision, as far as autocast lets them; weights keep theirs.

    'bfloat16' stays float32 on a CPU without BF16 arithmetic (AVX-512 BF16, AMX): it would be emulated there, many
    times slower than float32. It also does on MPS before macOS 14, where autocast has no bfloat16. `device` is a type,
    as 'cpu', 'cuda' or 'mps'.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16" and has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16 itself."""
    if device == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device != "cpu":
        return True
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
