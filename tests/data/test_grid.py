"""The promise that matters most: a voxel painted at a point of the patient is found there again, after everything."""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from handful.data.files import read_label_map, read_volume, write_label_map, write_volume
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, Labels, Volume

ORIENTATIONS = [
    np.eye(3)[:, order] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
"""All 48 ways to lay three axes along the patient's."""
ONE = Labels((1,), ("point",))


@st.composite
def grids(split: st.DrawFn) -> Geometry:
    """Any orientation, turned by up to 40 degrees, with voxels of 0.2 to 8 mm; sometimes of one slice."""
    axes = split(st.sampled_from(ORIENTATIONS))
    angles = split(st.tuples(*[st.floats(-40, 40)] * 3)) if split(st.booleans()) else (0, 0, 0)
    spacing = split(st.tuples(*[st.floats(0.2, 8)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes * spacing
    affine[:3, 3] = split(st.tuples(*[st.floats(-300, 300)] * 3))
    return Geometry(split(st.tuples(*[st.integers(1, 7)] * 3)), affine)


def _round_trip(geometry: Geometry, at: tuple[int, int, int], plane: str, suffix: str) -> None:
    """Paints a voxel in the image file, segments by threshold slice by slice, and looks at the label file's point."""
    image = np.zeros((1, *geometry.shape), dtype=np.int16)
    image[(0, *at)] = 100
    with TemporaryDirectory() as folder:
        write_volume(Path(folder) / f"image{suffix}", Volume(image, geometry))
        volume = read_volume(Path(folder) / f"image{suffix}")
        slicer = Slicer(plane=plane, window=(0.0, 100.0))
        painted = (slicer.cut(volume)[:, 0] > 0.5).numpy().astype(np.int16)
        assert painted.sum() == 1
        write_label_map(Path(folder) / f"labels{suffix}", slicer.stack(painted, volume.geometry, ONE))
        label_map = read_label_map(Path(folder) / f"labels{suffix}", ONE)
        found = np.argwhere(sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / f"labels{suffix}"))) == 1)
    expected = (geometry.affine @ [*at, 1])[:3]
    assert label_map.geometry.shape == geometry.shape
    assert [tuple(index[::-1]) for index in found] == [at]
    (index,) = np.argwhere(label_map.array == 1)
    np.testing.assert_allclose((label_map.geometry.affine @ [*index, 1])[:3], expected, atol=1e-3)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@settings(max_examples=60)
@given(
    geometry=grids(), where=st.tuples(*[st.floats(0, 0.999)] * 3), plane=st.sampled_from(["auto", "axial", "coronal"])
)
def test_painted_voxel_is_found_at_its_point_in_the_patient(
    geometry: Geometry, where: tuple[float, float, float], plane: str, suffix: str
) -> None:
    i, j, k = (int(part * n) for part, n in zip(where, geometry.shape, strict=True))
    _round_trip(geometry, (i, j, k), plane, suffix)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_painted_voxel_is_found_in_all_48_orientations(suffix: str) -> None:
    turn = Rotation.from_euler("xyz", (5, -12, 8), degrees=True).as_matrix()
    for axes in ORIENTATIONS:
        affine = np.eye(4)
        affine[:3, :3] = turn @ axes * [0.7, 1.3, 4.0]
        affine[:3, 3] = [10.5, -200.25, 33.0]
        _round_trip(Geometry((3, 4, 5), affine), (1, 3, 2), "auto", suffix)


@settings(max_examples=60)
@given(geometry=grids(), plane=st.sampled_from(["axial", "coronal", "sagittal"]))
def test_slices_run_to_the_patients_back_left_and_feet(geometry: Geometry, plane: str) -> None:
    """The world position along each slice axis falls as the plane says, on grids turned well under 45 degrees."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    right, front, up = np.moveaxis(index @ geometry.affine[:3, :3].T, -1, 0)
    view = Slicer(plane=plane, window=(0.0, 1.0)).view(Volume(right[None], geometry))
    falls = {"axial": (up, front, right), "coronal": (front, up, right), "sagittal": (right, up, front)}[plane]
    nearest = np.abs(geometry.affine[:3, :3] / geometry.spacing).max(axis=0)
    for axis, position in enumerate(falls):
        if view.of(position).shape[axis] > 1 and nearest.min() > 0.8:
            assert (np.diff(view.of(position), axis=axis) < 0).all()
