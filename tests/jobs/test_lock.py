import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from handful.errors import BusyError
from handful.jobs.lock import locked

HOLD = """
import sys, time, pathlib
from handful.jobs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_gets_the_holder_of_the_lock(tmp_path: Path):
    process = hold(tmp_path)
    try:
        with pytest.raises(BusyError, match=f"process {process.pid} on {socket.gethostname()}"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path):
    process = hold(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        pass


def test_the_folder_is_free_again_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass


def test_an_empty_folder_is_removed_while_it_is_locked(tmp_path: Path):
    folder = tmp_path / "scratch"
    with locked(folder, remove_empty=True):
        assert folder.is_dir()
    assert not folder.exists()
    with locked(folder, remove_empty=True):
        (folder / "kept").touch()
    assert (folder / "kept").exists()


def test_a_lock_outlives_the_removal_of_its_folder_by_another_process(tmp_path: Path):
    folder = tmp_path / "scratch"
    with locked(folder, remove_empty=True):
        other = FileLock(folder / "lock")  # of a process that has opened the file, and not yet locked it
    with locked(folder, remove_empty=True):
        with pytest.raises(Timeout):
            other.acquire(blocking=False)
        with pytest.raises(BusyError), locked(folder):
            pass
    assert not folder.exists()
