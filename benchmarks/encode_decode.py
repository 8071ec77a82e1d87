"""How fast handful-tiny encodes and decodes, and how near that comes to the machine's own matrix multiplication."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from material import prompt, slices, tiny
from measure import Section, Spread, Table, Timing, interleaved

SLICES = 8
LABELS = 4
SQUARE = 2048


@torch.inference_mode()
def measure(rounds: int) -> Section:
    backbone = tiny()
    shown = slices(SLICES, backbone.side)
    image, asked = backbone.encode(shown), prompt(SLICES, LABELS, backbone.channels)
    matrix = torch.rand(SQUARE, SQUARE, generator=torch.Generator().manual_seed(0))
    work: dict[str, Callable[[], object]] = {
        "encode": lambda: backbone.encode(shown),
        f"decode {LABELS} labels": lambda: backbone.decode(image, asked),
    }
    times = interleaved({"mm": lambda: matrix @ matrix} | work, rounds)
    rate = [2 * SQUARE**3 / seconds for seconds in times["mm"].core]
    rows = [_row(name, times[name], operations(call), rate) for name, call in work.items()]
    return Section(
        (
            Table(
                f"{backbone.name} at {backbone.side} × {backbone.side}, {SLICES} slices a call",
                ("a slice", "core-s", "wall s", "slices / s", "GFLOP", "% of mm"),
                tuple(rows),
            ),
        ),
        notes=(f"mm: {SQUARE}³ in fp32, {Spread.of([r / 1e9 for r in rate])} GFLOP a core-second in the same rounds.",),
    )


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, attention counted, two for each multiply-add."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def _row(name: str, time: Timing, flop: int, rate: list[float]) -> tuple[str, Spread, Spread, Spread, float, Spread]:
    core, wall = time.per(SLICES)
    speed = Spread.of([SLICES / seconds for seconds in time.wall])
    share = Spread.of([100 * flop / seconds / best for seconds, best in zip(time.core, rate, strict=True)])
    return name, core, wall, speed, flop / SLICES / 1e9, share
