import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small_cohort
from handful.backbones.base import Backbone
from handful.backbones.catalog import load_backbone
from handful.cohort import predict as predicting
from handful.cohort.fit import fit_to_folder
from handful.cohort.predict import CohortResult, PredictConfig, predict_cohort, predict_file, support_among
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort, read_label_map, read_volume, write_label_map, write_volume
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import BusyError, CheckpointError, InputError, UnsupportedInput
from handful.jobs import scratch
from handful.methods.fate.method import Fate
from handful.methods.nearest_slice import NearestSlice

NAMES = ("case-0", "case-1", "case-2", "case-3")
FILES = [f"{name}.nii.gz" for name in NAMES]


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def run(model: Path, folder: Path, out: Path, **config: bool) -> CohortResult:
    return predict_cohort(model, read_cohort(folder).cases, out, PredictConfig(**config))


def visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_every_case_comes_out_under_its_own_name_on_its_own_grid(model: Path, cohort: Cohort, tmp_path: Path):
    result = predict_cohort(model, cohort.cases, tmp_path)
    assert (result.done, result.skipped, result.failures) == (NAMES, (), ())
    assert visible(tmp_path) == [*FILES, "run.json", "volumes.csv"]
    for case in cohort.cases:
        found, image = read_label_map(tmp_path / f"{case.name}.nii.gz").geometry, case.read_geometry()
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_large_scans_which_are_not_in_memory_give_the_same_labels(
    model: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
):
    case = replace(cohort.cases[0], image=tmp_path / f"scan{suffix}")
    write_volume(case.image, cohort.cases[0].read_image())
    small, large = tmp_path / "small", tmp_path / "large"
    predict_cohort(model, [case], small)
    monkeypatch.setattr(scratch, "LARGE", 1)
    predict_cohort(model, [case], large)
    name = f"{case.name}{suffix}"
    found, expected = read_volume(large / name), read_volume(small / name)
    np.testing.assert_array_equal(found.array, expected.array, strict=True)
    assert found.array.any()
    assert suffix == ".nrrd" or (large / name).read_bytes() == (small / name).read_bytes()  # zlib's bytes, not ITK's
    assert (large / "volumes.csv").read_bytes() == (small / "volumes.csv").read_bytes()


def test_a_case_that_fails_is_listed_and_the_others_are_done(model: Path, own: Path, tmp_path: Path):
    scan = own / "images" / "case-1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:3000])
    result = run(model, own, tmp_path / "out")
    assert result.done == ("case-0", "case-2", "case-3")
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["case"] == "case-1"
    assert "ends after" in failure["reason"]
    assert str(tmp_path) not in failure["reason"]
    assert visible(tmp_path / "out") == [
        "case-0.nii.gz",
        "case-2.nii.gz",
        "case-3.nii.gz",
        "failures.json",
        "run.json",
        "volumes.csv",
    ]


def test_a_repaired_case_is_segmented_and_no_longer_listed(model: Path, own: Path, folder: Path, tmp_path: Path):
    scan = own / "images" / "case-1.nii.gz"
    scan.write_bytes(b"")
    run(model, own, tmp_path / "out")
    shutil.copy(folder / "images" / "case-1.nii.gz", scan)
    result = run(model, own, tmp_path / "out")
    assert (result.done, result.skipped) == (("case-1",), ("case-0", "case-2", "case-3"))
    assert not (tmp_path / "out" / "failures.json").exists()


def test_what_is_done_is_not_done_again(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases, tmp_path)
    times = [(tmp_path / name).stat().st_mtime_ns for name in FILES]
    result = predict_cohort(model, cohort.cases, tmp_path)
    assert (result.done, result.skipped) == ((), NAMES)
    assert [(tmp_path / name).stat().st_mtime_ns for name in FILES] == times


