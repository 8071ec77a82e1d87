"""What a drawn picture shows, for tests of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str, reach: int = 40) -> int:
    """Pixels that differ from a colour by no more than `reach` in every channel."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=-1) <= reach).sum())
