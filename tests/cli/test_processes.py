"""Commands as processes of their own: stopped, killed, two at once; what comes out is what an undisturbed one makes."""

import json
import os
import signal
from pathlib import Path

import pytest

import small_cohort
from small_cohort import FEW_SHOT, NEVER_SAVED, Gate, Handful

STOPS = [
    pytest.param(signal.SIGINT, 130, id="ctrl-c"),
    pytest.param(signal.SIGTERM, 143, id="sigterm"),
    pytest.param(signal.SIGKILL, -signal.SIGKILL, id="kill-9"),
]


pytestmark = pytest.mark.process


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate("case-2", tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def fit(cohort: Path, backbone: Path) -> tuple[str | Path, ...]:
    return ("fit", "few-shot-prompts", "-i", cohort, "--backbone", backbone, "--no-cache", *FEW_SHOT)


@pytest.fixture(scope="module")
def undisturbed_fit(fit: tuple[str | Path, ...], handful: Handful, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "m"
    assert handful(*fit, "-o", out).exit_code == 0
    return out


@pytest.fixture(scope="module")
def undisturbed_prediction(
    cohort: Path, model: Path, handful: Handful, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "p"
    assert handful("predict", model, "-i", cohort, "-o", out).exit_code == 0
    return out


@pytest.mark.parametrize(("stop", "code"), STOPS)
def test_a_stopped_fit_goes_on_to_the_same_bytes(
    stop: signal.Signals,
    code: int,
    fit: tuple[str | Path, ...],
    undisturbed_fit: Path,
    tmp_path: Path,
    handful: Handful,
):
    process = small_cohort.start(*fit, "-o", tmp_path / "m", "--save-every", "0", before=NEVER_SAVED)
    small_cohort.wait_until(lambda: any((tmp_path / "m.partial").rglob("train.safetensors")), process)
    os.kill(process.pid, stop)
    process.communicate()
    assert process.returncode == code
    assert not (tmp_path / "m").exists()

    assert handful(*fit, "-o", tmp_path / "m").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert small_cohort.files_below(tmp_path / "m") == small_cohort.files_below(undisturbed_fit)
    for name in small_cohort.files_below(undisturbed_fit):
        assert (tmp_path / "m" / name).read_bytes() == (undisturbed_fit / name).read_bytes()


@pytest.mark.parametrize(("stop", "code"), STOPS)
def test_a_stopped_prediction_goes_on_to_the_same_bytes(
    stop: signal.Signals,
    code: int,
    cohort: Path,
    model: Path,
    gate: Gate,
    undisturbed_prediction: Path,
    tmp_path: Path,
    handful: Handful,
):
    predict = ("predict", model, "-i", cohort, "-o", tmp_path / "p")
    process = small_cohort.start(*predict, before=gate.code)
    small_cohort.wait_until(gate.is_reached, process)
    os.kill(process.pid, stop)
    process.communicate()
    assert process.returncode == code

    resumed = json.loads(handful(*predict, "--json").stdout)
    assert (resumed["skipped"], resumed["done"]) == (["case-0", "case-1"], ["case-2", "case-3"])
    assert small_cohort.files_below(tmp_path / "p") == small_cohort.files_below(undisturbed_prediction)
    for path in undisturbed_prediction.glob("*.nii.gz"):
        assert (tmp_path / "p" / path.name).read_bytes() == path.read_bytes()


def test_two_processes_on_one_output_folder_do_not_meet(
    cohort: Path, model: Path, gate: Gate, tmp_path: Path, handful: Handful
):
    predict = ("predict", model, "-i", cohort, "-o", tmp_path)
    process = small_cohort.start(*predict, before=gate.code)
    small_cohort.wait_until(gate.is_reached, process)
    second = handful(*predict)
    gate.open()
    process.communicate()
    assert second.exit_code == 1
    assert f"process {process.pid} on" in " ".join(second.stderr.split())
    assert process.returncode == 0


def test_an_explained_error_comes_without_a_traceback(tmp_path: Path):
    process = small_cohort.start("doctor", "-i", tmp_path / "nowhere")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, "")
    assert "no such file or folder" in stderr
    assert "Traceback" not in stderr
