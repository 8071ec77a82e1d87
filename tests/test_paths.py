"""Paths that no file can have, or that lead nowhere: an error with the remedy from every function and command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import handful as h
import small_cohort
from handful.cli import app
from handful.cohort.predict import predict_file
from handful.data.boxes import read_boxes
from handful.data.dicom.terms import read_terms
from handful.data.formats import read_geometry, read_notes
from handful.data.volume import Labels
from handful.errors import HandfulError
from handful.experiments.plan import read_plan
from phantoms import phantom

WAYS_OUT = ("shorten it", "remove", "check the", "get access", "save its content", "name another")
READERS: dict[str, Callable[[Path], Any]] = {
    "read_volume": h.read_volume,
    "read_label_map": h.read_label_map,
    "read_geometry": read_geometry,
    "read_notes": read_notes,
    "read_cohort": h.read_cohort,
    "load": h.load,
    "load_backbone": h.load_backbone,
    "read_results": lambda path: h.read_results(path.with_name(f"{path.name}.csv")),
    "read_boxes": lambda path: read_boxes(path, (), Labels((1,), ("ball",))),
    "read_terms": read_terms,
    "read_plan": read_plan,
    "evaluate_folders": lambda path: h.evaluate_folders(path, path),
    "predict_cohort": lambda path: h.predict_cohort(path, [], path),
}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "write_label_map": lambda path: h.write_label_map(path, phantom(0)[1]),
    "predict_file": lambda path: predict_file(path, path, path),
}
COMMANDS = {
    "doctor": "doctor -i BAD",
    "fit -i": "fit nearest-slice -i BAD -o OUT",
    "fit -o": "fit nearest-slice -i COHORT -o BAD",
    "fit --unlabelled": "fit self-training -i COHORT --unlabelled BAD -o OUT",
    "fit --config": "fit unet -i COHORT --config BAD -o OUT",
    "fit --boxes": "fit self-training -i COHORT --boxes BAD -o OUT",
    "fit --backbone": "fit nearest-slice -i COHORT --backbone BAD -o OUT",
    "predict MODEL": "predict BAD -i COHORT -o OUT",
    "predict --terms": "predict OUT -i COHORT -o OUT --terms BAD",
    "evaluate -p": "evaluate -p BAD -r COHORT",
    "evaluate -r": "evaluate -p COHORT/labels -r BAD",
    "evaluate --csv": "evaluate -p COHORT/labels -r COHORT --csv BAD",
    "review -m": "review COHORT/labels -m BAD -i COHORT -o OUT",
    "suggest": "suggest -i BAD -o OUT",
    "export": "export nnunet -i COHORT -o BAD",
    "experiment run": "experiment run BAD -o OUT",
    "experiment report": "experiment report BAD",
    "model inspect": "model inspect BAD",
    "serve": "serve BAD",
    "annotate": "annotate BAD -i BAD --reference BAD -o OUT",
    "pretrain": "pretrain -o BAD --iterations 1",
    "demo": "demo -o BAD",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths that are wrong, by what is wrong."""
    root = tmp_path_factory.mktemp("paths")
    (root / "file.nii.gz").touch()
    (root / "loop").symlink_to(root / "pool")
    (root / "pool").symlink_to(root / "loop")
    os.mkfifo(root / "pipe.nii.gz")
    os.mkfifo(root / "pipe")
    (root / "zero.nii.gz").symlink_to("/dev/zero")
    return {
        "a long name": root / f"{'a' * 300}.nii.gz",
        "a long name in a folder that is not there": root / "none" / f"{'a' * 300}",
        "a long path": root.joinpath(*["d" * 200] * 25, "a.nii.gz"),
        "many letters, and more bytes": root / f"{'ü' * 130}.nii.gz",
        "through a file": root / "file.nii.gz" / "b.nii.gz",
        "a loop of links": root / "loop",
        "through a loop": root / "loop" / "c.nii.gz",
    }


@pytest.mark.parametrize("name", [*READERS, *WRITERS])
def test_functions_refuse_impossible_paths_with_the_remedy(name: str, bad: dict[str, Path]):
    for path in [*bad.values(), Path("a\0b.nii.gz")]:
        with pytest.raises(HandfulError) as caught:
            (READERS | WRITERS)[name](path)
        assert any(way in str(caught.value) for way in WAYS_OUT), str(caught.value)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_impossible_paths_with_the_remedy(name: str, bad: dict[str, Path], small: Path, tmp_path: Path):
    for path in bad.values():
        words = {"BAD": path, "COHORT": small, "COHORT/labels": small / "labels", "OUT": tmp_path / "out"}
        result = CliRunner().invoke(app, [str(words.get(word, word)) for word in COMMANDS[name].split()])
        assert result.exit_code in (1, 2), (path, result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert any(way in result.output.replace("\n", " ") for way in WAYS_OUT), (str(path)[:60], result.output)


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_not_waited_for(name: str, bad: dict[str, Path]):
    root = bad["a loop of links"].parent
    for path in (root / "pipe.nii.gz", root / "pipe", root / "zero.nii.gz"):
        with pytest.raises(HandfulError):
            READERS[name](path)


def test_a_pipe_or_a_device_is_never_replaced_by_an_output(bad: dict[str, Path]):
    pipe = bad["a loop of links"].with_name("pipe.nii.gz")
    for path in (pipe, pipe.with_name("zero.nii.gz")):
        with pytest.raises(HandfulError, match="never replaced"):
            h.write_label_map(path, phantom(0)[1])
    assert pipe.is_fifo()
    assert pipe.with_name("zero.nii.gz").is_symlink()


def test_a_pipe_in_a_cohort_is_left_out(small: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for scan in (small / "images").iterdir():
        (tmp_path / "images" / scan.name).symlink_to(scan)
    for name in ("pipe", "pipe.nii.gz", "pipe.dcm"):
        os.mkfifo(tmp_path / "images" / name)
        os.mkfifo(tmp_path / name)
    cohort = h.read_cohort(tmp_path)
    assert {case.name for case in cohort.cases} == {"case-0"}
    assert {"images/pipe", "images/pipe.nii.gz", "images/pipe.dcm"} <= {one.file for one in cohort.left_out}


def test_a_list_with_impossible_paths_leaves_those_out(small: Path, tmp_path: Path):
    scan = next((small / "images").iterdir())
    (tmp_path / scan.name).symlink_to(scan)
    names = [scan.name, f"{'a' * 300}.nii.gz", "b\\u0000c.nii.gz", f"{scan.name}/d.nii.gz"]
    entries = ", ".join(f'{{"image": "{name}"}}' for name in names)
    (tmp_path / "dataset.json").write_text(f'{{"training": [{entries}]}}')
    cohort = h.read_cohort(tmp_path, images_only=True)
    assert [case.name for case in cohort.cases] == ["case-0"]
    assert len(cohort.left_out) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_is_refused_with_the_remedy(small: Path, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o700)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.seteuid(65534)
            for read in (h.read_volume, h.read_cohort, h.load):
                with pytest.raises(HandfulError, match=r"get access"):
                    read(tmp_path / "closed" / "a.nii.gz")  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort.write_cohort(tmp_path_factory.mktemp("small") / "cohort", cases=1)
