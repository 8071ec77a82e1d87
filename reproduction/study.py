"""A study: trials measured over processes of one thread each, one JSON line per result, and tables of the lines.

A line is written as soon as it is known. What is in the file is not measured again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.data.cases import Case
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.jobs.allocator import tune_allocator
from handful.jobs.executors import Executor, Lost, Processes, Serial
from reproduction.parts import RESULTS

Line = dict[str, Any]
RANDOM: Literal["random"] = "random"
_IDENTITY = (
    "part",
    "set",
    "measure",
    "method",
    "configuration",
    "features",
    "fitted_on",
    "budget",
    "shots",
    "split",
    "seed",
)
"""Entries of a line that name it where progress is printed."""


@dataclass(frozen=True)
class Split:
    """Labelled cases of a random split, and unseen ones with a reference, chosen at random, others in each split."""

    drawn: tuple[Case, ...]
    unseen: tuple[Case, ...]
    labels: Labels

    @classmethod
    def of(cls, folder: Path, shots: int, split: int, most_unseen: int | None = None) -> Split:
        cohort = read_cohort(folder)
        assert cohort.labels is not None, folder
        drawn, _ = cohort.split(shots, split)
        return cls(tuple(drawn), tuple(cohort.test_cases(shots, split, most_unseen)), cohort.labels)

    @cached_property
    def support(self) -> SupportSet:
        return SupportSet(self.drawn, self.labels)

    def names(self) -> Line:
        """What a line says of it."""
        return {"support": [case.name for case in self.drawn], "cases": [case.name for case in self.unseen]}


@dataclass(frozen=True, kw_only=True)
class Trial(ABC):
    """What is measured at once. Its fields, except those in `unkeyed`, identify its lines in the file."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data",)

    data: Path
    """Folder of data sets."""
    set: str
    digest: str
    """Of the backbone's weights."""
    unseen: Literal["random"] = RANDOM
    """How the unseen cases were chosen. Lines without this entry scored the first cases by name, in every split."""

    @property
    def folder(self) -> Path:
        return self.data / self.set

    def key(self) -> Line:
        fields = {name: value for name, value in asdict(self).items() if name not in self.unkeyed}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def line_keys(self) -> list[Line]:
        """Of all its lines."""
        return [self.key()]

    @abstractmethod
    def results(self, backbone: Backbone) -> list[Line]:
        """Measures, in this process; each line with its key."""


@dataclass(frozen=True)
class Study:
    """Which trials there are for what a command names, and how their lines are shown."""

    about: str
    results: str
    """Name of its file in reproduction/results."""
    trials: Callable[[argparse.Namespace, str], Iterable[Trial]]
    """Of the arguments and the digest of the backbone's weights."""
    tables: Callable[[list[Line]], str]
    """Markdown of the lines."""
    sets: tuple[str, ...] = ()
    """Data sets that are measured where none is named."""

    def parser(self, *, splits: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
        """What every study can be asked for; a study adds its own arguments."""
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data", type=Path, help="folder of data sets")
        parser.add_argument("--sets", nargs="+", default=[], help="names of data sets in it")
        parser.add_argument("--splits", "--seeds", dest="splits", nargs="+", type=int, default=list(splits))
        parser.add_argument("--backbone", default="handful-tiny", help="name, hub id or folder")
        parser.add_argument("--workers", type=int, default=2, help="of one thread each")
        parser.add_argument("--cache", type=Path, help="folder of kept embeddings; slices are then encoded once")
        parser.add_argument("--out", type=Path, default=RESULTS / f"{self.results}.jsonl", help="file of the lines")
        parser.add_argument("--table", action="store_true", help="print the tables of the file, measure nothing")
        return parser

    def main(self, parser: argparse.ArgumentParser) -> None:
        """Measures what the command line names, and prints the tables."""
        arguments = parser.parse_args()
        named = arguments.sets
        if not arguments.table:
            arguments.sets = named or list(self.sets)
            if not (arguments.data and arguments.sets):
                parser.error("give --data and --sets, or --table")
            digest = digest_of(load_backbone(arguments.backbone))
            self.measure(list(self.trials(arguments, digest)), arguments, arguments.workers)
        print(self.tables([line for line in read_lines(arguments.out) if not named or line["set"] in named]))

    def measure(self, trials: Sequence[Trial], arguments: argparse.Namespace, workers: int) -> None:
        """Adds the lines of each trial as it ends, and prints them with the time that is left."""
        out: Path = arguments.out
        out.parent.mkdir(parents=True, exist_ok=True)
        done = read_lines(out)
        todo = [trial for trial in trials if not all(_holds(done, key) for key in trial.line_keys())]
        began = time.monotonic()
        results = _results(todo, workers, arguments.backbone, arguments.cache)
        for number, (trial, found) in enumerate(results, start=1):
            if isinstance(found, Lost):
                print(f"{number}/{len(todo)} {trial.key()}: {found.reason}; run again", flush=True)
                continue
            names = trial.key().keys()
            lines = [line for line in found if not _holds(done, {name: line[name] for name in names})]
            add_lines(out, lines)
            minutes = (time.monotonic() - began) / number * (len(todo) - number) / 60
            for line in lines:
                print(f"{number}/{len(todo)} {summary(line)}; {minutes:.0f} min left", flush=True)


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file. What has no line break was cut off by a kill: it is no line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def add_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write lines to the end of a file, all at once, in place of one that was cut off."""
    with path.open("ab+", buffering=0) as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def by_split(lines: Iterable[Line], entry: str) -> dict[int, dict[str, float]]:
    """An entry of lines that has one value per case, as {split: {case: value}}."""
    return {
        line["split"] if "split" in line else line["seed"]: dict(zip(line["cases"], line[entry], strict=True))
        for line in lines
    }


def digest_of(backbone: Backbone) -> str:
    """As lines have it."""
    return backbone.digest()[:12]


def summary(line: Line) -> str:
    """A line in short: what it is of, mean scores, and seconds."""
    name = ", ".join(f"{entry} {line[entry]}" for entry in _IDENTITY if line.get(entry) is not None)
    lists = [entry for entry in line if entry.startswith("dice") and isinstance(line[entry], list) and line[entry]]
    scores = [f"{entry} {fmean(line[entry]):.3f}" for entry in lists]
    seconds = [f"{entry} {line[entry]:.1f}" for entry in line if entry.endswith("_s")]
    return f"{name}: {', '.join([*scores, *seconds])}"


def _holds(lines: Iterable[Line], key: Line) -> bool:
    return any(all(line.get(name) == value for name, value in key.items()) for line in lines)


def _results(
    trials: Sequence[Trial], workers: int, backbone: str, cache: Path | None
) -> Iterator[tuple[Trial, list[Line] | Lost]]:
    """Each trial with its lines as it ends; with one process, in the caller's own."""
    executor: Executor = Processes(workers) if workers > 1 else Serial()
    return executor.run(_Measurement(backbone, cache), trials)


class _Measurement:
    """Measures trials with one thread, and loads the backbone once."""

    def __init__(self, backbone: str, cache: Path | None) -> None:
        self.name, self.cache = backbone, cache

    def __call__(self, trial: Trial) -> list[Line]:
        return trial.results(self._backbone)

    @cached_property
    def _backbone(self) -> Backbone:
        tune_allocator()
        torch.set_num_threads(1)
        plain = load_backbone(self.name)
        return cached(plain, self.cache) if self.cache else plain
