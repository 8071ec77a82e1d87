"""Commands as processes of their own: stopped, killed, two at once; what comes out is what an undisturbed one makes."""

import json
import os
import signal
from pathlib import Path

import pytest

import small_cohort
from small_cohort import FEW_SHOT, Handful

STOPS = [pytest.param(signal.SIGINT, 130, id="ctrl-c"), pytest.param(signal.SIGKILL, -signal.SIGKILL, id="kill-9")]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort.write_cohort(tmp_path_factory.mktemp("many"), cases=40)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), STOPS)
def test_a_stopped_fit_goes_on_to_the_same_bytes(
    stop: signal.Signals, code: int, cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    fit = ("fit", "few-shot-prompts", "-i", cohort, "--backbone", backbone, "--no-cache", *FEW_SHOT)
    process = small_cohort.start(*fit, "-o", tmp_path / "m", "--save-every", "0")
    small_cohort.wait_until(lambda: any((tmp_path / "m.partial").rglob("train.safetensors")), process)
    os.kill(process.pid, stop)
    process.communicate()
    assert process.returncode == code
    assert not (tmp_path / "m").exists()

    resumed, whole = (handful(*fit, "-o", tmp_path / name) for name in ("m", "whole"))
    assert (resumed.exit_code, whole.exit_code) == (0, 0)
    assert small_cohort.files_below(tmp_path / "m") == small_cohort.files_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "whole"]
    for name in small_cohort.files_below(tmp_path / "whole"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), STOPS)
def test_a_stopped_prediction_goes_on_to_the_same_bytes(
    stop: signal.Signals, code: int, many: Path, model: Path, tmp_path: Path, handful: Handful
):
    predict = ("predict", model, "-i", many)
    process = small_cohort.start(*predict, "-o", tmp_path / "p")
    small_cohort.wait_until(lambda: len(list((tmp_path / "p" / ".handful").glob("case-*.json"))) >= 3, process)
    os.kill(process.pid, stop)
    process.communicate()
    assert process.returncode == code
    assert len(list((tmp_path / "p").glob("*.nii.gz"))) < 40

    resumed = json.loads(handful(*predict, "-o", tmp_path / "p", "--json").stdout)
    assert 0 < len(resumed["skipped"]) < 40
    assert handful(*predict, "-o", tmp_path / "whole").exit_code == 0
    assert small_cohort.files_below(tmp_path / "p") == small_cohort.files_below(tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.nii.gz"):
        assert (tmp_path / "p" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_processes_on_one_output_folder_do_not_meet(many: Path, model: Path, tmp_path: Path, handful: Handful):
    process = small_cohort.start("predict", model, "-i", many, "-o", tmp_path)
    small_cohort.wait_until((tmp_path / ".handful" / "lock.holder").exists, process)
    os.kill(process.pid, signal.SIGSTOP)
    second = handful("predict", model, "-i", many, "-o", tmp_path)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
    assert second.exit_code == 1
    assert f"process {process.pid} on" in " ".join(second.stderr.split())
    assert process.returncode == 0


@pytest.mark.slow
def test_an_explained_error_comes_without_a_traceback(tmp_path: Path):
    process = small_cohort.start("doctor", "-i", tmp_path / "nowhere")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, "")
    assert "no such file or folder" in stderr
    assert "Traceback" not in stderr
