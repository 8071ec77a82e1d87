import math
from dataclasses import dataclass
from pathlib import Path

from handful.jobs.json_values import json_value


@dataclass(frozen=True)
class Score:
    name: str
    dice: float


def test_what_json_cannot_hold_becomes_what_it_can():
    content = {"path": Path("a/b"), "scores": (Score("liver", 0.5), Score("spleen", math.nan)), "values": {1: 2}}
    assert json_value(content) == {
        "path": "a/b",
        "scores": [{"name": "liver", "dice": 0.5}, {"name": "spleen", "dice": None}],
        "values": {1: 2},
    }
