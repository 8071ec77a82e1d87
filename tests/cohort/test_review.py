"""The review of predictions: cases that the model was fitted on are found by their voxels."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.cohort.choice import choose_support
from handful.cohort.fit import FitConfig, fit_to_folder
from handful.cohort.predict import predict_cohort
from handful.cohort.review import CASES, FITTED_ON, ReviewConfig, review_folder
from handful.data.cases import Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.errors import InputError, SettingsError
from handful.jobs.notes import NOTES
from handful.methods.catalog import build_method
from handful.methods.self_training.method import SelfTraining
from handful.reports.review_page import PICTURES

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


def test_cases_are_left_out_by_their_voxels_and_not_by_their_names(
    model: Path, cohort: Cohort, folder: Path, tmp_path: Path
):
    (tmp_path / "other" / "images").mkdir(parents=True)
    for source, name in (("case-2", "case-0"), ("case-0", "renamed"), ("case-1", "case-1")):
        image = folder / "images" / f"{source}.nii.gz"
        shutil.copy(image, tmp_path / "other" / "images" / f"{name}.nii.gz")
    other = read_cohort(tmp_path / "other")
    predict_cohort(model, other.cases, tmp_path / "predictions")
    told: list[str] = []
    result = review_folder(
        tmp_path / "predictions", model, other, tmp_path / "review", cohort, PLAIN, lambda *step: told.append(step[2])
    )
    assert [case.case for case in result.cases] == ["case-0"]
    assert result.failures == ()
    assert f"{FITTED_ON}: case-1" in told
    assert f"{FITTED_ON}: renamed" in told
    assert result.fitted_on == ("case-1", "renamed")


def test_temporary_files_of_killed_workers_are_removed(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases[2:3], tmp_path / "predictions")
    review, few = tmp_path / "review", replace(cohort, cases=cohort.cases[2:3])
    left = [
        review / NOTES / CASES / ".0123456789ab.tmp.case-2.json",
        review / PICTURES / ".0123456789ab.tmp.case-2.png",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    review_folder(tmp_path / "predictions", model, few, review, cohort, PLAIN)
    assert not any(path.exists() for path in left)
    assert (review / PICTURES / "case-2.png").exists()


def test_a_calibration_refits_with_the_scans_without_labels(
    cohort: Cohort, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"encoder": "none", "channels": 4, "side": 32, "roi_margin": "none", "initial": "none", "batch": 2}
    method = build_method("self-training", settings | {"train.iterations": 1})
    support = choose_support(cohort, ["case-0", "case-1", "case-2"])
    learning = replace(support, unlabelled=UnlabelledScans.of(cohort.cases[3:]))
    fit_to_folder("self-training", method, learning, backbone, tmp_path / "m", FitConfig(leave_out=False))
    predict_cohort(tmp_path / "m", cohort.cases[3:], tmp_path / "p")
    config = replace(PLAIN, calibrate=True)

    labelled = replace(cohort, cases=cohort.cases[:3])
    new = replace(cohort, cases=(replace(cohort.cases[3], name="new"),))
    (tmp_path / "q").mkdir()
    shutil.copy(tmp_path / "p" / "case-3.nii.gz", tmp_path / "q" / "new.nii.gz")
    with pytest.raises(SettingsError, match=r"1 scan without labels, but 1 of 1 cannot be read .*--no-calibrate"):
        review_folder(tmp_path / "q", tmp_path / "m", new, tmp_path / "r", labelled, config)

    learned_from: list[tuple[str, ...]] = []
    fit = SelfTraining.fit

    def recorded(self: SelfTraining, support: SupportSet, *rest: object) -> object:
        learned_from.append(tuple(case.name for case in support.unlabelled.cases))
        return fit(self, support, *rest)

    monkeypatch.setattr(SelfTraining, "fit", recorded)
    review_folder(tmp_path / "p", tmp_path / "m", cohort, tmp_path / "r", config=config)
    assert learned_from == [("case-3",)] * 3
