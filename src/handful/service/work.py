"""The process of one job: python -m handful.service.work COHORT JOB_FILE BACKBONE DEVICE.

It ends when the service that started it ends, however that happens; half-done work is kept and continued later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

from handful.backbones.catalog import open_backbone
from handful.checkpoint.model import open_model
from handful.cohort.choice import choose_unlabelled
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import PredictConfig, predict_cohort
from handful.cohort.review import ReviewConfig, review_folder
from handful.curation.suggest import SuggestConfig, suggest
from handful.data.cases import Cohort
from handful.errors import HandfulError
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import write_json
from handful.methods.base import labelled_slices
from handful.methods.catalog import build_method
from handful.service.jobs import Job
from handful.service.workspace import Workspace, id_of

EVERY_S = 0.5
"""Seconds between two notes of the progress."""


class CancelledError(BaseException):
    """The job is to end. It is no Exception, which would count as a failure of the case that is worked on."""


class Worker:
    """Carries out a job and notes its progress in the job's file."""

    def __init__(self, cohort: Path, file: Path, backbone: str, device: str) -> None:
        self.workspace, self.file, self.backbone_name, self.device = Workspace(cohort), file, backbone, device
        self.job = replace(Job.read(file), pid=os.getpid())
        self.job.write(file)
        self._noted = 0.0
        self._part: tuple[int, str] = (0, "")

    def run(self) -> int:
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "learn": self._learn,
            "segment": self._segment,
            "suggest": self._suggest,
        }
        try:
            result = kinds[self.job.kind]()
            ended = replace(self.job, state="done", result=result, step=self.job.total, note="")
        except CancelledError:
            ended = replace(self.job, state="cancelled")
        except HandfulError as error:
            ended = replace(self.job, state="failed", error=str(error))
        except Exception as error:
            ended = replace(self.job, state="failed", error=f"{type(error).__name__}: {error}")
        replace(ended, ended=time.time()).write(self.file)
        return int(ended.state != "done")

    def report(self, step: int, total: int, note: str) -> None:
        now, part = time.time(), (total, note.partition(":")[0] if ":" in note else "")
        started = self.job.part_started
        if part != self._part or step < self.job.step:
            self._part, started = part, now
        changed = note != self.job.note and step == 0
        self.job = replace(self.job, step=step, total=max(1, total), note=note, part_started=started)
        if changed or now - self._noted > EVERY_S:
            self.job.write(self.file)
            self._noted = now

    def _learn(self) -> dict[str, Any]:
        cohort, options = self.workspace.cohort(), self.job.options
        name = str(options.get("method", "auto"))
        settings = {"budget_minutes": options["minutes"]} if name == "auto" and options.get("minutes") else {}
        method = build_method(name, settings)
        failures: list[Failure] = []
        support = self.workspace.support(failures)
        unused = set(cohort.labels.names if cohort.labels else ()) - set(support.labels.names)
        if method.uses_unlabelled:
            support = replace(
                support, unlabelled=choose_unlabelled(cohort, support, failures=failures, report=self.report)
            )
        config = FitConfig(overwrite=True)
        result = fit_to_folder(name, method, support, self._backbone(), self.workspace.model, config, self.report)
        return {
            "method": name,
            "labelled": len(support.cases),
            "slices": labelled_slices(method, support),
            "decisions": list(result.decisions),
            "dice_left_out": dict(result.dice_left_out),
            "dice_on_support": dict(result.dice_on_support),
            "not_learned": [*result.not_learned, *sorted(unused)],
            "failures": _listed(failures),
        }

    def _segment(self) -> dict[str, Any]:
        cohort = self.workspace.cohort()
        accepted = self.workspace.accepted_cases()
        cases = [case for case in cohort.cases if case.reference is None and id_of(case) not in accepted]
        self.workspace.predictions.mkdir(parents=True, exist_ok=True)
        config = PredictConfig(device=self.device, cache=self._cache)
        result = predict_cohort(self.workspace.model, cases, self.workspace.predictions, config, self.report)
        estimate = self._reviewed(
            replace(cohort, cases=tuple(case for case in cohort.cases if id_of(case) not in accepted))
        )
        return {
            "done": len(result.done),
            "unchanged": len(result.skipped),
            "failures": _listed(result.failures),
            "warnings": _listed(result.warnings),
            "estimate": estimate,
        }

    def _reviewed(self, cohort: Cohort) -> float | None:
        """Estimate the quality of each segmentation; the mean Dice, None if none can be estimated."""
        config = ReviewConfig(device=self.device, cache=self._cache)
        try:
            result = review_folder(
                self.workspace.predictions,
                self.workspace.model,
                cohort,
                self.workspace.review,
                None,
                config,
                self.report,
            )
        except HandfulError as error:
            self.report(0, 1, f"not estimated: {error}")
            return None
        qualities = {
            quality.case: {
                "worst": round(quality.worst, 4),
                "flags": [f"{label.name}: {flag}" for label in quality.labels for flag in label.flags],
            }
            for quality in result.cases
        }
        write_json(self.workspace.own / "quality.json", qualities)
        estimates = [label.predicted_dice for quality in result.cases for label in quality.labels]
        return round(fmean(estimates), 4) if estimates else None

    def _suggest(self) -> dict[str, Any]:
        cohort = self.workspace.cohort()
        saved = open_model(self.workspace.model) if self.workspace.has_model else None
        segmenter = saved.open(self.device, self._cache) if saved else None
        encoder = segmenter.backbone if segmenter else self._backbone()
        agreement = saved.agreement if saved else {}
        result = suggest(cohort, encoder, segmenter, SuggestConfig(count=12), self.report, agreement)
        ids = {case.name: id_of(case) for case in cohort.cases}
        found = [
            {"id": ids[one.slice.case], "axis": one.axis, "index": one.slice.index, "reason": one.reason}
            for one in result.suggestions
        ]
        return {"suggestions": found, "failures": _listed(result.failures)}

    def _backbone(self) -> Any:
        return open_backbone(self.backbone_name, self.device, self._cache)

    @property
    def _cache(self) -> Path:
        return self.workspace.folder / ".handful" / "embeddings"


def _listed(failures: Sequence[Failure]) -> list[dict[str, str]]:
    return [{"case": failure.case, "reason": failure.reason} for failure in failures]


def _end_with_service() -> None:
    """End this process when the service has ended, which holds the other end of the standard input."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def main() -> int:
    def cancel(number: int, frame: FrameType | None) -> None:
        raise CancelledError

    signal.signal(signal.SIGTERM, cancel)
    threading.Thread(target=_end_with_service, daemon=True).start()
    cohort, file, backbone, device = sys.argv[1:]
    return Worker(Path(cohort), Path(file), backbone, device).run()


if __name__ == "__main__":
    sys.exit(main())
