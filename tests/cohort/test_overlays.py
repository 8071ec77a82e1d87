from dataclasses import replace
from pathlib import Path

import numpy as np

from handful.cohort.overlays import write_overlays
from handful.data.cases import Cohort
from handful.data.files import read_label_map, write_label_map
from handful.data.volume import Geometry, LabelMap
from handful.evaluation.evaluate import Failure, evaluate_folders


def test_a_picture_is_written_of_each_case_that_has_all_and_did_not_fail(folder: Path, cohort: Cohort, tmp_path: Path):
    report = evaluate_folders(folder / "labels", folder / "labels", labels=cohort.labels)
    report = replace(report, failures=(Failure("case-0", "damaged"),))
    scans = replace(cohort, cases=cohort.cases[:3])
    result = write_overlays(report, scans, tmp_path, cohort.labels)
    assert (result.written, result.without_scan) == (("case-1", "case-2"), ("case-3",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case-1.png", "case-2.png"]


def test_label_maps_in_another_order_of_voxels_have_a_picture(folder: Path, cohort: Cohort, tmp_path: Path):
    (tmp_path / "predictions").mkdir()
    found = read_label_map(folder / "labels" / "case-0.nii.gz")
    affine = found.geometry.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (found.geometry.affine @ [found.geometry.shape[0] - 1, 0, 0, 1])[:3]
    turned = LabelMap(found.array[::-1], Geometry(found.geometry.shape, affine), found.labels)
    write_label_map(tmp_path / "predictions" / "case-0.nii.gz", turned)
    report = evaluate_folders(tmp_path / "predictions", folder / "labels", labels=cohort.labels).only(["case-0"])
    result = write_overlays(report, cohort, tmp_path / "pictures", cohort.labels)
    assert (result.written, result.failures) == (("case-0",), ())
