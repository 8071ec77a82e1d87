"""Fill the embedding cache of a cohort ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.evaluation.evaluate import Failure
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK
from handful.methods.cost import estimate, grids_of


@dataclass(frozen=True)
class EmbedResult:
    """Result of `embed_cohort`."""

    slices: int
    """Number of slices whose embeddings are in the cache now."""
    computed: int
    """Number of slices that were encoded now."""
    mib: float
    """Size of the cache folder in MiB."""
    failures: tuple[Failure, ...]


def embed_cohort(
    cases: Sequence[Case], backbone: Backbone, folder: Path, slicer: Slicer | None = None, report: Report = silent
) -> EmbedResult:
    """Encode every slice of the cases once, and store the embeddings in `folder` for later fits and predictions.

    A later job uses them if its slices have the same plane and window. Cases that fail are listed in the result. Raises
    OSError if embeddings cannot be stored, for example because the disk is full.
    """
    caching = cached(backbone, folder)
    slicer = replace(slicer or Slicer(), neighbours=False)
    report(0, len(cases), str(estimate(backbone, grids_of(cases, slicer)) or ""))
    failures: list[Failure] = []
    for number, case in enumerate(cases, start=1):
        try:
            view = slicer.view(case.read_image())
            for start in range(0, len(view), CHUNK):
                caching.encode(view.cut(start, start + CHUNK).to(caching.device))
                if caching.cache.problem is not None:
                    break
        except Exception as error:  # any error concerns this case only: it is listed, and the others continue
            failures.append(Failure.of(case, error))
        if caching.cache.problem is not None:
            raise caching.cache.problem
        report(number, len(cases), case.name)
    size = sum(entry.stat().st_size for entry in folder.glob("[!.]*.safetensors")) if folder.exists() else 0
    return EmbedResult(caching.hits + caching.misses, caching.misses, size / 2**20, tuple(failures))
