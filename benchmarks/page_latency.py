"""How long the page of `handful serve` waits: open a large case, scroll, brush, click, propagate; as HTTP requests.

    python benchmarks/page_latency.py [--threads 2] [--size 512 512 300] [--out page_latency.json]

A server process works on one phantom scan, enlarged to the given voxels. Times are those from sending a request to the
last byte of its answer, on the loopback; what the browser then takes to draw is not in them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from handful.data.files import write_volume
from handful.data.volume import Geometry, Volume
from handful.synthesis.episodes import phantom_cohort

REPEATS = 30


class Page:
    """The requests of one open page."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, path: str, content: object | None = None, method: str | None = None) -> tuple[float, bytes]:
        """Milliseconds and the answer."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"content-type": "application/json", "x-annotator": "benchmark"}
        request = urllib.request.Request(f"{self.address}api/{path}", data, headers, method=method)
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=1800) as answer:
            found = answer.read()
        return 1000 * (time.perf_counter() - began), found


def main() -> None:
    arguments = _arguments()
    with TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        (cohort / "images").mkdir(parents=True)
        write_volume(cohort / "images" / "large.nii", enlarged(tuple(arguments.size)))
        (cohort / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "organ"}}))
        with serving(cohort, arguments.threads) as address:
            took = measured(Page(address))
    size = " × ".join(map(str, arguments.size))
    print(f"{size} voxels, handful-tiny, {arguments.threads} threads\n")
    print("| step | median | slowest |\n|---|---|---|")
    for step, times in took.items():
        print(f"| {step} | {_shown(float(np.median(times)))} | {_shown(max(times))} |")
    if arguments.out:
        Path(arguments.out).write_text(
            json.dumps({"size": arguments.size, "threads": arguments.threads, "ms": took}, indent=1)
        )


def measured(page: Page) -> dict[str, list[float]]:
    """Milliseconds of each step."""
    case = json.loads(page.call("state")[1])["cases"][0]["id"]
    took = {"open the case": [page.call(f"cases/{case}")[0]]}
    details = json.loads(page.call(f"cases/{case}")[1])
    height, width = details["size"]
    middle = details["slices"] // 2
    numbers = range(middle - REPEATS // 2, middle + REPEATS // 2)

    def both(number: int) -> float:
        return page.call(f"cases/{case}/slices/{number}")[0] + page.call(f"cases/{case}/slices/{number}/classes")[0]

    def act(kind: str, number: int, **more: object) -> float:
        return page.call(f"cases/{case}/actions", {"kind": kind, "slice": number, "label": 1, **more})[0]

    took["scroll to another slice"] = [both(number) for number in numbers]
    inside = np.zeros((height, width), bool)
    inside[height // 3 : height // 2, width // 3 : width // 2] = True
    mask = base64.b64encode(np.packbits(inside).tobytes()).decode()
    took["brush stroke"] = [act("paint", number, mask=mask) for number in numbers]
    place = [[width * 0.4, height * 0.4]]
    took["first click on a slice"] = [act("click", number, points=place) for number in (5, 15, 25, 35, 45)]
    took["further click on it"] = [act("click", 45, points=[[width * 0.4 + n, height * 0.4]]) for n in range(REPEATS)]
    took["to all slices"] = [act("propagate", middle)]
    took["to all slices, again"] = [act("propagate", middle)]
    return took


def enlarged(size: tuple[int, ...]) -> Volume:
    """A phantom scan with so many voxels, of 16 bits."""
    phantom = next(iter(phantom_cohort(1, 0)))
    places = [
        np.linspace(0, length - 1, wanted).round().astype(int)
        for length, wanted in zip(phantom.image.shape, size, strict=True)
    ]
    image = phantom.image[np.ix_(*places)]
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) / (high - low) * 2000 - 1000).astype(np.int16)
    scale = [a / b for a, b in zip(phantom.image.shape, size, strict=True)]
    x, y, z = size
    return Volume(grey[None], Geometry((x, y, z), phantom.affine @ np.diag([*scale, 1])))


@contextmanager
def serving(cohort: Path, threads: int) -> Iterator[str]:
    command = [sys.executable, "-c", "from handful.cli import main; main()", "serve", str(cohort), "--port", "0"]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def _shown(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 2000 else f"{ms / 1000:.1f} s"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 300])
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
