"""nnU-Net's raw data set: its layout, its values, and the way back."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import small_cohort
from handful.cohort.predict import support_among
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort, read_label_map, write_label_map
from handful.data.nnunet import NnunetDataset, export_nnunet, import_nnunet
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, Labels
from handful.errors import DamagedFile, InputError, LabelError, SettingsError, UnsupportedInput
from phantoms import LABELS, phantom, phantom_case, support_set


def partly(case: Case) -> Case:
    """The case with slices 1 and 2 (along j) labelled, and nobody having looked at the rest."""
    reference = case.read_reference()
    array = np.full_like(reference.array, IGNORE)
    array[:, 1:3] = reference.array[:, 1:3]
    return replace(case, reference=replace(reference, array=array))


def said(dataset: NnunetDataset) -> dict[str, object]:
    content: dict[str, object] = json.loads((dataset.folder / "dataset.json").read_text())
    return content


@pytest.fixture
def predicted(cohort: Cohort, tmp_path: Path) -> tuple[NnunetDataset, Path]:
    """An exported data set of two cases, and what a perfect nnU-Net would predict of the other two."""
    cases = tuple(cohort.cases[:2])
    dataset = export_nnunet(SupportSet(cases, LABELS), tmp_path / "raw", cohort=cohort)
    folder = tmp_path / "predicted"
    folder.mkdir()
    for case in cohort.cases[2:]:
        truth = case.read_reference()
        array = np.select([truth.array == 1, truth.array == 3], [1, 2]).astype(np.uint8)
        write_label_map(folder / f"{case.name}.nii.gz", replace(truth, array=array))
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):  # nnU-Net leaves them there
        (folder / name).write_text("{}")
    return dataset, folder


def test_folder_and_file_names_are_nnunets(cohort: Cohort, tmp_path: Path):
    dataset = export_nnunet(SupportSet(cohort.cases[:2], LABELS), tmp_path, 7, "Egg", cohort)
    assert dataset.folder == tmp_path / "Dataset007_Egg"
    assert small_cohort.files_below(tmp_path / "Dataset007_Egg") == [
        "dataset.json",
        "handful.json",
        "imagesTr/case-0_0000.nii.gz",
        "imagesTr/case-1_0000.nii.gz",
        "imagesTs/case-2_0000.nii.gz",
        "imagesTs/case-3_0000.nii.gz",
        "labelsTr/case-0.nii.gz",
        "labelsTr/case-1.nii.gz",
    ]
    assert (dataset.training, dataset.tests) == (("case-0", "case-1"), ("case-2", "case-3"))


def test_label_values_run_without_a_gap(tmp_path: Path):
    dataset = export_nnunet(support_set(2), tmp_path)
    assert said(dataset) == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1, "egg": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "name": "handful",
    }
    assert (dataset.values, dataset.ignore) == ({1: 1, 2: 3}, None)
    written = np.asarray(nib.load(dataset.folder / "labelsTr" / "phantom-1.nii.gz").dataobj)
    truth = phantom(1)[1].array
    assert np.array_equal(written == 1, truth == 1)
    assert np.array_equal(written == 2, truth == 3)
    assert np.issubdtype(written.dtype, np.integer)


def test_unlabelled_voxels_become_the_highest_value_called_ignore(tmp_path: Path):
    support = SupportSet((phantom_case(0), partly(phantom_case(1))), LABELS)
    dataset = export_nnunet(support, tmp_path)
    assert said(dataset)["labels"] == {"background": 0, "ball": 1, "egg": 2, "ignore": 3}
    whole, part = (np.asarray(nib.load(dataset.folder / "labelsTr" / f"phantom-{n}.nii.gz").dataobj) for n in range(2))
    assert not (whole == 3).any()
    assert (part[:, [0, 3, 4, 5]] == 3).all()
    assert not (part[:, 1:3] == 3).any()


def test_voxels_and_grids_are_the_scans_own(tmp_path: Path):
    dataset = export_nnunet(support_set(1), tmp_path)
    image, reference = phantom(0)
    scan = nib.load(dataset.folder / "imagesTr" / "phantom-0_0000.nii.gz")
    labels = nib.load(dataset.folder / "labelsTr" / "phantom-0.nii.gz")
    assert np.array_equal(np.asarray(scan.dataobj), image.array[0])
    assert scan.shape == labels.shape == reference.array.shape
    assert np.array_equal(scan.affine, labels.affine)
    assert np.allclose(scan.affine, image.geometry.affine, atol=1e-5)
    assert np.allclose(scan.get_qform(), scan.get_sform(), atol=1e-5)  # nnU-Net may read either


def test_handful_reads_back_what_it_exported(tmp_path: Path):
    support = SupportSet((phantom_case(0), partly(phantom_case(1))), LABELS)
    cohort = read_cohort(export_nnunet(support, tmp_path).folder)
    assert cohort.labels == Labels((1, 2), ("ball", "egg"))
    for case, before in zip(cohort.cases, support.cases, strict=True):
        was = before.read_reference().array
        assert np.array_equal(case.read_reference().array, np.where(was == 3, 2, was))


def test_labels_that_the_support_leaves_out_are_background(tmp_path: Path):
    dataset = export_nnunet(SupportSet((phantom_case(0),), Labels((3,), ("egg",))), tmp_path)
    written = np.asarray(nib.load(dataset.folder / "labelsTr" / "phantom-0.nii.gz").dataobj)
    assert np.array_equal(written, phantom(0)[1].array == 3)


@pytest.mark.parametrize(("modality", "channel"), [("CT", "CT"), ("ct (portal)", "CT"), ("MR", "MR"), (None, "grey")])
def test_a_ct_is_declared_to_nnunet_so_that_it_keeps_hounsfield_units(
    modality: str | None, channel: str, tmp_path: Path
):
    case = phantom_case(0)
    image = replace(case.read_image(), modality=modality)
    dataset = export_nnunet(SupportSet((replace(case, image=image),), LABELS), tmp_path)
    assert said(dataset)["channel_names"] == {"0": channel}


def test_colour_becomes_three_channels(tmp_path: Path):
    case = phantom_case(0)
    image = case.read_image()
    colour = replace(image, array=np.concatenate([image.array * part for part in (1, 2, 3)]))
    dataset = export_nnunet(SupportSet((replace(case, image=colour),), LABELS), tmp_path)
    assert said(dataset)["channel_names"] == {"0": "red", "1": "green", "2": "blue"}
    blue = nib.load(dataset.folder / "imagesTr" / "phantom-0_0002.nii.gz")
    assert np.array_equal(np.asarray(blue.dataobj), colour.array[2])
    with pytest.raises(UnsupportedInput, match=r"'phantom-1' has 1 channel\(s\), 'phantom-0' has 3"):
        export_nnunet(SupportSet((replace(case, image=colour), phantom_case(1)), LABELS), tmp_path, 502)
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset501_handful"]


def test_further_scans_of_a_training_patient_are_no_tests(tmp_path: Path):
    cases = tuple(replace(phantom_case(seed), patient=who) for seed, who in enumerate("aab"))
    dataset = export_nnunet(SupportSet(cases[:1], LABELS), tmp_path, cohort=Cohort(cases, LABELS, "three"))
    assert dataset.tests == ("phantom-2",)


def test_predictions_come_back_with_the_cohorts_own_values(
    predicted: tuple[NnunetDataset, Path], cohort: Cohort, tmp_path: Path
):
    dataset, folder = predicted
    assert import_nnunet(folder, dataset.folder, tmp_path / "back") == (["case-2", "case-3"], ())
    for case in cohort.cases[2:]:
        back = read_label_map(tmp_path / "back" / f"{case.name}.nii.gz", LABELS)
        assert np.array_equal(back.array, case.read_reference().array)
        assert np.array_equal(back.geometry.affine, case.read_geometry().affine)


def test_an_import_that_was_killed_at_any_moment_is_repeated(
    predicted: tuple[NnunetDataset, Path], cohort: Cohort, tmp_path: Path
):
    dataset, folder = predicted
    left = tmp_path / ".0123456789ab.tmp.back"
    left.mkdir()
    first = import_nnunet(folder, dataset.folder, tmp_path / "back")
    assert not left.exists()
    assert import_nnunet(folder, dataset.folder, tmp_path / "back") == first
    corrected = cohort.cases[2].read_reference()
    write_label_map(tmp_path / "back" / "case-3.nii.gz", corrected)
    with pytest.raises(InputError, match="not empty; name a new folder"):
        import_nnunet(folder, dataset.folder, tmp_path / "back")
    assert np.array_equal(read_label_map(tmp_path / "back" / "case-3.nii.gz", LABELS).array, corrected.array)


def test_cases_that_nnunet_was_trained_on_are_noted(predicted: tuple[NnunetDataset, Path], tmp_path: Path):
    dataset, folder = predicted
    import_nnunet(folder, dataset.folder, tmp_path / "back")
    assert support_among(tmp_path / "back") == {"case-0", "case-1"}


def test_a_prediction_with_a_value_that_is_not_in_the_data_set_is_left_out_by_name(
    predicted: tuple[NnunetDataset, Path], cohort: Cohort, tmp_path: Path
):
    dataset, folder = predicted
    truth = cohort.cases[3].read_reference()
    write_label_map(folder / "case-3.nii.gz", truth)  # holds a 3
    names, (left_out,) = import_nnunet(folder, dataset.folder, tmp_path / "back")
    assert (names, left_out.file) == (["case-2"], "case-3.nii.gz")
    assert "values that are not labels: 3" in left_out.reason
    (folder / "case-2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case-3\.nii\.gz: values that are not labels: 3"):
        import_nnunet(folder, dataset.folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_label_maps_by_hand_are_never_written_over(predicted: tuple[NnunetDataset, Path], folder: Path):
    dataset, predictions = predicted
    with pytest.raises(InputError, match="not empty; name a new folder"):
        import_nnunet(predictions, dataset.folder, folder / "labels")


def test_an_earlier_export_is_replaced_on_request_only(tmp_path: Path):
    export_nnunet(support_set(2), tmp_path)
    with pytest.raises(InputError, match="add --overwrite"):
        export_nnunet(support_set(1), tmp_path)
    assert export_nnunet(support_set(1), tmp_path, overwrite=True).training == ("phantom-0",)
    assert len(list((tmp_path / "Dataset501_handful" / "imagesTr").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset501_handful"]


def test_a_data_set_of_somebody_else_is_never_replaced(tmp_path: Path):
    (tmp_path / "Dataset501_handful").mkdir()
    with pytest.raises(InputError, match="handful did not write it"):
        export_nnunet(support_set(1), tmp_path, overwrite=True)


def test_an_export_that_fails_leaves_nothing(cohort: Cohort, tmp_path: Path):
    own = small_cohort.write_cohort(tmp_path / "own", cases=2)
    scans = read_cohort(own)
    support = SupportSet(scans.cases[:1], LABELS)
    for name in ("case-1", "case-0"):
        scan = own / "images" / f"{name}.nii.gz"
        scan.write_bytes(scan.read_bytes()[:3000])
        if name == "case-1":  # a scan for prediction, without which the others are exported
            (left_out,) = export_nnunet(support, tmp_path / "other", cohort=scans).left_out
            assert left_out.file == "case-1"
    with pytest.raises(DamagedFile, match="case-0"):
        export_nnunet(support, tmp_path / "raw", cohort=scans)
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize(("number", "name"), [(0, "a"), (1000, "a"), (1, "a b"), (1, "../a"), (1, "")])
def test_numbers_and_names_that_nnunet_does_not_know_are_refused(number: int, name: str, tmp_path: Path):
    with pytest.raises(SettingsError, match="must be 1 to 999"):
        export_nnunet(support_set(1), tmp_path, number, name)


@pytest.mark.parametrize("names", [("ball", "ball"), ("ball", "ignore"), ("background", "egg")])
def test_names_that_nnunet_keeps_for_itself_are_refused(names: tuple[str, str], tmp_path: Path):
    support = SupportSet((replace(phantom_case(0), labels=Labels((1, 3), names)),), Labels((1, 3), names))
    with pytest.raises(LabelError, match="rename them"):
        export_nnunet(support, tmp_path)


OUTSIDE = json.dumps({"values": {"1": 1}, "labels": {"1": "ball"}, "not_to_be_scored": ["../../victim"]})


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"values": {}}', OUTSIDE, OUTSIDE.replace('"../../victim"', "3")]
)
def test_a_data_set_that_handful_did_not_write_is_refused(
    content: str | None, predicted: tuple[NnunetDataset, Path], tmp_path: Path
):
    dataset, folder = predicted
    record = dataset.folder / "handful.json"
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(InputError, match=r"handful\.json (is|was)"):
        import_nnunet(folder, dataset.folder, tmp_path / "back")
