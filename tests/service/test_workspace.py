"""Which labelled cases a service learns from, and the reasons why others are left out."""

from pathlib import Path

import numpy as np
import pytest

from handful.cohort.choice import choose_support
from handful.data.cases import Case
from handful.data.files import write_label_map
from handful.data.volume import LabelMap, Labels
from handful.errors import DamagedFile, InputError
from handful.evaluation.evaluate import Failure
from handful.service.jobs import Job
from handful.service.work import Worker
from handful.service.workspace import Workspace
from phantoms import LABELS, phantom

NAMES = """{"labels": {"background": 0, "ball": 1, "egg": 3, "ring": 5, "never used": 7}}"""


@pytest.fixture
def labelled(cohort: Path) -> Path:
    """Three labelled scans; only the last one shows the label 5, and none shows 7."""
    (cohort / "dataset.json").write_text(NAMES)
    (cohort / "labels").mkdir()
    for seed in range(3):
        truth = phantom(seed)[1]
        array = truth.array.copy()
        if seed == 2:
            array[0] = 5
        known = Labels.of({**LABELS.as_dict(), 5: "ring"})
        write_label_map(cohort / "labels" / f"scan_{seed}.nii.gz", LabelMap(array, truth.geometry, known))
    return cohort


def test_all_labelled_cases_and_the_labels_that_they_show_are_learned_from(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
):
    read, read_image = list[str](), Case.read_image
    monkeypatch.setattr(Case, "read_image", lambda case: (read.append(case.name), read_image(case))[1])
    space, failures = Workspace(labelled), list[Failure]()
    support = space.support(failures)
    assert (read, failures) == (["scan_0", "scan_1", "scan_2"], [])
    assert support.labels.as_dict() == {1: "ball", 3: "egg", 5: "ring"}
    chosen = choose_support(space.cohort(), labels=["1", "3", "5"])
    assert [one.voxels for one in support.facts] == [one.voxels for one in chosen.facts]
    for name in ("limits", "in_largest_piece", "around", "extent", "labels_sha256"):
        assert [getattr(one, name) for one in support.facts] == [getattr(one, name) for one in chosen.facts], name


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_damaged_labelled_scan_is_left_out_with_its_reason(labelled: Path, folder: str):
    (labelled / folder / "scan_2.nii.gz").write_bytes(b"cut off")
    failures = list[Failure]()
    support = Workspace(labelled).support(failures)
    assert [case.name for case in support.cases] == ["scan_0", "scan_1"]
    assert support.labels.as_dict() == {1: "ball", 3: "egg"}  # nothing else shows the third
    assert [one.case for one in failures] == ["scan_2"]
    assert str(labelled) not in failures[0].reason
    assert Workspace(labelled).support().cases == support.cases


def test_learning_lists_a_damaged_labelled_scan(labelled: Path):
    (labelled / "images" / "scan_2.nii.gz").write_bytes(b"cut off")
    file = labelled / "job.json"
    Job(number=1, kind="learn", options={"method": "nearest-slice"}).write(file)
    Worker(labelled, file, "handful-tiny", "cpu").run()
    job = Job.read(file)
    assert (job.state, job.error) == ("done", None)
    assert job.result is not None
    assert [one["case"] for one in job.result["failures"]] == ["scan_2"]
    assert (job.result["labelled"], job.result["not_learned"]) == (2, ["never used", "ring"])


def test_without_a_usable_labelled_case_the_reason_is_told(labelled: Path):
    for seed in range(3):
        (labelled / "images" / f"scan_{seed}.nii.gz").write_bytes(b"cut off")
    with pytest.raises(DamagedFile):
        Workspace(labelled).support()
    for file in (labelled / "labels").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no labelled case; finish a slice"):
        Workspace(labelled).support()


def test_labels_of_background_only_name_the_labels_that_are_missing(cohort: Path):
    (cohort / "dataset.json").write_text(NAMES)
    (cohort / "labels").mkdir()
    geometry = phantom(0)[0].geometry
    nothing = LabelMap(np.zeros(geometry.shape, np.int16), geometry, LABELS)
    write_label_map(cohort / "labels" / "scan_0.nii.gz", nothing)
    with pytest.raises(InputError, match="no support slice holds the label 'ball'"):
        Workspace(cohort).support()
