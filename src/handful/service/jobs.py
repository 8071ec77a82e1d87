"""Long jobs of a service: learning, segmenting all, suggesting. Each runs in a process of its own, one at a time.

The folder of jobs is the truth: the process of a job writes its progress there, and a restarted service reads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from handful.errors import BusyError, InputError
from handful.jobs.atomic import write_json

Kind = Literal["learn", "segment", "suggest"]
State = Literal["running", "done", "failed", "cancelled", "interrupted"]
GRACE_S = 10.0
"""Seconds that a cancelled job has to save its work."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job and how far it is."""

    number: int
    kind: Kind
    options: dict[str, Any]
    state: State = "running"
    step: int = 0
    total: int = 1
    note: str = ""
    started: float = 0.0
    """Seconds since 1970."""
    part_started: float = 0.0
    """When the present part, of `total` steps, began."""
    ended: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    pid: int | None = None
    dismissed: bool = False
    """Whether a person has dismissed what went wrong in it."""

    @classmethod
    def read(cls, file: Path) -> Job:
        return cls(**json.loads(file.read_text("utf-8")))

    def write(self, file: Path) -> None:
        write_json(file, asdict(self))

    def left_s(self, now: float) -> float | None:
        """Estimated seconds until the present part ends."""
        if self.state != "running" or self.step == 0:
            return None
        return (now - self.part_started) * (self.total - self.step) / self.step


class Jobs:
    """The jobs of one cohort folder."""

    def __init__(self, cohort: Path, folder: Path, backbone: str, device: str) -> None:
        self.cohort, self.folder, self.backbone, self.device = cohort, folder, backbone, device
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    def latest(self) -> Job | None:
        """The latest job. One whose process has gone without a word is "interrupted"; it can be started again."""
        files = self._files()
        if not files:
            return None
        job = Job.read(files[-1])
        if job.state == "running" and not self._is_alive(job):
            job = Job.read(files[-1])  # it may have ended in between
            if job.state == "running":
                job = replace(job, state="interrupted", ended=time.time())
                job.write(files[-1])
        return job

    def last_done(self, kind: Kind) -> Job | None:
        """The latest job of a kind that is done."""
        done = (job for file in reversed(self._files()) if (job := Job.read(file)).kind == kind and job.state == "done")
        return next(done, None)

    def all_done(self, kind: Kind) -> list[Job]:
        """All jobs of a kind that are done, in their order."""
        return [job for file in self._files() if (job := Job.read(file)).kind == kind and job.state == "done"]

    def last_ended(self, kind: Kind) -> Job | None:
        """The latest job of a kind that is done or has failed, so that it tells what went wrong."""
        jobs = (Job.read(file) for file in reversed(self._files()))
        return next((job for job in jobs if job.kind == kind and job.state in ("done", "failed")), None)

    def dismiss(self, number: int) -> None:
        """Do not list what went wrong in a job any longer. Raises InputError unless the job is there and has ended."""
        file = next((one for one in self._files() if one == self._file(number)), None)
        job = Job.read(file) if file else None
        if file is None or job is None or job.state == "running":
            raise InputError("there is no such job, or it is still running")
        replace(job, dismissed=True).write(file)

    def start(self, kind: Kind, options: dict[str, Any]) -> Job:
        """Start a job. Raises BusyError while another one runs."""
        with self._lock:
            last = self.latest()
            if last is not None and last.state == "running":
                raise BusyError(f"a job is running ({last.kind}); wait until it has ended, or cancel it")
            now = time.time()
            job = Job(number=last.number + 1 if last else 1, kind=kind, options=options, started=now, part_started=now)
            file = self._file(job.number)
            self._process = None  # until it has one, nobody may judge the new job by the process of the last one
            job.write(file)
            command = [sys.executable, "-m", "handful.service.work", str(self.cohort), str(file)]
            command += [self.backbone, self.device]
            with (self.folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            return job

    def cancel(self) -> Job:
        """End the running job; what it has finished is kept. Raises InputError if there is none."""
        with self._lock:
            job = self.latest()
            if job is None or job.state != "running":
                raise InputError("no job is running")
            self.close()
            job = Job.read(self._file(job.number))
            if job.state == "running":
                job = replace(job, state="cancelled", ended=time.time())
                job.write(self._file(job.number))
            return job

    def close(self) -> None:
        """End the process of the running job, if there is one; the job can be started again later."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _is_alive(self, job: Job) -> bool:
        process = self._process  # another thread may start a job meanwhile
        if process is not None:
            return process.poll() is None
        if job.pid is None:
            return time.time() - job.started < GRACE_S  # a process that is just starting
        try:
            os.kill(job.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _file(self, number: int) -> Path:
        return self.folder / f"job-{number:06d}.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("job-*.json"))
