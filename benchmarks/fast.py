"""Backbones with and without "+fast": core-seconds of an encode in turn, and how far the embeddings differ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch

from handful.jobs.precision import computing_in, has_bfloat16
from material import sam2_tiny, sam_vit_b, slices, tiny
from measure import Check, Section, Spread, Table, interleaved


@torch.inference_mode()
def measure(rounds: int) -> Section:
    rows = []
    for plain, count in ((tiny(), 8), (sam2_tiny(1024), 1), (sam_vit_b(), 1)):
        fast = copy.deepcopy(plain)
        fast.precision = "bfloat16"
        shown = slices(count, plain.side)
        work: dict[str, Callable[[], object]] = {one.precision: partial(one.encode, shown) for one in (plain, fast)}
        times = interleaved(work, rounds)
        before, after = times["float32"], times["bfloat16"]
        exact = plain.encode_exact(shown).main
        with computing_in("bfloat16", "cpu"):
            found = plain.encode_exact(shown).main
        error = f"{float((found - exact).norm() / exact.norm()):.4f}"
        rows.append((plain.name, str(count), Spread.of(before.core), Spread.of(after.core), after.over(before), error))
    columns = ("", "slices", "float32, core-s", "+fast, core-s", "ratio", "difference / norm")
    native = Check("this processor computes in bfloat16", has_bfloat16("cpu"))
    return Section((Table("encoders in both precisions, in turn", columns, tuple(rows)),), (native,))
