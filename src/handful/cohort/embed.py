"""The embedding cache filled ahead of time for a whole cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.errors import HandfulError
from handful.evaluation.evaluate import Failure
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK
from handful.methods.cost import estimate, grids_of


@dataclass(frozen=True)
class EmbedResult:
    """What lies in the cache now, and how it came there."""

    slices: int
    computed: int
    """Slices that were not there before."""
    mib: float
    """Size of the whole cache."""
    failures: tuple[Failure, ...]


def embed_cohort(
    cases: Sequence[Case], backbone: Backbone, folder: Path, slicer: Slicer | None = None, report: Report = silent
) -> EmbedResult:
    """Encodes every slice of the cases once, and keeps the embeddings in `folder` for fits and predictions to come.

    Only slices cut with the same plane and window are found again. A case that fails is listed, the others go on.
    """
    keeping = cached(backbone, folder)
    slicer = (slicer or Slicer()).for_display()
    report(0, len(cases), str(estimate(backbone, grids_of(cases, slicer)) or ""))
    failures: list[Failure] = []
    for number, case in enumerate(cases, start=1):
        try:
            view = slicer.view(case.read_image())
            for start in range(0, len(view), CHUNK):
                keeping.encode(view.cut(start, start + CHUNK).to(keeping.device))
        except (HandfulError, RuntimeError, MemoryError) as error:
            failures.append(Failure(case.name, str(error)))
        report(number, len(cases), case.name)
    size = sum(entry.stat().st_size for entry in folder.glob("[!.]*.safetensors")) if folder.exists() else 0
    return EmbedResult(keeping.hits + keeping.misses, keeping.misses, size / 2**20, tuple(failures))
