"""The folder of an experiment: its list of trials, one small file per finished fit, and the report made from them."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handful.errors import DamagedFile, InputError
from handful.evaluation.evaluate import Failure
from handful.evaluation.results import COLUMNS, FEATURES, Result, has_parquet, write_results
from handful.evaluation.study import Decisions, Picture, Study
from handful.experiments.plan import Plan, Trial
from handful.jobs.atomic import write_atomically, write_json
from handful.jobs.files import checked_path
from handful.reports.paper_tables import latex, markdown
from handful.reports.study_page import write_html

MANIFEST, TRIALS = "experiment.json", "trials"
FORMAT = 2


@dataclass(frozen=True)
class Entry:
    """A trial in the folder's list."""

    data_set: str
    configuration: str
    shots: int
    split: int
    digest: str
    """Digest of everything that the result depends on; also the name of its file."""

    @property
    def name(self) -> str:
        return f"{self.data_set}, {self.configuration}, {self.shots} labelled, split {self.split}"


@dataclass(frozen=True)
class Manifest:
    """All trials of an experiment, and what its report needs to know."""

    title: str
    command: str
    measures: tuple[str, ...]
    configurations: tuple[str, ...]
    trials: tuple[Entry, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ExperimentStatus:
    """The progress of an experiment."""

    title: str
    done: tuple[Entry, ...]
    failed: tuple[Failure, ...]
    """The next run repeats them."""
    missing: tuple[Entry, ...]
    left_out: tuple[str, ...]
    """Numbers of shots for which a data set has too few patients, with the reason."""

    @property
    def trials(self) -> int:
        """Number of fits in the plan."""
        return len(self.done) + len(self.failed) + len(self.missing)


def write_manifest(
    out: Path, plan: Plan, digested: Sequence[tuple[Trial, str]], left_out: Sequence[str], command: str
) -> None:
    """Write the list of trials, with their digests, into `out`."""
    entries = tuple(
        Entry(trial.data_set, trial.configuration_name, trial.shots, trial.split, digest) for trial, digest in digested
    )
    manifest = Manifest(plan.name, command, tuple(plan.measures), tuple(plan.configurations), entries, tuple(left_out))
    content = {"format": FORMAT, **asdict(manifest)}
    write_json(out / MANIFEST, content, indent=1)


def read_manifest(out: Path) -> Manifest:
    """The list of trials in `out`. Raises InputError if `out` is not the folder of an experiment."""
    path = out / MANIFEST
    if not checked_path(path).is_file():
        raise InputError(f"{out} has no {MANIFEST}, so it is not an experiment; start with handful experiment run")
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw["format"] > FORMAT:
            raise DamagedFile(
                f"{path} has format {raw['format']}, but this version of handful reads up to {FORMAT}; update handful"
            )
        if raw["format"] < FORMAT:
            raise DamagedFile(
                f"{path} was written by an earlier version of handful (format {raw['format']}, this one reads "
                f"{FORMAT}); run the experiment again into a new folder"
            )
        return Manifest(
            raw["title"],
            raw["command"],
            tuple(raw["measures"]),
            tuple(raw["configurations"]),
            tuple(Entry(**entry) for entry in raw["trials"]),
            tuple(raw["left_out"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read ({error!r}); run the experiment again") from error


def write_outcome(out: Path, digest: str, outcome: Mapping[str, Any]) -> None:
    """Store the result of a trial, completely or not at all."""
    write_atomically(_path(out, digest), json.dumps(outcome, ensure_ascii=False).encode())


def adopt(out: Path, results: Iterable[Result]) -> None:
    """Take fits that are not done in `out` over from the results of another run, without pictures.

    The results may hold a fit several times: in several tables, or under several names or splits of one.
    """
    fits: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for result in results:
        row = {name: None if value != value else value for name, value in vars(result).items()}  # JSON has no nan
        fits.setdefault(result.trial, {}).setdefault((result.case, result.label), row)
    for digest, rows in fits.items():
        if digest and not is_done(out, digest):
            write_outcome(out, digest, {"shared": {}, "rows": [*rows.values()], "pictures": []})


def read_outcome(out: Path, digest: str) -> dict[str, Any] | None:
    """The stored result of a trial; None if it was never run."""
    path = _path(out, digest)
    try:
        outcome = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedFile(f"{path} is not JSON ({error}); delete it and run the experiment again") from error
    if not isinstance(outcome, dict) or not ("failure" in outcome or {"shared", "rows", "pictures"} <= outcome.keys()):
        raise _no_result(path)
    return outcome


def _no_result(path: Path) -> DamagedFile:
    return DamagedFile(f"{path} is not the result of a fit; delete it and run the experiment again")


def is_done(out: Path, digest: str) -> bool:
    """Whether a trial was run without failure."""
    outcome = read_outcome(out, digest)
    return outcome is not None and "failure" not in outcome


def experiment_status(out: Path) -> ExperimentStatus:
    """Which trials of the experiment in `out` are done, failed or missing."""
    manifest = read_manifest(out)
    done: list[Entry] = []
    failed: list[Failure] = []
    missing: list[Entry] = []
    for entry in manifest.trials:
        outcome = read_outcome(out, entry.digest)
        if outcome is None:
            missing.append(entry)
        elif "failure" in outcome:
            failed.append(Failure(entry.name, str(outcome["failure"])))
        else:
            done.append(entry)
    return ExperimentStatus(manifest.title, tuple(done), tuple(failed), tuple(missing), manifest.left_out)


def read_study(out: Path) -> Study:
    """The results of the finished trials in `out`, in the order of the plan."""
    manifest = read_manifest(out)
    results: list[Result] = []
    pictures: list[Picture] = []
    decisions: list[Decisions] = []
    failed: list[Failure] = []
    done = 0
    for entry in manifest.trials:
        outcome = read_outcome(out, entry.digest)
        if outcome is None:
            continue
        if "failure" in outcome:
            failed.append(Failure(entry.name, str(outcome["failure"])))
            continue
        done += 1
        try:
            rows, drawn = [*_results(manifest.title, entry, outcome)], [*_pictures(entry, outcome)]
        except (KeyError, TypeError, ValueError) as error:
            raise _no_result(_path(out, entry.digest)) from error
        results += rows
        pictures += drawn
        if rows and rows[0].decided:
            about = (entry.data_set, entry.configuration, entry.shots, entry.split)
            decisions.append(Decisions(*about, rows[0].decided))
    return Study(
        title=manifest.title,
        results=tuple(results),
        order=manifest.configurations,
        measures=manifest.measures,
        pictures=tuple(pictures),
        decisions=tuple(decisions),
        command=manifest.command,
        trials=len(manifest.trials),
        done=done,
        failed=tuple(failed),
    )


def write_experiment_report(out: str | Path, with_latex: bool = False) -> list[Path]:
    """Write results.csv, results.parquet (if pyarrow is installed), tables.md (and .tex) and report.html into `out`.

    Returns their paths; report.html is the last. A tables.tex of an earlier report is replaced in any case.
    """
    out = Path(out)
    study = read_study(out)
    with_latex = with_latex or (out / "tables.tex").exists()
    tables = [out / "results.csv", *([out / "results.parquet"] if has_parquet() else [])]
    for path in tables:
        write_results(study.results, path)
    write_atomically(out / "tables.md", markdown(study).encode())
    if with_latex:
        write_atomically(out / "tables.tex", latex(study).encode())
    write_html(study, out / "report.html")
    return [*tables, out / "tables.md", *([out / "tables.tex"] if with_latex else []), out / "report.html"]


def _path(out: Path, digest: str) -> Path:
    return out / TRIALS / f"{digest[:20]}.json"


def _results(title: str, entry: Entry, outcome: Mapping[str, Any]) -> Iterator[Result]:
    about = {
        "experiment": title,
        "data_set": entry.data_set,
        "configuration": entry.configuration,
        "shots": entry.shots,
        "split": entry.split,  # an equal fit of another split may have stored the outcome
        "trial": entry.digest,
    }
    for row in outcome["rows"]:
        values = {"decisions": "", **outcome["shared"], **row, **about}
        values |= {name: math.nan for name in ("hd95", "assd", *FEATURES) if values.get(name) is None}
        yield Result(**{name: values[name] for name in COLUMNS})


def _pictures(entry: Entry, outcome: Mapping[str, Any]) -> Iterator[Picture]:
    for picture in outcome["pictures"]:
        webp = base64.b64decode(picture["webp"])
        about = (entry.data_set, entry.configuration, entry.shots, entry.split)
        yield Picture(*about, picture["case"], picture["dice"], webp)
