"""The review of predictions of a model that holds no names: its labelled cases are found by their voxels."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import predict_cohort
from handful.cohort.review import ReviewConfig, review_folder
from handful.data.cases import Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.errors import InputError
from handful.methods.catalog import build_method

PLAIN = ReviewConfig(reverse="none", confidence=False)


@pytest.fixture(scope="module")
def anonymous(support: SupportSet, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of case-0 and case-1."""
    settings = {"encoder": "none", "channels": 4, "side": 32, "roi_margin": "none", "train.iterations": 1, "batch": 2}
    out = tmp_path_factory.mktemp("anonymous") / "model"
    config = FitConfig(anonymous=True, leave_out=False)
    fit_to_folder("unet", build_method("unet", settings), support, backbone, out, config)
    return out


def test_other_labelled_cases_do_not_stand_in_for_those_of_the_model(anonymous: Path, cohort: Cohort, tmp_path: Path):
    others = replace(cohort, cases=cohort.cases[2:])
    with pytest.raises(InputError, match=r"none of the labelled cases of the model 'model' \(fitted on 2 scans"):
        review_folder(tmp_path, anonymous, others, tmp_path / "review", config=PLAIN)


def test_a_labelled_scan_that_cannot_be_read_is_listed_and_the_others_are_used(
    anonymous: Path, folder: Path, backbone: Backbone, tmp_path: Path
):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    scan = own / "images" / "case-3.nii.gz"
    scan.write_bytes(scan.read_bytes()[:1000])
    cohort = read_cohort(own)
    predict_cohort(anonymous, cohort.cases[:3], tmp_path / "predictions")
    config = replace(PLAIN, backbone=backbone.name)  # an anonymous model does not hold its folder
    result = review_folder(tmp_path / "predictions", anonymous, cohort, tmp_path / "review", config=config)
    assert result.support == ("case-0", "case-1")
    assert [case.case for case in result.cases] == ["case-2"]
    assert [failure.case for failure in result.failures] == ["case-3"]
