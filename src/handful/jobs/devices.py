"""The device to compute on, by its name."""

from __future__ import annotations

import torch

from handful.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA if there is one, else the CPU. Raises SettingsError if it is missing."""
    if name not in DEVICES:
        raise SettingsError(f"unknown device {name!r}; choose {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise SettingsError(f"PyTorch has no {name} device on this machine; use cpu")
    return torch.device(name)
