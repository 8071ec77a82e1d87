"""A Dask scheduler and its workers as processes of their own, on this machine only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client


class Cluster:
    """A scheduler that gives all tasks to workers at once, and workers without a nanny, which nobody restarts."""

    def __init__(self, folder: Path, allowed_failures: int = 3) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures),
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        self.file.unlink(missing_ok=True)
        scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        end = time.monotonic() + 600
        while not self.file.exists():
            assert scheduler.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "the scheduler does not start"
            time.sleep(0.05)
        return scheduler

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", "--no-nanny", "--nthreads", "1", "--local-directory", str(self.folder))

    def running(self) -> int:
        """Tasks that workers have, begun or not."""
        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return int(client.run_on_scheduler(_tasks_of_workers))

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", kind, *options, "--no-dashboard", "--scheduler-file", str(self.file)]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _tasks_of_workers(dask_scheduler: Any) -> int:
    return sum(task.state == "processing" for task in dask_scheduler.tasks.values())
