"""CT is recognised by its voxels, MR is not; sources are believed in their order, and contradictions are told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name

from handful.data.cases import Case
from handful.data.checks import check_case, check_cases
from handful.data.files import read_cohort
from handful.data.formats import read_volume, write_volume
from handful.data.hounsfield import hounsfield_shift
from handful.data.intensities import intensity_notes
from handful.data.label_limits import window_of_labels
from handful.data.modality import ModalityEvidence
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume

SHAPE = (40, 40, 20)
LABELS = Labels((1, 2), ("gland", "bone"))


def ct(
    seed: int = 0, shift: int = 0, noise: float = 15.0, lungs: bool = False, padding: int | None = None
) -> np.ndarray:
    """A body of fat round muscle in air, with a gland, bone, and lungs if asked for; voxels (i, j, k) of a CT."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000.0)
    distance = np.hypot(*(np.indices(SHAPE)[:2] - 19.5))
    values[distance < 17] = -100
    values[distance < 14] = 50
    if lungs:
        values[8:18, 12:28] = values[22:32, 12:28] = -850
    values += rng.normal(0, noise, SHAPE)
    values[_gland()] = rng.normal(20, noise, SHAPE)[_gland()]
    values[_bone()] = rng.normal(700, 250, SHAPE)[_bone()]
    values += shift
    if padding is not None:
        values[distance > 19] = padding
    return np.clip(values, shift - 1024 if padding is None else -4000, 3071 + shift).astype(np.int16)


def mr(seed: int = 0, scale: float = 400.0) -> np.ndarray:
    """The same anatomy as MR has it: a background of magnitudes of noise, broad tissues, no unit."""
    rng = np.random.default_rng(seed)
    field = 1 + 0.25 * np.sin(np.indices(SHAPE)[0] / 9)
    distance = np.hypot(*(np.indices(SHAPE)[:2] - 19.5))
    tissue = np.where(distance < 14, 1.0, np.where(distance < 17, 2.2, 0.0)) * field
    return np.hypot(scale * tissue + rng.normal(0, 0.05 * scale, SHAPE), rng.normal(0, 0.05 * scale, SHAPE)).astype(
        np.int16
    )


def _gland() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    return np.hypot(np.hypot(i - 14, j - 19), 2 * (k - 10)) < 5


def _bone() -> np.ndarray:
    i, j, _ = np.indices(SHAPE)
    return np.hypot(i - 26, j - 19) < 3


def _volume(array: np.ndarray, modality: str | None = None) -> Volume:
    return Volume(array[None], Geometry(array.shape, np.diag([-1.0, -1, -1, 1])), modality)


def _labelled(array: np.ndarray, name: str = "a", modality: str | None = None) -> Case:
    volume = _volume(array)
    labels = np.where(_bone(), 2, np.where(_gland(), 1, 0)).astype(np.int16)
    return Case(name, volume, LabelMap(labels, volume.geometry, LABELS), LABELS, modality=modality)


@pytest.mark.parametrize(
    "form",
    [{}, {"noise": 45.0}, {"lungs": True}, {"padding": -2000}, {"lungs": True, "noise": 30.0}],
    ids=["body", "noisy", "chest", "padded", "noisy chest"],
)
@pytest.mark.parametrize("shift", [0, 1000, 1024])
def test_ct_is_recognised_by_its_peaks_however_it_is_shifted(form: dict, shift: int) -> None:
    expected = {0: 0.0, 1000: 1024.0, 1024: 1024.0}[shift]
    for seed in range(3):
        assert hounsfield_shift(ct(seed, shift, **form)[None]) == expected
        assert hounsfield_shift(ct(seed, shift, **form)[None].astype(np.float32)) == expected


@pytest.mark.parametrize("scale", [50.0, 200.0, 400.0, 500.0, 1000.0, 1060.0, 5000.0])
def test_mr_is_no_ct_whatever_its_scale(scale: float) -> None:
    assert hounsfield_shift(mr(0, scale)[None]) is None


def test_neither_colours_nor_8_bit_pictures_nor_constants_are_a_ct() -> None:
    assert hounsfield_shift(np.stack([ct()] * 3)) is None
    assert hounsfield_shift(np.clip(ct() / 8 + 128, 0, 255).astype(np.uint8)[None]) is None
    assert hounsfield_shift(np.zeros((1, *SHAPE), np.int16)) is None
    assert hounsfield_shift(np.full((1, 4, 4, 4), 40, np.int16)) is None


