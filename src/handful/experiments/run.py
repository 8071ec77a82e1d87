"""Runs the trials of an experiment on several worker processes; each result is stored as soon as it is known."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.errors import SettingsError, did_you_mean, reason_of
from handful.evaluation.results import Result
from handful.experiments.measure import Fingerprints, Fit, fit, measure
from handful.experiments.plan import Plan, Trial, trials
from handful.experiments.store import (
    TRIALS,
    ExperimentStatus,
    adopt,
    experiment_status,
    is_done,
    write_manifest,
    write_outcome,
)
from handful.jobs.atomic import remove_leftovers
from handful.jobs.executors import Lost, cores
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES
from handful.jobs.plain_text import counted
from handful.jobs.progress import Report, silent
from handful.jobs.workers import executor_for, require_workers

MOST_PROCESSES = 8
"""Default limit, since each process holds a backbone and a scan in memory."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Options of a run; none of them changes the scores."""

    workers: int | None = None
    """Number of worker processes; with 1, everything runs in the caller's process. None: one per CPU core, at most 8,
    or 1 on a GPU."""
    scheduler: str | Path | None = None
    """Address of a Dask scheduler or path of its JSON file: its workers run the trials, one fit each at a time. All of
    them must reach data sets and output under the same absolute paths."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    command: str = ""
    """The command line, for the report."""
    known: Sequence[Result] = ()
    """Results of an earlier run, from `read_results`: their fits are taken over, without pictures."""
    cache: str | Path | None = None
    """Folder of stored embeddings, shared by all configurations. Measured times then exclude most of the encoding."""
    data_sets: tuple[str, ...] = ()
    """Data sets of the plan to run now; empty for all."""
    configurations: tuple[str, ...] = ()
    """Configurations of the plan to run now; empty for all."""
    shots: tuple[int, ...] = ()
    """Numbers of labelled cases to run now; empty for all."""
    splits: tuple[int, ...] = ()
    """Splits to run now; empty for all."""

    def includes(self, trial: Trial) -> bool:
        """Whether a trial is to be run now."""
        filters = (
            (self.data_sets, trial.data_set),
            (self.configurations, trial.configuration_name),
            (self.shots, trial.shots),
            (self.splits, trial.split),
        )
        return all(not chosen or value in chosen for chosen, value in filters)

    def require_parts_of(self, plan: Plan) -> None:
        """Raise SettingsError for a data set, a configuration, a number of shots or a split that the plan lacks."""
        for kind, chosen, entries in (
            ("data set", self.data_sets, plan.data),
            ("configuration", self.configurations, plan.configurations),
        ):
            for name in chosen:
                if name not in entries:
                    hint = did_you_mean(name, entries)
                    raise SettingsError(f"plan {plan.name!r} has no {kind} {name!r}; {hint}it has {', '.join(entries)}")
        for kind, numbers, planned in (("shots", self.shots, plan.all_shots), ("splits", self.splits, plan.splits)):
            if unknown := [number for number in numbers if number not in planned]:
                raise SettingsError(
                    f"plan {plan.name!r} has no {kind} {unknown[0]}; it has {', '.join(map(str, planned))}"
                )


def run_experiment(
    plan: Plan,
    out: str | Path,
    config: ExperimentConfig | None = None,
    report: Report = silent,
) -> ExperimentStatus:
    """Run the trials of `plan` that are not done in `out`, and return the status of the experiment.

    Each trial is stored in a small file as soon as it is done. After an interruption, the same call resumes: only the
    trials that were running are repeated. A trial is repeated if its method, weights, scans or labels have changed, or
    if it failed. Raises BusyError while another run works in `out`, SettingsError if there is nothing to run.
    """
    config = config or ExperimentConfig()
    require_workers(1 if config.workers is None else config.workers, config.scheduler)
    config.require_parts_of(plan)
    out = Path(out).absolute()
    with locked(out / NOTES):
        remove_leftovers(out)
        remove_leftovers(out / TRIALS, min_age_s=3600)  # workers of an earlier run on a cluster may still write
        planned_trials, left_out = trials(plan)
        if not any(config.includes(trial) for trial in planned_trials):
            reason = "; ".join(left_out) or "none of its fits has the chosen parts"
            raise SettingsError(f"plan {plan.name!r} has nothing to measure: {reason}")
        tasks = _tasks(planned_trials, out, None if config.cache is None else Path(config.cache).absolute())
        planned = {task.digest for task in tasks}
        adopt(out, (result for result in config.known if result.trial in planned))
        write_manifest(out, plan, [(task.trial, task.digest) for task in tasks], left_out, config.command)
        included = {task.digest: task for task in tasks if config.includes(task.trial)}
        todo = [task for task in included.values() if not is_done(out, task.digest)]
        if todo:
            report(0, len(todo), f"{len(todo)} of {counted(len(included), 'fit')} to do")
        with closing(_outcomes(_jobs(todo), config, out)) as outcomes:
            for number, (task, failure) in enumerate(outcomes, start=1):
                report(number, len(todo), f"{task.trial.name}{': ' + failure if failure else ''}")
        return experiment_status(out)


@dataclass(frozen=True)
class _Task:
    out: Path
    digest: str
    trial: Trial
    cache: Path | None


def _tasks(every: Sequence[Trial], out: Path, cache: Path | None) -> list[_Task]:
    """A task per trial, in their order; only one backbone is in memory at a time."""
    fingerprints, digests = Fingerprints(), {}
    for name in dict.fromkeys(trial.backbone for trial in every):
        backbone = load_backbone(name)
        weights = backbone.digest()
        for number, trial in enumerate(every):
            if trial.backbone == name:
                digests[number] = fingerprints.of(trial, backbone, weights)
        del backbone  # before the next one is loaded
    return [_Task(out, digests[number], trial, cache) for number, trial in enumerate(every)]


_Job = list[_Task]
"""Tasks with the same fit, which differ in their annotator."""


def _jobs(tasks: Iterable[_Task]) -> list[_Job]:
    """Tasks grouped by fit, those of one backbone together, in the order of the first task of each."""
    by_fit: dict[str, _Job] = {}
    for task in tasks:
        by_fit.setdefault(task.trial.fit, []).append(task)
    backbones = list(dict.fromkeys(job[0].trial.backbone for job in by_fit.values()))
    return sorted(by_fit.values(), key=lambda job: backbones.index(job[0].trial.backbone))


def _default_workers(device: str) -> int:
    return min(cores(), MOST_PROCESSES) if device == "cpu" else 1


def _outcomes(jobs: Sequence[_Job], config: ExperimentConfig, out: Path) -> Generator[tuple[_Task, str], None, None]:
    """Each task when it ends, with the reason if it failed, else ""."""
    workers = 1 if config.scheduler else min(config.workers or _default_workers(config.device), max(1, len(jobs)))
    executor = executor_for(workers, config.scheduler, str(out), config.device)
    with closing(executor.run(_Worker(config.device), jobs)) as outcomes:
        for job, reasons in outcomes:
            yield from zip(job, _lost(job, reasons) if isinstance(reasons, Lost) else reasons, strict=True)


class _Worker:
    """Runs jobs in one process. One backbone at a time is in memory: that of the last job."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.loaded: tuple[str, Backbone] | None = None

    def __call__(self, job: _Job) -> list[str]:
        """Fit once, then score and store each trial. Returns the reason of failure of each task, else ""."""
        try:
            fitted = fit(job[0].trial, self._backbone(job[0]))
        except Exception as error:  # any error concerns this fit only
            return _failed(job, error)
        return [_measured(task, fitted) for task in job]

    def _backbone(self, task: _Task) -> Backbone:
        name = task.trial.backbone
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None  # there may be no room for both
            plain = load_backbone(name).to(self.device)
            self.loaded = name, cached(plain, task.cache) if task.cache else plain
        return self.loaded[1]


def _measured(task: _Task, fitted: Fit) -> str:
    try:
        outcome = measure(task.trial, fitted)
    except Exception as error:  # any error concerns this trial only
        return _failed([task], error)[0]
    write_outcome(task.out, task.digest, outcome)
    return ""


def _failed(job: _Job, error: Exception | str) -> list[str]:
    """Store the reason of failure of each task, and return the reasons. They do not name the folder of the data set."""
    reason = error if isinstance(error, str) else reason_of(error)
    reason = reason.replace(f"{job[0].trial.folder}{os.sep}", "")
    for task in job:
        write_outcome(task.out, task.digest, {"failure": reason})
    return [reason] * len(job)


def _lost(job: _Job, lost: Lost) -> list[str]:
    """As `_failed`, for the unfinished tasks of a job whose process was killed."""
    return ["" if is_done(task.out, task.digest) else _failed([task], lost.reason)[0] for task in job]
