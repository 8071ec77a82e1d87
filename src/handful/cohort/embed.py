"""Fill the embedding cache of a cohort ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import CachedBackbone, cached
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.errors import SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.executors import Executor, Lost, Serial
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
    cases: Sequence[Case],
    backbone: Backbone | Callable[[], Backbone],
    folder: Path,
    slicer: Slicer | None = None,
    report: Report = silent,
    executor: Executor | None = None,
) -> EmbedResult:
    """Encode every slice of the cases once, and store the embeddings in `folder` for later fits and predictions.

    A later job uses them if its slices have the same plane and window. Cases that fail are listed in the result. Other
    executors than `Serial` take a function that loads the backbone in each process, such as
    `partial(load_backbone, "handful-tiny")`.

    Raises OSError if embeddings cannot be stored, for example because the disk is full, SettingsError for a backbone
    that is not loaded by a function where the executor needs one.
    """
    slicer = replace(slicer or Slicer(), neighbours=False)
    work, executor = _Encoding(backbone, folder.absolute(), slicer), executor or Serial()
    if isinstance(executor, Serial):
        text = str(estimate(work.caching, grids_of(cases, slicer)) or "")
    elif isinstance(backbone, Backbone):
        raise SettingsError("several processes load the backbone themselves; give a function that loads it")
    else:
        text, cases = "", [case.absolute() for case in cases]
    report(0, len(cases), text)
    failures: list[Failure] = []
    found = computed = 0
    with closing(executor.run(work, cases)) as outcomes:
        for number, (case, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Lost):
                failures.append(Failure(case.name, outcome.reason))
            else:
                found, computed = found + outcome.found, computed + outcome.computed
                failures += outcome.failures
            report(number, len(cases), case.name)
    size = sum(entry.stat().st_size for entry in folder.glob("[!.]*.safetensors")) if folder.exists() else 0
    return EmbedResult(found + computed, computed, size / 2**20, tuple(failures))


@dataclass(frozen=True)
class _Encoded:
    """What became of a case."""

    found: int
    """Slices whose embeddings were in the cache."""
    computed: int
    failures: tuple[Failure, ...]


class _Encoding:
    """Encodes the slices of one case per call; the backbone is loaded when the first one needs it."""

    def __init__(self, backbone: Backbone | Callable[[], Backbone], folder: Path, slicer: Slicer) -> None:
        self.backbone, self.folder, self.slicer = backbone, folder, slicer

    def prepare(self) -> None:
        """Load the backbone before the first case."""
        _ = self.caching

    @cached_property
    def caching(self) -> CachedBackbone:
        backbone = self.backbone if isinstance(self.backbone, Backbone) else self.backbone()
        return cached(backbone, self.folder)

    def __call__(self, case: Case) -> _Encoded:
        caching = self.caching
        found, computed = caching.hits, caching.misses
        failures: tuple[Failure, ...] = ()
        try:
            view = self.slicer.view(case.read_image())
            for start in range(0, len(view), CHUNK):
                caching.encode_together(view.cut(start, start + CHUNK).to(caching.device))
                if caching.cache.problem is not None:
                    break
        except Exception as error:  # any error concerns this case only: it is listed, and the others continue
            failures = (Failure.of(case, error),)
        if caching.cache.problem is not None:
            raise caching.cache.problem
        return _Encoded(caching.hits - found, caching.misses - computed, failures)
