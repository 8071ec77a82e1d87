"""The device to compute on, by its name."""

from __future__ import annotations

import torch

from handful.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a CUDA one where there is one, else the CPU."""
    if name not in DEVICES:
        raise SettingsError(f"device {name!r}; choose {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise SettingsError(f"this machine offers no {name} device to PyTorch; take cpu")
    return torch.device(name)
