"""The executor for the number of workers, or the Dask scheduler, that a user names."""

from __future__ import annotations

from pathlib import Path

from handful.errors import SettingsError
from handful.jobs.devices import choose_device
from handful.jobs.executors import Executor, Processes, Serial


def require_workers(workers: int, scheduler: str | Path | None) -> None:
    """Raise SettingsError for fewer than one worker, or for workers and a scheduler at once."""
    if workers < 1:
        raise SettingsError(f"workers must be at least 1, got {workers}")
    if workers > 1 and scheduler is not None:
        raise SettingsError(f"workers is {workers}, but the scheduler {scheduler} has its own; give one of the two")


def executor_for(workers: int, scheduler: str | Path | None, name: str, device: str) -> Executor:
    """Dask for a scheduler, several processes for several workers, else this process.

    `name` identifies the work on the cluster: it replaces unfinished work of the same name. `device` is one of DEVICES.
    Raises SettingsError if Dask is not installed.
    """
    if scheduler is None:
        return Processes(workers, forked=choose_device(device).type == "cpu") if workers > 1 else Serial()
    try:
        from handful.jobs.dask_cluster import DaskCluster
    except ImportError as error:
        raise SettingsError(f"a scheduler needs Dask ({error}); install it with: pip install 'handful[dask]'") from None
    return DaskCluster(str(scheduler), name)
