"""Fill the embedding cache of a cohort ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import CachedBackbone, cached, set_size_limit, size_limit
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.errors import SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.executors import Executor, Lost, Serial
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK
from handful.methods.cost import estimate, grids_of

SHORT = 8
"""Bytes of the name of an entry that identify it among those of a folder."""


@dataclass(frozen=True)
class EmbedResult:
    """Result of `embed_cohort`."""

    slices: int
    """Number of slices whose embeddings were in the cache already or were encoded now."""
    computed: int
    """Number of slices that were encoded now."""
    mib: float
    """Size of all embeddings in the cache folder in MiB."""
    failures: tuple[Failure, ...]
    removed: int = 0
    """Number of `slices` whose embeddings are not in the cache now: it was full, and they were removed for others."""
    needed_mib: float = 0.0
    """Size of the embeddings of all `slices` in MiB; 0 if none of them is in the cache now."""
    limit_mib: float = 0.0
    """Size in MiB up to which the cache folder stores embeddings."""


def embed_cohort(
    cases: Sequence[Case],
    backbone: Backbone | Callable[[], Backbone],
    folder: Path,
    slicer: Slicer | None = None,
    report: Report = silent,
    executor: Executor | None = None,
    limit_gib: float | None = None,
) -> EmbedResult:
    """Encode every slice of the cases once, and store the embeddings in `folder` for later fits and predictions.

    A later job uses them if its slices have the same plane and window. Cases that fail are listed in the result. Other
    executors than `Serial` take a function that loads the backbone in each process, such as
    `partial(load_backbone, "handful-tiny")`.

    `limit_gib` is the size up to which the folder stores embeddings, from now on and for all commands; None leaves it
    as it is. If the embeddings of the cases need more, the first ones are removed for the last ones: the result counts
    them.

    Raises OSError if embeddings cannot be stored, for example because the disk is full, SettingsError for a limit that
    is not positive, and for a backbone that is not loaded by a function where the executor needs one.
    """
    if limit_gib is not None:
        set_size_limit(folder, limit_gib)
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
    names = list[bytes]()
    with closing(executor.run(work, cases)) as outcomes:
        for number, (case, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Lost):
                failures.append(Failure(case.name, outcome.reason))
            else:
                found, computed = found + outcome.found, computed + outcome.computed
                failures += outcome.failures
                names.append(outcome.names)
            report(number, len(cases), case.name)
    counted = EmbedResult(found + computed, computed, 0.0, tuple(failures))
    return _with_stored(counted, folder, b"".join(names))


def _with_stored(result: EmbedResult, folder: Path, names: bytes) -> EmbedResult:
    """The result with what the cache folder holds now; `names` are the short names of the entries of all slices."""
    sizes: dict[bytes, int] = {}
    for entry in folder.glob("[!.]*.safetensors"):
        with suppress(FileNotFoundError, ValueError):  # another process removes it; or it is no entry of a cache
            sizes[bytes.fromhex(entry.stem)[:SHORT]] = entry.stat().st_size
    wanted = [names[at : at + SHORT] for at in range(0, len(names), SHORT)]
    own = {name: sizes[name] for name in wanted if name in sizes}
    needed = len(set(wanted)) * sum(own.values()) / max(1, len(own))
    return replace(
        result,
        mib=sum(sizes.values()) / 2**20,
        removed=sum(name not in own for name in wanted),
        needed_mib=needed / 2**20,
        limit_mib=size_limit(folder) / 2**20,
    )


@dataclass(frozen=True)
class _Encoded:
    """What became of a case."""

    found: int
    """Slices whose embeddings were in the cache."""
    computed: int
    names: bytes
    """The first `SHORT` bytes of the names of the entries of these slices, one after the other."""
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
        names = b""
        try:
            view = self.slicer.view(case.read_image())
            for start in range(0, len(view), CHUNK):
                slices = view.cut(start, start + CHUNK).to(caching.device)
                caching.encode_together(slices)
                names += b"".join(bytes.fromhex(key)[:SHORT] for key in caching.keys(slices))
                if caching.cache.problem is not None:
                    break
        except Exception as error:  # any error concerns this case only: it is listed, and the others continue
            failures = (Failure.of(case, error),)
        if caching.cache.problem is not None:
            raise caching.cache.problem
        return _Encoded(caching.hits - found, caching.misses - computed, names, failures)
