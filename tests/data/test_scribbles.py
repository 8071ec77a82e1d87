"""Simulated scribbles: where strokes lie, and that they are the same every time."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handful.data.checks import check_case
from handful.data.files import read_cohort, write_label_map
from handful.data.scribbles import scribbled, scribbles_of
from handful.data.volume import IGNORE, LabelMap
from handful.errors import LabelError, SettingsError
from phantoms import phantom_case
from small_cohort import write_cohort


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def disc(shape: tuple[int, int], row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_strokes_stay_in_what_they_label_and_are_few_pixels():
    classes = np.zeros((90, 120), dtype=int)
    classes[disc(classes.shape, 30, 40, 18)] = 3
    classes[disc(classes.shape, 60, 90, 14)] = 7
    found = scribbles_of(classes, rng())
    drawn = found != IGNORE
    assert (found[drawn] == classes[drawn]).all()
    assert set(np.unique(found)) == {IGNORE, 0, 3, 7}
    assert 0.002 < drawn.mean() < 0.08


def test_every_piece_has_one_stroke_along_its_middle():
    classes = np.zeros((60, 100), dtype=int)
    classes[10:20, 5:75] = 1
    classes[40:52, 60:95] = 1
    found = scribbles_of(classes, rng(), width=1) == 1
    for rows, columns, length in ((slice(10, 20), slice(5, 75), 45), (slice(40, 52), slice(60, 95), 20)):
        held_rows, held_columns = np.nonzero(found[rows, columns])
        assert np.ptp(held_columns) > length
        middle = (rows.stop - rows.start - 1) / 2
        assert np.abs(held_rows - middle).mean() < 2.5


@pytest.mark.parametrize("large", [40, 400])
def test_a_wide_pen_draws_a_wide_line_in_small_and_large_pieces(large: int):
    classes = np.zeros((large + 20, large + 20), dtype=int)
    classes[10:-10, 10:-10] = 1
    thin, wide = (np.count_nonzero(scribbles_of(classes, rng(), width) == 1) for width in (1, 5))
    assert 3 * thin < wide < 8 * thin


def test_a_piece_of_one_pixel_keeps_its_pixel():
    classes = np.zeros((20, 20), dtype=int)
    classes[7, 9] = 2
    assert np.argwhere(scribbles_of(classes, rng()) == 2).tolist() == [[7, 9]]


def test_a_slice_without_labels_gets_a_background_stroke():
    assert set(np.unique(scribbles_of(np.zeros((30, 30), dtype=int), rng()))) == {IGNORE, 0}


def test_strokes_depend_on_seed_and_name_alone():
    case = phantom_case(0)
    drawn = {
        (one.name, seed): scribbled(one, seed).read_reference().array.tobytes()  # type: ignore[union-attr]
        for seed in (0, 1)
        for one in (case, replace(case, name="another"))
    }
    assert len(set(drawn.values())) == 4
    again = scribbled(phantom_case(0), 0).read_reference()
    assert again is not None
    assert again.array.tobytes() == drawn["phantom-0", 0]


def test_unlabelled_pixels_stay_unlabelled():
    case = phantom_case(0)
    reference = case.read_reference()
    assert reference is not None
    array = reference.array.astype(np.int32)
    array[:, 2] = IGNORE
    partial = replace(case, reference=LabelMap(array, reference.geometry, reference.labels))
    found = scribbled(partial, 0).read_reference()
    assert found is not None
    assert (found.array[:, 2] == IGNORE).all()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(LabelError, match="phantom-0"):
        scribbled(replace(phantom_case(0), reference=None), 0)
    with pytest.raises(SettingsError, match="got 0"):
        scribbles_of(np.ones((4, 4), dtype=int), rng(), width=0)


@pytest.mark.parametrize(
    "labels", [{"background": 2, "ball": 1, "egg": 3}, {"1": "ball", "2": "background", "3": "egg"}]
)
def test_a_named_background_makes_empty_voxels_unlabelled(labels: dict[str, object], tmp_path: Path):
    folder = write_cohort(tmp_path / "c", cases=1)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    strokes = scribbled(phantom_case(0), 0).read_reference()
    assert strokes is not None
    painted = np.where(strokes.array == IGNORE, 0, np.where(strokes.array == 0, 2, strokes.array))
    write_label_map(folder / "labels" / "case-0.nii.gz", replace(strokes, array=painted))
    cohort = read_cohort(folder)
    read = cohort.cases[0].read_reference()
    assert read is not None
    assert (read.array == strokes.array).all()
    assert cohort.labels == strokes.labels


def test_a_check_names_scribbles():
    notes = [
        [finding.message for finding in check_case(case)] for case in (scribbled(phantom_case(0), 0), phantom_case(0))
    ]
    assert any("the labels are scribbles" in message for message in notes[0])
    assert not any("scribbles" in message for message in notes[1])
