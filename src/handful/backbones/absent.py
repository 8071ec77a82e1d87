"""What stands in for a backbone that predictions do not need."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from handful.backbones.base import Backbone
from handful.errors import SettingsError


class AbsentBackbone(Backbone):
    """Has a name and a device; all else raises SettingsError."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.placed = nn.Parameter(torch.zeros(1), requires_grad=False)

    def _absent(self, *_: Any, **__: Any) -> Any:
        raise SettingsError(f"the backbone {self.name!r} was not loaded; load the model by handful.load to use it")

    _encode = embed = decode_square = to_model_frame = to_image_frame = position_encoding = _absent
    no_memory = encoding_parts = _in_parts = _absent
