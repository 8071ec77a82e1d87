"""The device to compute on, by its name."""

from __future__ import annotations

import torch

from handful.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first of CUDA, MPS (Apple's GPUs) and CPU that PyTorch finds.

    No method was tried on MPS yet. Raises SettingsError for another name, or a device that is not there.
    """
    if name not in DEVICES:
        raise SettingsError(f"unknown device {name!r}; choose {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in available.items() if found))
    if not available[name]:
        raise SettingsError(f"PyTorch has no {name} device on this machine; use cpu")
    return torch.device(name)
