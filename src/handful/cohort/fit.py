"""A method fitted on a support set into a folder; a killed fit goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.catalog import BACKBONES
from handful.checkpoint import RECORD, describe_support, save
from handful.cohort.estimate import estimate
from handful.cohort.lock import locked
from handful.data.cases import SupportSet
from handful.errors import CheckpointError, InputError
from handful.evaluation.report import write_atomically
from handful.methods.base import Method
from handful.methods.catalog import method_settings
from handful.tuning.run import Run

FINGERPRINT = "fingerprint.txt"

Report = Callable[[int, int, str], None]


def _silent(step: int, total: int, note: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Circumstances of a fit, never part of its result."""

    overwrite: bool = False
    """Replace another model that lies in the folder."""
    save_every_s: float = 30.0
    """Seconds between two checkpoints of the training."""


def fit_to_folder(
    name: str,
    method: Method,
    support: SupportSet,
    backbone: Backbone,
    out: Path,
    config: FitConfig | None = None,
    report: Report = _silent,
) -> bool:
    """Fits `method`, called `name` in METHODS, and saves the segmenter into `out`; False where that was done before.

    Half-done work lies in `<out>.partial` until the segmenter is saved. The same fit, begun again after a kill, goes on
    from there and ends with the very bytes of an undisturbed one; another fit begins anew. What makes two fits the same
    is written into the segmenter's provenance. Raises CheckpointError where another model or a foreign folder lies in
    the way, BusyError while another process fits into `out`.
    """
    config = config or FitConfig()
    fingerprint = _fingerprint(name, method, support, backbone)
    scratch = out.with_name(f"{out.name}.partial")
    _require_free(scratch)
    with locked(scratch):
        _remove_leftovers(out)
        if _fingerprint_of(out) == fingerprint and not config.overwrite:
            shutil.rmtree(scratch)
            return False
        if out.exists() and not config.overwrite:
            shutil.rmtree(scratch)
            raise InputError(f"{out} exists and was fitted otherwise; name another folder, or say --overwrite")
        _begin(scratch, fingerprint)
        cost = estimate(backbone, support.cases, method_slicer(method))
        report(0, 1, str(cost or ""))
        run = Run(scratch / "training", report, config.save_every_s)
        segmenter = method.fit(support, backbone, run)
        provenance = {"fingerprint": fingerprint, **describe_support(support), **_licence(backbone)}
        save(segmenter, out, method_name=name, method=method, provenance=provenance)
        shutil.rmtree(scratch)
    return True
