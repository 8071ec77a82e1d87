"""Learned tensors from a model folder, which may have any content, taken by name after they were checked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from handful.errors import SettingsError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Learned:
    """Tensors by name. A letter in a shape stands for the same number above 0 in all of them; one with "?" may be 0,
    and "*" is any number above 0.

    `sizes` are the numbers that are known beforehand, such as {"k": 3} for three labels.
    """

    def __init__(self, tensors: Mapping[str, Tensor], **sizes: int) -> None:
        self.tensors, self.sizes = tensors, sizes

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def floats(
        self, name: str, shape: str, low: float = -torch.inf, high: float = torch.inf, single: bool = True
    ) -> Tensor:
        """Finite numbers of that shape, such as "s k 4", from `low` to `high`; `single` refuses double precision."""
        return self._taken(name, shape, FLOATS[:3] if single else FLOATS, low, high)

    def whole(self, name: str, shape: str, low: int = 0, high: float = torch.inf) -> Tensor:
        """Whole numbers of that shape, from `low` to `high`."""
        return self._taken(name, shape, WHOLE, low, high)

    def flag(self, name: str) -> bool:
        """A single truth value."""
        return bool(self._taken(name, "", (torch.bool,), 0, 1))

    def text(self, name: str) -> str:
        """UTF-8 text that is stored as its bytes."""
        try:
            return bytes(self._taken(name, "bytes-of-" + name, (torch.uint8,), 0, 255).tolist()).decode()
        except UnicodeDecodeError as error:
            raise SettingsError(f"tensor {name!r} is not UTF-8 text ({error.reason})") from error

    def names(self, name: str) -> tuple[str, ...]:
        """Names that are stored as the bytes of a JSON list."""
        try:
            found = json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"tensor {name!r} is not the text of a JSON list") from error
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise SettingsError(f"tensor {name!r} is not the text of a JSON list of names")
        return tuple(found)

    def _taken(self, name: str, shape: str, formats: Collection[torch.dtype], low: float, high: float) -> Tensor:
        if name not in self.tensors:
            raise SettingsError(f"tensor {name!r} is missing")
        tensor = self.tensors[name]
        if tensor.dtype not in formats:
            allowed = " or ".join(str(one).removeprefix("torch.") for one in formats)
            raise SettingsError(f"tensor {name!r} has the number format {tensor.dtype}; it must be {allowed}")
        self._require_shape(name, tensor, shape.split())
        if tensor.numel() and not (low <= float(tensor.min()) and float(tensor.max()) <= high):
            raise SettingsError(
                f"tensor {name!r} has values from {float(tensor.min()):g} to {float(tensor.max()):g}; they must be "
                f"from {low:g} to {high:g}"
            )
        return tensor

    def _require_shape(self, name: str, tensor: Tensor, letters: list[str]) -> None:
        sizes = [int(letter) if letter.isdecimal() else self.sizes.get(letter) for letter in letters]
        fits = tensor.ndim == len(sizes) and all(
            size == there or (size is None and (there > 0 or letter.endswith("?")))
            for letter, size, there in zip(letters, sizes, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(
                letter if size is None else str(size) for letter, size in zip(letters, sizes, strict=True)
            )
            raise SettingsError(f"tensor {name!r} has the shape {tuple(tensor.shape)}; it must be ({wanted})")
        self.sizes |= {letter: size for letter, size in zip(letters, tensor.shape, strict=True) if letter != "*"}
