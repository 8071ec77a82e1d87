"""Contours (RTSTRUCT) as labels: the voxels whose centres they enclose, on the slices of their scan, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pydicom import dcmread

import dicom_series as made
from handful.data.checks import check_case
from handful.data.files import read_cohort, read_label_map, read_volume
from handful.data.volume import Geometry, Labels
from handful.errors import DamagedFile, GeometryMismatch, HandfulError, LabelError, UnsupportedInput

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
STAR = np.array([[1.2, 0.7], [8.6, 1.4], [5.1, 3.3], [8.3, 6.2], [2.9, 6.8], [4.2, 3.6]])
"""Corners in columns and rows: not convex, and no symmetry."""
NARROW = np.array([[0.6, 1.6], [1.4, 1.6], [1.4, 4.4], [0.6, 4.4]])


def scan(folder: Path, **changes: Any) -> Geometry:
    return read_volume(made.write(folder, made.series(**changes))).geometry


def outline(corners: NDArray[Any], index: float, grid: Geometry) -> NDArray[Any]:
    """Corners in LPS mm, given in columns and rows of a slice."""
    voxels = np.column_stack([corners, np.full(len(corners), index), np.ones(len(corners))])
    return np.asarray((voxels @ (TO_LPS @ grid.affine).T)[:, :3])


def inside(corners: NDArray[Any], grid: Geometry) -> NDArray[Any]:
    """The pixels (i, j) with their centres inside, by matplotlib."""
    pixels = np.argwhere(np.ones(grid.shape[:2]))
    return np.asarray(Outline([*corners, corners[0]], closed=True).contains_points(pixels)).reshape(grid.shape[:2])


def saved(path: Path, structures: dict[str, list[NDArray[Any]]], **changes: Any) -> Path:
    made.contours(structures, **changes).save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("axes", made.ORIENTATIONS[::7], ids=lambda axes: str(axes.astype(int).ravel().tolist()))
def test_voxels_whose_centres_lie_inside_are_labelled(axes: NDArray[Any], tmp_path: Path):
    grid = scan(tmp_path / "scan", axes=axes)
    star = [outline(STAR, index, grid) for index in (1, 2, 3)]
    path = saved(tmp_path / "labels.dcm", {"liver": star, "left_kidney": [outline(NARROW, 5, grid)]})
    found = read_label_map(path, Labels((3, 4), ("left kidney", "liver")), grid=grid)
    truth = np.zeros(grid.shape, int)
    truth[..., 1:4][inside(STAR, grid)] = 4
    truth[..., 5][inside(NARROW, grid)] = 3
    assert (truth == 4).sum() > 50
    np.testing.assert_array_equal(found.array, truth)


def test_a_contour_inside_another_and_a_keyhole_are_holes(tmp_path: Path):
    grid = scan(tmp_path / "scan")
    square = np.array([[1.5, 0.5], [8.5, 0.5], [8.5, 6.5], [1.5, 6.5]])
    hole = np.array([[3.5, 2.5], [5.5, 2.5], [5.5, 4.5], [3.5, 4.5]])
    keyhole = np.array([*square[:1], *hole, hole[0], *square])
    truth = inside(square, grid) & ~inside(hole, grid)
    for name, contours in (("two", [hole, square]), ("keyhole", [keyhole])):
        path = saved(tmp_path / f"{name}.dcm", {"liver": [outline(one, 2, grid) for one in contours]})
        np.testing.assert_array_equal(read_label_map(path, grid=grid).array[..., 2], truth)


def test_pieces_apart_are_one_structure_and_those_that_cross_are_refused(tmp_path: Path):
    grid = scan(tmp_path / "scan")
    small = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 3.5], [0.5, 3.5]])
    apart = saved(tmp_path / "a.dcm", {"liver": [outline(small + shift, 2, grid) for shift in (0, 4)]})
    assert (read_label_map(apart, grid=grid).array > 0).sum() == 18
    crossing = saved(tmp_path / "b.dcm", {"liver": [outline(small + shift, 2, grid) for shift in (0, 2)]})
    with pytest.raises(LabelError, match="'liver' cross each other"):
        read_label_map(crossing, grid=grid)
    two = saved(tmp_path / "c.dcm", {name: [outline(small, 2, grid)] for name in ("liver", "cyst")})
    with pytest.raises(LabelError, match=r"overlap \('liver' and 'cyst' in 9 voxels"):
        read_label_map(two, grid=grid)


@pytest.mark.parametrize(
    ("places", "cause"),
    [
        ([(STAR, 1.0), (STAR, 2.4)], "'liver' lies up to 0.4 slices off the slices"),
        ([(STAR, 0.0), (STAR, 2.0), (STAR, 4.0)], "'liver' leave slices of the scan out"),
        ([(STAR, 6.0)], "outside its scan"),
        ([(STAR + np.array([4, 0]), 2.0)], "outside its scan"),
        ([(STAR * 1e200, 2.0)], "outside its scan"),
    ],
)
def test_contours_off_the_slices_of_the_scan_are_refused(places: list[Any], cause: str, tmp_path: Path):
    grid = scan(tmp_path / "scan")
    path = saved(tmp_path / "labels.dcm", {"liver": [outline(corners, index, grid) for corners, index in places]})
    with pytest.raises(GeometryMismatch, match=cause):
        read_label_map(path, grid=grid)


def changed(path: Path, where: str, **values: Any) -> Path:
    data = dcmread(path)
    item = data[where][0] if where != "contour" else data.ROIContourSequence[0].ContourSequence[0]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    data.save_as(path)
    return path


def test_a_structure_of_points_is_left_out(tmp_path: Path):
    grid = scan(tmp_path / "scan")
    path = saved(tmp_path / "labels.dcm", {name: [outline(STAR, 1, grid)] for name in ("isocentre", "liver")})
    found = read_label_map(changed(path, "contour", ContourGeometricType="POINT"), grid=grid)
    assert list(found.labels.names) == ["liver"]
    assert (found.array > 0).sum() == inside(STAR, grid).sum()


@pytest.mark.parametrize(
    ("where", "values", "error", "cause"),
    [
        ("contour", {"ContourGeometricType": "POINT"}, LabelError, "no closed contour"),
        ("contour", {"ContourGeometricType": "OPEN_PLANAR"}, UnsupportedInput, "'liver' has a contour of type 'OPEN_P"),
        ("contour", {"NumberOfContourPoints": 5}, DamagedFile, "not 5 points"),
        ("contour", {"ContourData": []}, DamagedFile, "unreadable DICOM header"),
        ("ROIContourSequence", {"ReferencedROINumber": 3}, DamagedFile, "structure 3, which has no name"),
        ("ROIContourSequence", {"ContourSequence": []}, LabelError, "no closed contour"),
    ],
)
def test_what_encloses_no_area_is_refused(
    where: str, values: Any, error: type[HandfulError], cause: str, tmp_path: Path
):
    grid = scan(tmp_path / "scan")
    path = changed(saved(tmp_path / "labels.dcm", {"liver": [outline(STAR, 1, grid)]}), where, **values)
    with pytest.raises(error, match=cause) as caught:
        read_label_map(path, grid=grid)
    assert made.IDENTITY not in str(caught.value)


def test_a_crafted_zigzag_takes_no_memory(tmp_path: Path):
    grid = Geometry((65535, 4, 1), np.eye(4))
    corners = np.tile([[0.0, 1.0], [65534.0, 2.0]], (200, 1))
    path = saved(tmp_path / "labels.dcm", {"liver": [outline(corners, 0, grid)]})
    with pytest.raises(DamagedFile, match="crosses itself"):
        read_label_map(path, grid=grid)


def test_a_cohort_has_contours_as_labels_and_their_series_as_scan(tmp_path: Path):
    grid = scan(tmp_path / "images" / "a")
    made.write(tmp_path / "images" / "a" / "thin", made.series(9, gap=1.5, series="1.2.78", number=3))
    (tmp_path / "labels").mkdir()
    path = saved(tmp_path / "labels" / "a.dcm", {"liver": [outline(STAR, 1, grid)]})
    cohort = read_cohort(tmp_path)
    (case,) = cohort.cases
    assert cohort.labels is not None
    assert cohort.labels.as_dict() == {1: "liver"}
    reference = case.read_reference()
    assert reference is not None
    assert reference.array.sum() == inside(STAR, grid).sum()
    assert [one.message for one in check_case(case) if one.severity == "error"] == []
    with pytest.raises(GeometryMismatch, match="give their scan, too"):
        read_label_map(path)
    changed(path, "ReferencedFrameOfReferenceSequence", FrameOfReferenceUID="1.2.10")
    assert ["frame of reference" in one.message for one in check_case(case) if one.severity == "error"] == [True]
