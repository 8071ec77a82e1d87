"""Many regions of a slice in one decoder call against one at a time: seconds per organ, answering and training.

    python benchmarks/multi_region.py [--true-size] [--device cuda] [--rounds N] [--regions N ...] [--out FILE]

Each region is asked for with a click, on embeddings that are there already; training adds the way back through mask
decoder and prompt encoder. `--true-size` takes the decoder of SAM ViT-B at 1024 pixels with random weights (13 regions
need several GiB on the way back) in place of handful-tiny. `--out` keeps every round, a line a variant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as RichTable

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.methods.interactive.network import InteractiveNetwork
from handful.prompts.prompts import Prompts
from material import sam_vit_b, slices, tiny
from measure import Cell, Check, Section, Spread, Table, Timing, interleaved

COUNTS = (1, 4, 8, 13)
CHUNK = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--true-size", action="store_true", help="SAM ViT-B's decoder in place of handful-tiny")
    parser.add_argument("--device", default="cpu", help="where it runs, cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--regions", type=int, nargs="+", default=list(COUNTS), help="regions of a slice")
    parser.add_argument("--out", type=Path, help="file of JSON lines, written anew")
    arguments = parser.parse_args()
    backbone = (sam_vit_b(layers=1) if arguments.true_size else tiny()).to(arguments.device)
    times = timed(backbone, arguments.regions, arguments.rounds)
    section = compare(backbone, arguments.regions, times)
    if arguments.out:
        write(arguments.out, backbone, times)
    for found in section.tables:
        table = RichTable(*found.columns, title=found.title, title_justify="left")
        for row in found.rows:
            table.add_row(*[str(cell) for cell in row])
        Console().print(table)
    for check in section.checks:
        print("holds" if check.holds else "FAILS", check.what)
    return 0 if all(check.holds for check in section.checks) else 1


def measure(rounds: int) -> Section:
    backbone = tiny()
    return compare(backbone, COUNTS, timed(backbone, COUNTS, rounds))


def timed(backbone: Backbone, counts: Sequence[int], rounds: int) -> dict[str, Timing]:
    """Both ways for each number of regions: 'regions/at once/answer or train'."""
    tuned, image = ready(backbone)
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    for count in counts:
        for at_once in sorted({count, min(CHUNK, count), 1}, reverse=True):
            calls[f"{count}/{at_once}/answer"] = partial(answer, tuned, image, count, at_once)
            calls[f"{count}/{at_once}/train"] = partial(train_step, tuned, image, count, at_once)
    return interleaved(calls, rounds)


def write(path: Path, backbone: Backbone, times: Mapping[str, Timing]) -> None:
    about = {"backbone": backbone.name, "device": str(backbone.device), "threads": torch.get_num_threads()}
    about["torch"] = torch.__version__
    lines = []
    for name, time in times.items():
        count, at_once, what = name.split("/")
        key = {"what": what, "regions": int(count), "at_once": int(at_once)}
        lines.append({**about, **key, "core_s": time.core, "wall_s": time.wall})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def ready(backbone: Backbone) -> tuple[InteractiveNetwork, ImageEmbeddings]:
    """What is asked, and the embeddings it is asked about."""
    with torch.no_grad():
        return InteractiveNetwork(backbone), backbone.encode(slices(1, 256).to(backbone.device))


def compare(backbone: Backbone, counts: Sequence[int], times: Mapping[str, Timing]) -> Section:
    """What was timed, and whether both ways say the same."""
    tuned, image = ready(backbone)
    rows: list[tuple[Cell, ...]] = []
    for name in times:
        count, at_once, what = name.split("/")
        core, wall = times[name].per(int(count))
        rows.append((what, int(count), int(at_once), core, wall, faster(times[name], times[f"{count}/1/{what}"])))
    columns = ("", "regions", "at once", "core-s an organ", "wall s an organ", "× faster than one by one")
    worst = max(off(answer(tuned, image, n, n), answer(tuned, image, n, 1)) for n in counts)
    return Section(
        (Table(f"{backbone.name} on {backbone.device}", columns, tuple(sorted(rows, key=lambda row: str(row[0])))),),
        (
            Check(
                f"the same logits however many regions at once (off by {worst:.1e} of the largest)",
                worst < 1e-3,
            ),
        ),
    )


def faster(one: Timing, other: Timing) -> Spread:
    """How many times the wall time of `one` is that of `other`; of neighbours in one round, for the load changes."""
    return Spread.of([its / mine for mine, its in zip(one.wall, other.wall, strict=True)])


def clicks(count: int) -> Prompts:
    """A click for each of `count` regions of one slice of 256 pixels."""
    points = 256 * torch.rand(1, 64, 1, 2, generator=torch.Generator().manual_seed(0))
    return Prompts(points[:, :count], torch.ones(1, count, 1, dtype=torch.long))


@torch.no_grad()
def answer(tuned: InteractiveNetwork, image: ImageEmbeddings, count: int, at_once: int) -> torch.Tensor:
    """Logits of all regions, so many of them a call."""
    parts = [tuned(image, part, (256, 256)).logits for part in chunks(count, at_once)]
    return finished(torch.cat(parts, dim=1))


def train_step(tuned: InteractiveNetwork, image: ImageEmbeddings, count: int, at_once: int) -> torch.Tensor:
    """One step forward and back for all regions, so many of them a call; the last gradient."""
    tuned.zero_grad()
    for part in chunks(count, at_once):
        tuned(image, part, (256, 256)).logits.square().mean().backward()
    gradient = next(p.grad for p in tuned.parameters() if p.grad is not None)
    return finished(gradient)


def chunks(count: int, at_once: int) -> list[Prompts]:
    said = clicks(count)
    assert said.points is not None
    assert said.point_labels is not None
    pairs = zip(said.points.split(at_once, dim=1), said.point_labels.split(at_once, dim=1), strict=True)
    return [Prompts(*pair) for pair in pairs]


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value: random weights give small logits."""
    return float((found - expected).abs().max() / expected.abs().max())


def finished(tensor: torch.Tensor) -> torch.Tensor:
    """Waits until a GPU has done what it was told."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return tensor


if __name__ == "__main__":
    raise SystemExit(main())