@pytest.mark.realdata
def test_real_ct_is_recognised_and_real_mr_is_not(realdata: Path) -> None:
    for name, expected in (("openkbp", 1024.0), ("chaos_mr_t2", None), ("acdc", None), ("msd_hippocampus", None)):
        cases = read_cohort(realdata / name).cases
        for case in cases[:60]:
            assert hounsfield_shift(case.read_image().array) == expected, case.name


# Which source is believed


@pytest.mark.parametrize(
    ("tag", "declared", "shift", "is_ct", "told", "contradictions"),
    [
        (None, None, 0.0, True, "CT by its voxels, stored as Hounsfield units", []),
        (None, None, 1024.0, True, "CT by its voxels, stored as Hounsfield units + 1024", []),
        (None, "CT", 1024.0, True, "CT by dataset.json, stored as Hounsfield units + 1024", []),
        ("CT", None, 0.0, True, "CT by its DICOM tag, stored as Hounsfield units", []),
        (None, "MR", None, False, "MR by dataset.json", []),
        (None, None, None, False, "of unknown modality, and by its voxels not a CT in Hounsfield units", []),
        ("MR", "CT", None, False, "MR by its DICOM tag", ["the DICOM tag says MR, dataset.json says CT; the tag"]),
        (None, "MR", 0.0, False, "MR by dataset.json", ["dataset.json says MR, but the voxels have the peaks of a CT"]),
        ("CT", None, None, True, "CT by its DICOM tag", ["the DICOM tag says CT, but the voxels lack the peaks"]),
    ],
)
def test_the_tag_goes_before_the_data_set_and_that_before_the_voxels(
    tag: str | None, declared: str | None, shift: float | None, is_ct: bool, told: str, contradictions: list[str]
) -> None:
    evidence = ModalityEvidence(tag, declared, shift)
    assert evidence.is_ct == is_ct
    assert str(evidence) == told
    for found, start in zip(evidence.disagreements(), contradictions, strict=True):
        assert found.startswith(start)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_the_dicom_tag_that_a_file_kept_goes_before_dataset_json(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(mr().transpose(2, 1, 0))
    image.SetMetaData("0008|0060", "MR")
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path))
    assert read_volume(path).modality == "MR"
    case = Case("a", path, modality="CT")
    volume = case.read_image()
    assert volume.modality == "MR"
    assert case.modality_evidence(volume) == ModalityEvidence("MR", "CT", None)
    messages = [finding.message for finding in check_case(case) if finding.severity == "warning"]
    assert messages == ["the DICOM tag says MR, dataset.json says CT; the tag is used"]


