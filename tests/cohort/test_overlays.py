from dataclasses import replace
from pathlib import Path

from handful.cohort.overlays import write_overlays
from handful.data.cases import Cohort
from handful.evaluation.evaluate import Failure, evaluate_folders


def test_a_picture_is_written_of_each_case_that_has_all_and_did_not_fail(folder: Path, cohort: Cohort, tmp_path: Path):
    report = evaluate_folders(folder / "labels", folder / "labels", labels=cohort.labels)
    report = replace(report, failures=(Failure("case-0", "damaged"),))
    scans = replace(cohort, cases=cohort.cases[:3])
    result = write_overlays(report, scans, tmp_path, cohort.labels)
    assert (result.written, result.without_scan) == (("case-1", "case-2"), ("case-3",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case-1.png", "case-2.png"]