def test_a_stopped_run_goes_on_to_the_bytes_of_an_undisturbed_one(model: Path, cohort: Cohort, tmp_path: Path):
    def stop(step: int, total: int, note: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_cohort(model, cohort.cases, tmp_path / "stopped", report=stop)
    assert sorted(path.name for path in (tmp_path / "stopped").glob("*.nii.gz")) == FILES[:2]
    resumed = predict_cohort(model, cohort.cases, tmp_path / "stopped")
    assert (resumed.skipped, resumed.done) == (NAMES[:2], NAMES[2:])
    predict_cohort(model, cohort.cases, tmp_path / "whole")
    assert small_cohort.files_below(tmp_path / "stopped") == small_cohort.files_below(tmp_path / "whole")
    for name in FILES:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_is_predicted_to_estimate_a_silent_job(
    model: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    estimated: list[int] = []
    monkeypatch.setattr(predicting, "estimate_prediction", lambda _, __, cases: estimated.append(cases))
    predict_cohort(model, cohort.cases, tmp_path / "silent")
    assert not estimated
    predict_cohort(model, cohort.cases, tmp_path / "loud", report=lambda *_: None)
    assert estimated == [len(cohort.cases)]


def test_a_changed_input_is_done_again_whatever_its_date(model: Path, own: Path, tmp_path: Path):
    run(model, own, tmp_path / "out")
    scan = own / "images" / "case-0.nii.gz"
    date = scan.stat().st_mtime_ns
    shutil.copy(own / "images" / "case-3.nii.gz", scan)
    os.utime(scan, ns=(date, date))
    assert run(model, own, tmp_path / "out").done == ("case-0",)
    assert (tmp_path / "out" / FILES[0]).read_bytes() == (tmp_path / "out" / FILES[3]).read_bytes()


def test_another_model_does_all_again(
    model: Path, cohort: Cohort, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    other = tmp_path / "other"
    fit_to_folder("nearest-slice", NearestSlice(similarity="embedding"), support, backbone, other)
    predict_cohort(model, cohort.cases, tmp_path / "out")
    assert predict_cohort(other, cohort.cases, tmp_path / "out").done == NAMES


def test_a_damaged_or_missing_output_is_done_again(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases, tmp_path)
    whole = [(tmp_path / name).read_bytes() for name in FILES]
    (tmp_path / FILES[0]).unlink()
    (tmp_path / FILES[2]).write_bytes(whole[2][:50])
    result = predict_cohort(model, cohort.cases, tmp_path)
    assert result.done == ("case-0", "case-2")
    assert [(tmp_path / name).read_bytes() for name in FILES] == whole


def test_an_output_corrected_by_hand_is_put_aside_not_lost(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases, tmp_path)
    (tmp_path / FILES[1]).write_bytes(b"an afternoon of work")
    predict_cohort(model, cohort.cases, tmp_path)
    (kept,) = (tmp_path / ".handful" / "changed").iterdir()
    assert kept.read_bytes() == b"an afternoon of work"


def test_a_foreign_file_is_replaced_on_request_only(model: Path, cohort: Cohort, tmp_path: Path):
    (tmp_path / FILES[0]).write_bytes(b"drawn by hand")
    result = predict_cohort(model, cohort.cases, tmp_path)
    assert [one.case for one in result.failures] == ["case-0"]
    assert (tmp_path / FILES[0]).read_bytes() == b"drawn by hand"
    assert predict_cohort(model, cohort.cases, tmp_path, PredictConfig(overwrite=True)).done == NAMES


def test_temporary_files_of_a_killed_run_go_and_those_of_others_stay(model: Path, cohort: Cohort, tmp_path: Path):
    (tmp_path / ".handful").mkdir()
    mark = ".0123456789ab.tmp."
    ours = [f"{mark}case-0.nii.gz", f".handful/{mark}case-1.json", f"{mark}run.json"]
    theirs = [".tmp.case-0.nii.gz", f"{mark}somebody.nii.gz"]
    for name in (*ours, *theirs):
        (tmp_path / name).touch()
    predict_cohort(model, cohort.cases, tmp_path)
    left = small_cohort.files_below(tmp_path)
    assert not set(ours) & set(left)
    assert set(theirs) <= set(left)


def test_notes_of_a_run_hold_neither_paths_nor_names(model: Path, cohort: Cohort, folder: Path, tmp_path: Path):
    predict_cohort(model, cohort.cases, tmp_path)
    text = (tmp_path / "run.json").read_text()
    note = json.loads(text)
    assert note["cases"] == {"done": 4, "skipped": 0, "failed": 0}
    assert (note["method"], note["device"]) == ("nearest-slice", "cpu")
    assert not any(word in text for word in ("case-0", str(folder), str(model), str(tmp_path)))


def test_cases_that_the_model_was_fitted_on_are_known_by_their_content(model: Path, own: Path, tmp_path: Path):
    (own / "images" / "case-0.nii.gz").rename(own / "images" / "renamed.nii.gz")
    (own / "labels" / "case-0.nii.gz").unlink()
    run(model, own, tmp_path / "out")
    assert support_among(tmp_path / "out") == {"renamed", "case-1"}


def test_previews_lie_apart_so_that_the_folder_stays_one_of_label_maps(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases[:2], tmp_path, PredictConfig(preview=True))
    assert visible(tmp_path / "previews") == ["case-0.png", "case-1.png"]
    assert len(read_cohort(tmp_path).cases) == 2


def test_a_case_done_without_a_preview_is_done_again_with_preview(model: Path, cohort: Cohort, tmp_path: Path):
    predict_cohort(model, cohort.cases[:2], tmp_path)
    with_previews = PredictConfig(preview=True)
    assert predict_cohort(model, cohort.cases[:2], tmp_path, with_previews).done == ("case-0", "case-1")
    (tmp_path / "previews" / "case-1.png").unlink()
    result = predict_cohort(model, cohort.cases[:2], tmp_path, with_previews)
    assert (result.done, result.skipped) == (("case-1",), ("case-0",))


def test_no_preview_of_an_earlier_prediction_stays(model: Path, own: Path, tmp_path: Path):
    run(model, own, tmp_path / "out", preview=True)
    shutil.copy(own / "images" / "case-3.nii.gz", own / "images" / "case-0.nii.gz")
    run(model, own, tmp_path / "out")
    assert visible(tmp_path / "out" / "previews") == ["case-1.png", "case-2.png", "case-3.png"]


def test_a_picture_that_handful_did_not_write_stays_without_preview(model: Path, cohort: Cohort, tmp_path: Path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "case-0.png").write_bytes(b"a holiday")
    predict_cohort(model, cohort.cases[:1], tmp_path)
    assert (tmp_path / "previews" / "case-0.png").read_bytes() == b"a holiday"


def test_a_fate_preview_is_drawn_from_the_fitted_folder_alone(cohort: Cohort, support: SupportSet, tmp_path: Path):
    fit_to_folder("fate", Fate(), support, load_backbone("handful-tiny"), tmp_path / "fate")
    fit_to_folder("fate", Fate(top_k=2), support, load_backbone("handful-tiny"), tmp_path / "narrow")
    sizes = []
    for name in ("fate", "narrow"):
        result = predict_cohort(
            tmp_path / name, cohort.cases[2:3], tmp_path / f"{name}-out", PredictConfig(preview=True)
        )
        assert result.done == ("case-2",)
        assert small_cohort.files_below(tmp_path / f"{name}-out" / "previews") == ["case-2.png"]
        with Image.open(tmp_path / f"{name}-out" / "previews" / "case-2.png") as picture:
            sizes.append(picture.width)
    assert sizes[0] - sizes[1] == pytest.approx(3 * 1.85 * 150, abs=3)


def test_a_folder_in_use_is_refused(model: Path, cohort: Cohort, tmp_path: Path):
    from handful.jobs.lock import locked

    with locked(tmp_path / ".handful"), pytest.raises(BusyError, match=str(os.getpid())):
        predict_cohort(model, cohort.cases, tmp_path)


def test_a_folder_without_a_model_is_refused_before_anything_is_written(cohort: Cohort, tmp_path: Path):
    with pytest.raises(CheckpointError, match="not a fitted model"):
        predict_cohort(tmp_path / "none", cohort.cases, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_case_in_memory_gets_a_nifti_and_no_name_leads_out_of_the_folder(model: Path, cohort: Cohort, tmp_path: Path):
    volume = cohort.cases[2].read_image()
    result = predict_cohort(model, [Case("mine", volume), Case("../theirs", volume)], tmp_path / "out")
    assert (result.done, [one.case for one in result.failures]) == (("mine",), ["../theirs"])
    assert (tmp_path / "out" / "mine.nii.gz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_embeddings_are_stored_in_the_cache_folder(
    cohort: Cohort, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    fit_to_folder("nearest-slice", NearestSlice(similarity="embedding"), support, backbone, tmp_path / "m")
    config = PredictConfig(cache=tmp_path / "cache")
    predict_cohort(tmp_path / "m", cohort.cases, tmp_path / "out", config)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 24


@pytest.fixture(scope="module")
def picture_model(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    geometry = Geometry((40, 30, 1), np.eye(4), unit="pixel")
    image, labels = np.zeros((1, 40, 30, 1), np.uint8), np.zeros((40, 30, 1), np.int16)
    image[0, 10:20, 5:25] = 200
    labels[10:20, 5:25] = 1
    known = Labels((1,), ("patch",))
    case = Case("picture", Volume(image, geometry), LabelMap(labels, geometry, known), known)
    out = tmp_path_factory.mktemp("models") / "pictures"
    fit_to_folder("nearest-slice", NearestSlice(), SupportSet((case,), known), backbone, out)
    return out


def test_jpeg_in_gives_png_out(picture_model: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "in" / "a.jpg")
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)).save(tmp_path / "in" / "b.png")
    assert run(picture_model, tmp_path / "in", tmp_path / "out").done == ("a", "b")
    assert visible(tmp_path / "out") == ["a.png", "b.png", "run.json", "volumes.csv"]
    with pytest.raises(UnsupportedInput, match=r"x\.png"):
        predict_file(picture_model, tmp_path / "in" / "a.jpg", tmp_path / "x.jpg")


def test_one_file_in_gives_one_file_out_and_nothing_else(model: Path, folder: Path, tmp_path: Path):
    predict_file(model, folder / "images" / "case-2.nii.gz", tmp_path / "new" / "a.nii.gz")
    predict_cohort(model, read_cohort(folder).cases, tmp_path / "all")
    assert small_cohort.files_below(tmp_path / "new") == ["a.nii.gz"]
    alone, among = (read_label_map(path).array for path in (tmp_path / "new" / "a.nii.gz", tmp_path / "all" / FILES[2]))
    np.testing.assert_array_equal(alone, among)


def test_an_existing_file_is_replaced_on_request_only(model: Path, folder: Path, tmp_path: Path):
    image, out = folder / "images" / "case-2.nii.gz", tmp_path / "a.nii.gz"
    out.write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match="exists"):
        predict_file(model, image, out)
    predict_file(model, image, out, PredictConfig(overwrite=True))
    assert out.stat().st_size > 100


def test_other_suffixes_are_kept(model: Path, cohort: Cohort, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for suffix in (".nrrd", ".mha"):
        write_volume(tmp_path / "in" / f"as{suffix[1:]}{suffix}", cohort.cases[2].read_image())
    run(model, tmp_path / "in", tmp_path / "out")
    assert visible(tmp_path / "out") == ["asmha.mha", "asnrrd.nrrd", "run.json", "volumes.csv"]


def test_nnunet_images_give_label_maps_named_after_the_case(model: Path, cohort: Cohort, tmp_path: Path):
    raw = tmp_path / "Dataset001_Phantom"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    write_volume(raw / "imagesTr" / "p1_0000.nii.gz", cohort.cases[2].read_image())
    reference = cohort.cases[2].read_reference()
    assert reference is not None
    write_label_map(raw / "labelsTr" / "p1.nii.gz", reference)
    run(model, raw, tmp_path / "out")
    assert visible(tmp_path / "out") == ["p1.nii.gz", "run.json", "volumes.csv"]


def test_volumes_of_all_cases_are_listed_also_after_a_second_run(model: Path, own: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(model, own, out)
    first = (out / "volumes.csv").read_text()
    assert first.count("\n") == 1 + 4 * 2
    shutil.copy(own / "images" / "case-0.nii.gz", own / "images" / "case-9.nii.gz")
    assert run(model, own, out).done == ("case-9",)
    assert (out / "volumes.csv").read_text().startswith(first)
    label_map = read_label_map(out / "case-9.nii.gz")
    voxel = abs(np.linalg.det(label_map.geometry.affine[:3, :3])) / 1000
    line = f"case-9,1,ball,{(label_map.array == 1).sum()},{(label_map.array == 1).sum() * voxel:.6g},ml"
    assert line in (out / "volumes.csv").read_text().splitlines()


def test_probabilities_are_written_for_each_label(model: Path, own: Path, tmp_path: Path):
    assert run(model, own, tmp_path / "out").done == NAMES
    assert run(model, own, tmp_path / "out", probabilities=True).done == NAMES
    assert run(model, own, tmp_path / "out", probabilities=True).skipped == NAMES
    files = sorted(path.name for path in (tmp_path / "out" / "probabilities").iterdir())
    assert files == [f"{name}_label{value}.nii.gz" for name in NAMES for value in (1, 3)]
    probability = read_volume(tmp_path / "out" / "probabilities" / "case-2_label3.nii.gz").array[0]
    assert ((probability > 0.5) == (read_label_map(tmp_path / "out" / "case-2.nii.gz").array == 3)).all()


def test_no_probabilities_of_another_model_stay(
    model: Path, cohort: Cohort, support: SupportSet, backbone: Backbone, tmp_path: Path
):
    other, out = tmp_path / "other", tmp_path / "out"
    fit_to_folder("nearest-slice", NearestSlice(similarity="embedding"), support, backbone, other)
    cases, with_all = cohort.cases[:1], PredictConfig(probabilities=True)
    predict_cohort(other, cases, tmp_path / "expected", with_all)
    predict_cohort(model, cases, out, with_all)
    predict_cohort(other, cases, out)
    assert not list((out / "probabilities").iterdir())
    assert predict_cohort(other, cases, out, with_all).done == NAMES[:1]
    files = [f"probabilities/case-0_label{value}.nii.gz" for value in (1, 3)]
    assert [(out / file).read_bytes() for file in files] == [
        (tmp_path / "expected" / file).read_bytes() for file in files
    ]


def test_scans_unlike_those_of_the_model_are_listed(model: Path, own: Path, tmp_path: Path):
    image = read_volume(own / "images" / "case-2.nii.gz")
    affine = image.geometry.affine.copy()
    affine[:3, :3] *= 10
    write_volume(own / "images" / "case-2.nii.gz", Volume(image.array, Geometry(image.geometry.shape, affine)))
    notes: list[str] = []
    cases = read_cohort(own, images_only=True).cases
    result = predict_cohort(model, cases, tmp_path / "out", report=lambda step, total, note: notes.append(note))
    assert {warning.case for warning in result.warnings} == {"case-2"}
    assert any("case-2: the model was fitted on axial slices with pixels of 0.9 to 1.1 mm" in n for n in notes)
    listed = json.loads((tmp_path / "out" / "warnings.json").read_text())
    assert [entry["case"] for entry in listed] == ["case-2", "case-2"]
    again = predict_cohort(model, cases, tmp_path / "out")
    assert again.warnings == result.warnings
    assert predict_file(model, own / "images" / "case-2.nii.gz", tmp_path / "x.nii.gz").warnings != ()


def test_a_ct_model_that_finds_nothing_anywhere_says_so():
    found = CohortResult(("a",), ("b",), (), empty=("a", "b"), made_for_ct=True)
    assert found.nothing_found
    assert not CohortResult(("a",), ("b",), (), empty=("b",), made_for_ct=True).nothing_found
    assert not CohortResult(("a",), (), (), empty=("a",)).nothing_found
