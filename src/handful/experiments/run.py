"""An experiment carried out: its trials spread over workers, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.backbones.catalog import load_backbone
from handful.errors import HandfulError, SettingsError, did_you_mean
from handful.evaluation.results import Result
from handful.experiments.measure import Fingerprints, Fit, fit, measure
from handful.experiments.plan import Plan, Trial, trials
from handful.experiments.store import ExperimentStatus, adopt, experiment_status, is_done, write_manifest, write_outcome
from handful.jobs.executors import Executor, Lost, Processes, Serial, cores
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES
from handful.jobs.progress import Report, silent

MOST_PROCESSES = 8
"""Unless more are asked for: each holds a backbone and a scan."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Circumstances of a run; nothing here shows in the scores."""

    workers: int | None = None
    """Processes that share the cores of a CPU, as many as there are unless told otherwise; with one, all happens in the
    caller's own."""
    device: str = "cpu"
    command: str = ""
    """What was typed, noted for the report."""
    known: Sequence[Result] = ()
    """The table of an earlier run, as `read_results` gives it: its fits are taken over, without pictures."""
    cache: Path | None = None
    """Folder of kept embeddings, so that configurations which see the same slices encode them once; times are then no
    longer those of a fit by itself."""
    data_sets: tuple[str, ...] = ()
    """What of the plan to measure now; empty for all of it. So are `configurations`, `shots` and `splits`."""
    configurations: tuple[str, ...] = ()
    shots: tuple[int, ...] = ()
    splits: tuple[int, ...] = ()

    def wants(self, trial: Trial) -> bool:
        """Whether a trial is to be measured now."""
        chosen = (
            (self.data_sets, trial.data_set),
            (self.configurations, trial.configuration_name),
            (self.shots, trial.shots),
            (self.splits, trial.split),
        )
        return all(not some or one in some for some, one in chosen)

    def require_known_names(self, plan: Plan) -> None:
        """SettingsError for a data set or a configuration that the plan does not have."""
        for what, chosen, there in (
            ("data set", self.data_sets, plan.data),
            ("configuration", self.configurations, plan.configurations),
        ):
            for name in chosen:
                if name not in there:
                    hint = did_you_mean(name, there)
                    raise SettingsError(f"plan {plan.name!r} has no {what} {name!r}; {hint}it has {', '.join(there)}")


def run_experiment(
    plan: Plan,
    out: Path,
    config: ExperimentConfig | None = None,
    report: Report = silent,
) -> ExperimentStatus:
    """Measures what is missing in `out`, and says what is there then.

    A trial is a small file, written whole when it is known: a killed run loses no more than the trials it was at, and
    the same call goes on from there. A trial whose method, weights, scans or labels changed is measured anew, one that
    failed is tried again. Raises BusyError while another run works in `out`.
    """
    config = config or ExperimentConfig()
    config.require_known_names(plan)
    with locked(out / NOTES):
        every, left_out = trials(plan)
        if not any(config.wants(trial) for trial in every):
            why = "; ".join(left_out) or "the chosen shots and splits are none of its own"
            raise SettingsError(f"plan {plan.name!r} has nothing to measure: {why}")
        digests = {name: load_backbone(name).digest() for name in dict.fromkeys(trial.backbone for trial in every)}
        fingerprints = Fingerprints()
        tasks = [_Task(out, fingerprints.of(trial, digests[trial.backbone]), trial, config.cache) for trial in every]
        planned = {task.digest for task in tasks}
        adopt(out, (result for result in config.known if result.trial in planned))
        write_manifest(out, plan, [(task.trial, task.digest) for task in tasks], left_out, config.command)
        wanted = {task.digest: task for task in tasks if config.wants(task.trial)}
        todo = [task for task in wanted.values() if not is_done(out, task.digest)]
        if todo:
            report(0, len(todo), f"{len(todo)} of {len(wanted)} fits to do")
        outcomes = _outcomes(_jobs(todo), config.workers or _usual(config.device), config.device)
        for number, (task, failure) in enumerate(outcomes, start=1):
            report(number, len(todo), f"{task.trial.name}{': ' + failure if failure else ''}")
        return experiment_status(out)


@dataclass(frozen=True)
class _Task:
    out: Path
    digest: str
    trial: Trial
    cache: Path | None


_Job = list[_Task]
"""Tasks of one fit, which differ in who asks."""


def _jobs(tasks: Iterable[_Task]) -> list[_Job]:
    """Each at the place of its first task."""
    of_fit: dict[str, _Job] = {}
    for task in tasks:
        of_fit.setdefault(task.trial.fit, []).append(task)
    return list(of_fit.values())


def _usual(device: str) -> int:
    return min(cores(), MOST_PROCESSES) if device == "cpu" else 1


def _outcomes(jobs: Sequence[_Job], workers: int, device: str) -> Iterator[tuple[_Task, str]]:
    """Each task as it ends, with the reason where it failed."""
    executor: Executor = Processes(workers) if workers > 1 and len(jobs) > 1 else Serial()
    for job, reasons in executor.run(_Worker(device), jobs):
        yield from zip(job, _buried(job, reasons) if isinstance(reasons, Lost) else reasons, strict=True)


class _Worker:
    """Carries out jobs; each backbone is loaded once."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.backbones: dict[str, Backbone] = {}

    def __call__(self, job: _Job) -> list[str]:
        """Fits once, measures and keeps each trial; the reasons where that failed, so that the others go on."""
        try:
            fitted = fit(job[0].trial, self._backbone(job[0]))
        except Exception as error:  # whatever it is, it is this fit's
            return _failed(job, error)
        return [_tried(task, fitted) for task in job]

    def _backbone(self, task: _Task) -> Backbone:
        name = task.trial.backbone
        if name not in self.backbones:
            plain = load_backbone(name).to(self.device)
            self.backbones[name] = cached(plain, task.cache) if task.cache else plain
        return self.backbones[name]


def _tried(task: _Task, fitted: Fit) -> str:
    try:
        outcome = measure(task.trial, fitted)
    except Exception as error:  # whatever it is, it is this trial's
        return _failed([task], error)[0]
    write_outcome(task.out, task.digest, outcome)
    return ""


def _failed(job: _Job, error: Exception | str) -> list[str]:
    """The reason, a task, which is kept."""
    reason = str(error) if isinstance(error, HandfulError | str) else f"{type(error).__name__}: {error}"
    for task in job:
        write_outcome(task.out, task.digest, {"failure": reason})
    return [reason] * len(job)


def _buried(job: _Job, lost: Lost) -> list[str]:
    """What is noted of tasks whose process ended under them; those that were done already stay."""
    reason = f"its process was ended {lost.how}; where memory ran out, take fewer --workers"
    return ["" if is_done(task.out, task.digest) else _failed([task], reason)[0] for task in job]
