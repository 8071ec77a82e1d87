"""Evidence that tests make up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduction.evidence import Evidence, Pool, read_evidence

NOISE = (-0.02, 0.01, 0.0, 0.02, -0.01, 0.015, -0.015)


@pytest.fixture(scope="module")
def measured() -> Callable[..., Evidence]:
    """Evidence of {(data set, configuration, shots): mean Dice}, three splits of seven cases each."""

    def made(means: dict[tuple[str, str, int], float], noise: float = 1.0) -> Evidence:
        pool = Pool("made up")
        for number, (point, mean) in enumerate(means.items()):
            for split in range(3):
                of_split = 0.2 * noise * NOISE[(3 * split + number) % 7]
                for case in range(7):
                    off = noise * NOISE[(case + split + 2 * number) % 7]
                    for measure in ("dice", "iou"):
                        pool.add(point, measure, split, f"case-{case}", mean + off + of_split)
        return Evidence(plans=(pool,))

    return made


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Evidence]:
    """Evidence of lines of the interactive study."""

    def made(*lines: dict[str, object]) -> Evidence:
        (tmp_path / "interactive.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return read_evidence(tmp_path)

    return made
