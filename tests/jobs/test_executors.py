"""Every task comes back with its result, wherever it was done, and a worker's death takes one task with it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tasks
from handful.jobs.executors import Executor, Lost, Processes, Serial, cores
from tasks import Work


@pytest.mark.parametrize("executor", [Serial(), Processes(1)], ids=repr)
def test_every_task_comes_back_with_its_result_and_work_is_kept_from_task_to_task(executor: Executor):
    found = list(executor.run(Work(), ["a", "b", "c"]))
    assert [(task, result[:2]) for task, result in found] == [("a", ("a", 1)), ("b", ("b", 2)), ("c", ("c", 3))]
    assert all((result[2] == os.getpid()) == (executor == Serial()) for _, result in found)


def test_no_tasks_have_no_results():
    assert list(Serial().run(Work(), [])) == list(Processes(2).run(Work(), [])) == []


@pytest.mark.parametrize("executor", [Serial(), Processes(1)], ids=repr)
def test_what_work_raises_is_raised_to_the_caller(executor: Executor):
    with pytest.raises(ValueError, match="no such task"):
        list(executor.run(Work(), ["a", tasks.RAISE, "b"]))


def test_one_task_has_one_process_with_all_cores_and_its_result_must_be_picklable():
    ((_, result),) = Processes(8).run(Work(), ["a"])
    assert result[3] == cores()
    with pytest.raises(AttributeError, match="pickle"):
        list(Processes(8).run(Work(), [tasks.UNPICKLABLE]))


def test_a_worker_that_dies_takes_one_task_with_it():
    todo = ["a", tasks.KILL, "b", "c", tasks.EXIT]
    found = dict(Processes(2).run(Work(), todo))
    assert found.keys() == set(todo)
    assert (found[tasks.KILL], found[tasks.EXIT]) == (Lost("by signal 9"), Lost("with code 3"))
    assert [found[task][0] for task in "abc"] == ["a", "b", "c"]


def test_a_run_that_is_left_ends_its_processes():
    running = Processes(2).run(Work(), ["a", tasks.SLEEP])
    next(running)
    running.close()  # type: ignore[attr-defined]
    for process in multiprocessing.active_children():
        process.join(120)
        assert not process.is_alive()


ORPHANS = """
import sys
from handful.jobs.executors import Processes
from tasks import SLEEP, Work
if __name__ == "__main__":
    for _, result in Processes(2).run(Work(), ["a", SLEEP]):
        print(result[2], flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_their_parent(stop: signal.Signals, tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    path = os.pathsep.join([str(Path(tasks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    parent.stdout.readline()
    children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert children
    parent.send_signal(stop)
    parent.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)
