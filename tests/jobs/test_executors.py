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
from tasks import PreparedWork, Work


@pytest.mark.parametrize("executor", [Serial(), Processes(1), Processes(1, forked=True)], ids=repr)
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
    assert result[3] == min(cores(), int(os.environ.get("OMP_NUM_THREADS", cores())))
    with pytest.raises(AttributeError, match="pickle"):
        list(Processes(8).run(Work(), [tasks.UNPICKLABLE]))


@pytest.mark.parametrize("forked", [False, True])
def test_no_process_is_left_when_a_run_has_ended(forked: bool):
    before = multiprocessing.active_children()
    assert len(list(Processes(2, forked).run(Work(), ["a", "b"]))) == 2
    assert not {*multiprocessing.active_children()} - {*before}


@pytest.mark.parametrize("forked", [False, True])
def test_a_worker_that_dies_takes_one_task_with_it(forked: bool):
    todo = ["a", tasks.KILL, "b", "c", tasks.EXIT]
    found = dict(Processes(2, forked).run(Work(), todo))
    assert found.keys() == set(todo)
    for task, how in ((tasks.KILL, "by signal 9"), (tasks.EXIT, "with code 3")):
        assert isinstance(found[task], Lost)
        assert f"its process was ended {how}, twice" in found[task].reason
    assert [found[task][0] for task in "abc"] == ["a", "b", "c"]


def test_a_task_whose_worker_dies_once_is_done_again_after_the_others(tmp_path: Path):
    dying = tasks.KILL_ONCE + str(tmp_path / "died")
    found = list(Processes(1, forked=True).run(Work(), [dying, "a", "b"]))
    assert [task for task, _ in found] == ["a", "b", dying]
    assert all(not isinstance(result, Lost) for _, result in found)


def test_forks_start_with_what_was_prepared_once(tmp_path: Path):
    found = dict(Processes(2, forked=True).run(PreparedWork(tmp_path), ["a", "b", "c", tasks.KILL]))
    assert {found[task] for task in "abc"} == {(tmp_path / "prepared").read_text()}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_that_is_left_ends_its_processes():
    before = multiprocessing.active_children()
    running = Processes(2, forked=True).run(Work(), ["a", tasks.SLEEP])
    next(running)
    (origin,) = {*multiprocessing.active_children()} - {*before}
    started = children(origin.pid)
    assert started
    running.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert not origin.is_alive()


def children(pid: int | None) -> list[int]:
    """Process ids, without those that have ended."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if Path(f"/proc/{child}/cmdline").read_bytes()]


ORPHANS = """
import sys
from handful.jobs.executors import Processes
from tasks import SLEEP, Work
if __name__ == "__main__":
    for _, result in Processes(2, forked=True).run(Work(), ["a", SLEEP]):
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
    started = [pid for child in children(parent.pid) for pid in (child, *children(child))]
    assert len(started) >= 2
    parent.send_signal(stop)
    parent.wait()
    end = time.monotonic() + 600
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)
