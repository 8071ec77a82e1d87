import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from handful.errors import BusyError
from handful.jobs.lock import locked

HOLD = """
import sys, time, pathlib
from handful.jobs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
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
