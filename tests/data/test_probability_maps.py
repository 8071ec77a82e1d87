from pathlib import Path

import nibabel as nib
import numpy as np

from handful.data.formats import read_geometry, read_volume
from handful.data.probability_maps import write_probability
from phantoms import SHAPE, geometry


def test_probabilities_come_back_in_any_reader(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).random(SHAPE).astype(np.float16)
    write_probability(tmp_path / "p" / "a.nii.gz", wanted, geometry())
    image = nib.load(tmp_path / "p" / "a.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), wanted, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(read_volume(tmp_path / "p" / "a.nii.gz").array[0], wanted, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(read_geometry(tmp_path / "p" / "a.nii.gz").affine, geometry().affine, atol=1e-5)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["a.nii.gz"]


def test_equal_probabilities_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_probability(tmp_path / f"{name}.nii.gz", np.full((3, 4, 1), 0.3), geometry_of((3, 4, 1)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert set(np.unique(nib.load(tmp_path / "a.nii.gz").dataobj.get_unscaled())) == {76}


def test_probabilities_lie_on_a_scan_of_two_transforms_in_every_viewer(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    scan.set_qform(geometry().affine, code=1)
    scan.set_sform(np.diag([2.0, 2.0, 3.0, 1.0]), code=2)
    nib.save(scan, tmp_path / "scan.nii.gz")
    write_probability(tmp_path / "a.nii.gz", np.zeros(SHAPE), read_geometry(tmp_path / "scan.nii.gz"))
    header, wanted = (nib.load(tmp_path / f"{name}.nii.gz").header for name in ("a", "scan"))
    for form in ("get_qform", "get_sform"):
        (affine, code), (own, its) = getattr(header, form)(coded=True), getattr(wanted, form)(coded=True)
        np.testing.assert_array_equal(affine, own)
        assert code == its


def geometry_of(shape: tuple[int, int, int]):
    return type(geometry())(shape, geometry().affine)
