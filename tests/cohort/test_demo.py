from pathlib import Path

import pytest

from handful.cohort.demo import claim_folder, write_phantom_cohort
from handful.data.checks import check_case
from handful.data.files import read_cohort
from handful.errors import InputError


def test_the_phantom_cohort_reads_back_without_findings(tmp_path: Path):
    cohort = read_cohort(write_phantom_cohort(tmp_path / "p", cases=2, seed=1))
    assert len(cohort.cases) == 2
    assert cohort.labels is not None
    assert "liver" in cohort.labels.names
    assert [check_case(case) for case in cohort.cases] == [[], []]


def test_one_seed_writes_one_cohort(tmp_path: Path):
    a, b, c = (write_phantom_cohort(tmp_path / name, 1, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    file = Path("images") / "phantom_00.nii.gz"
    assert (a / file).read_bytes() == (b / file).read_bytes() != (c / file).read_bytes()


def test_a_folder_with_files_that_no_demo_wrote_is_left_alone(tmp_path: Path):
    (tmp_path / "cohort").mkdir()
    with pytest.raises(InputError, match="contains cohort, which no demo has written"):
        claim_folder(tmp_path, ["cohort", "model"])
    claim_folder(tmp_path / "demo", ["cohort", "model"])
    (tmp_path / "demo" / "model").mkdir()
    claim_folder(tmp_path / "demo", ["cohort", "model"])
