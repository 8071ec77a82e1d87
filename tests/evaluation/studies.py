"""Invented results for tests of what is made of them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from handful.evaluation.results import Result
from handful.evaluation.study import Picture, Study


def result(**changes: Any) -> Result:
    """A row; what is not named is plain."""
    dice = changes.get("dice", 0.8)
    plain: dict[str, Any] = {
        "experiment": "trial",
        "data_set": "hearts",
        "configuration": "fate",
        "shots": 1,
        "split": 0,
        "case": "case-0",
        "label": 1,
        "name": "ball",
        "status": "scored",
        "dice": dice,
        "iou": dice / (2 - dice),
        "hd95": 10 * (1 - dice),
        "assd": 3 * (1 - dice),
        "surface_dice": dice,
        "reference_volume": 12.5,
        "predicted_volume": 11.0,
        "unit": "mm",
        "tolerance": 1.0,
        "failure": "",
        "predict_s": 0.5,
        "fit_s": 20.0,
        "peak_mib": 900.0,
        "method": "fate",
        "settings": '{"window": 2}',
        "annotator": "",
        "backbone": "handful-tiny",
        "backbone_sha256": "ab" * 32,
        "seed": None,
        "support": '["case-7"]',
        "device": "cpu",
        "handful": "0.1.0",
        "trial": "cd",
    }
    return Result(**plain | changes)


def absent(**changes: Any) -> Result:
    return result(status="absent", dice=1.0, iou=1.0, hd95=math.nan, assd=math.nan, surface_dice=1.0, **changes)


def grid(
    configurations: Sequence[str],
    score: Callable[[str, int, int], float],
    shots: Sequence[int] = (1, 2, 4),
    **changes: Any,
) -> list[Result]:
    """Three splits of seven cases; `score` of configuration, shots and case."""
    return [
        result(
            configuration=configuration,
            shots=n,
            split=split,
            case=f"case-{case}",
            dice=score(configuration, n, case),
            **changes,
        )
        for configuration in configurations
        for n in shots
        for split in range(3)
        for case in range(7)
    ]


def study(rows: Sequence[Result], **changes: Any) -> Study:
    about: dict[str, Any] = {"title": "A trial", "command": "handful experiment run plan.toml -o out"}
    return Study(results=tuple(rows), **about | changes)


def picture(case: str = "case-0", dice: float = 0.1, configuration: str = "fate", shots: int = 4) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (200, 30, 30)).save(buffer, "webp")
    return Picture("hearts", configuration, shots, 0, case, dice, buffer.getvalue())