def test_a_file_without_a_tag_has_the_modality_of_its_data_set(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nrrd", _volume(ct()))
    assert read_volume(tmp_path / "scan.nrrd").modality is None
    assert Case("a", tmp_path / "scan.nrrd", modality="CT").read_image().modality == "CT"


def test_doctor_says_what_is_recognised_and_which_scans_are_stored_otherwise() -> None:
    cases = [_labelled(ct(seed, shift), f"{seed}") for seed, shift in enumerate((0, 0, 1024))]
    findings = check_cases(cases)
    assert check_case(cases[0]) == []
    assert [finding.message for finding in findings if finding.severity == "note"] == [
        "CT by its voxels, stored as Hounsfield units",
        "CT by its voxels, stored as Hounsfield units",
        "CT by its voxels, stored as Hounsfield units + 1024",
    ]
    (odd,) = [finding for finding in findings if finding.severity == "warning"]
    assert odd.case == "2"
    assert odd.message.startswith("stored as Hounsfield units + 1024, most others as Hounsfield units + 0")


# Which window that gives


@pytest.mark.parametrize(
    ("make", "modality", "window"),
    [
        (ct, None, "ct-soft"),
        (lambda: ct(shift=1024), None, (864.0, 1264.0)),
        (lambda: ct(shift=1024), "CT", (864.0, 1264.0)),
        (ct, "MR", "percentile"),
        (mr, None, "percentile"),
        (mr, "CT", "percentile"),
    ],
)
def test_auto_shows_soft_tissue_of_whatever_is_a_ct(
    make: Callable[[], np.ndarray], modality: str | None, window: object
) -> None:
    assert Slicer().resolve([_volume(make(), modality)]).window == window


@pytest.mark.parametrize("shift", [0, 1024])
def test_a_support_set_of_ct_is_shown_by_the_window_of_its_labels(shift: int) -> None:
    support = SupportSet(tuple(_labelled(ct(seed, shift), str(seed)) for seed in range(3)), LABELS)
    low, high = support.resolve(Slicer()).window  # type: ignore[misc]
    assert low - shift == pytest.approx(20 - 1.645 * 15 - 100, abs=6)  # the gland, and what lies round it
    assert high - shift == 400  # bone is bright in any case
    assert support.resolve(Slicer(window="ct-bone")).window == "ct-bone"
    assert support.resolve(Slicer(window=(0.0, 9.0))).window == (0, 9)


def test_limits_are_medians_over_cases_and_windows_neither_too_wide_nor_too_narrow() -> None:
    assert window_of_labels([]) is None
    assert window_of_labels([{1: (20.0, 40.0)}]) == (-80, 140)
    assert window_of_labels([{1: (30.0, 31.0)}]) == (-70, 131)
    assert window_of_labels([{1: (-980.0, -700.0)}]) == (-1000, -600)
    assert window_of_labels([{1: (-80.0, 60.0), 2: (200.0, 1500.0)}]) == (-180, 400)
    assert window_of_labels([{1: (0.0, 100.0)}, {1: (10.0, 110.0)}, {1: (-900.0, 2000.0)}]) == (-100, 210)
    low, high = window_of_labels([{1: (450.0, 1500.0)}])  # type: ignore[misc]
    assert high - low == 200


def test_mr_is_shown_by_the_percentiles_of_each_scan_whatever_is_labelled() -> None:
    support = SupportSet((_labelled(mr()),), LABELS)
    assert support.resolve(Slicer()).window == "percentile"
    assert support.facts[0].limits == {}


def test_a_fit_says_what_was_recognised_and_what_is_shown() -> None:
    known = SupportSet((_labelled(ct(shift=1024)), _labelled(ct(1, 1024), "b")), LABELS)
    (told,) = intensity_notes(known, Slicer())
    assert told == (
        "grey values: CT by its voxels, stored as Hounsfield units + 1024; shown from -105 to 400 HU "
        "(stored values 919 to 1424), chosen from the labelled voxels"
    )
    mixed = SupportSet((_labelled(ct(), "a", "CT"), _labelled(mr(), "b", "CT"), _labelled(ct(1), "c", "MR")), LABELS)
    told, *doubts = intensity_notes(mixed, Slicer(window=(0.0, 200.0)))
    assert "CT by dataset.json, stored as Hounsfield units (1 of 3); CT by dataset.json (1 of 3)" in told
    assert told.endswith("shown from 0 to 200, as set")
    assert [doubt[:2] for doubt in doubts] == ["b:", "c:"]
    (told,) = intensity_notes(SupportSet((_labelled(mr()),), LABELS), Slicer())
    assert told.endswith("each scan is shown from the 0.5th to the 99.5th percentile of its own values")


def test_the_window_of_a_ct_is_part_of_the_fitted_model_and_of_what_the_fit_says(tmp_path: Path) -> None:
    from handful.backbones.catalog import load_backbone
    from handful.cohort.fit import fit_to_folder
    from handful.methods.catalog import build_method

    support = SupportSet((_labelled(ct(shift=1024)), _labelled(ct(1, 1024), "b")), LABELS)
    method = build_method("nearest-slice", {})
    result = fit_to_folder("nearest-slice", method, support, load_backbone("handful-tiny"), tmp_path / "model")
    assert result.decisions[0].startswith("grey values: CT by its voxels")
    record = json.loads((tmp_path / "model" / "segmenter.json").read_text())
    assert tuple(record["slicer"]["window"]) == support.resolve(Slicer()).window
    assert record["provenance"]["decisions"][0] == result.decisions[0]


def test_facts_of_held_cases_keep_what_was_recognised() -> None:
    support = SupportSet((_labelled(ct(shift=1024)),), LABELS)
    with support.held() as held:
        assert held.facts[0].evidence == support.facts[0].evidence
        assert held.resolve(Slicer()) == support.resolve(Slicer())
    assert dataclasses.replace(support.facts[0]).limits == support.facts[0].limits
