"""Scribbles as a cohort: the scans lie next to them under the names of their cases."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its usual name

from handful.cohort.scribbles import write_scribbles
from handful.data.cases import Case
from handful.data.files import read_cohort, write_label_map, write_volume
from handful.data.formats import read_geometry
from handful.data.volume import LabelMap, Volume
from phantoms import LABELS, phantom


def test_sequences_whose_files_have_equal_names_stay_with_their_cases(tmp_path: Path):
    listed = {}
    for seed, name in enumerate(("one", "two")):
        (tmp_path / "own" / name).mkdir(parents=True)
        image, reference = phantom(seed)
        for factor, sequence in enumerate(("t1", "t2"), start=1):
            write_volume(tmp_path / "own" / name / f"{sequence}.nii.gz", Volume(image.array * factor, image.geometry))
        write_label_map(tmp_path / "own" / name / "seg.nii.gz", reference)
        listed[name] = {"images": [f"{name}/t1.nii.gz", f"{name}/t2.nii.gz"], "label": f"{name}/seg.nii.gz"}
    labels = {name: value for value, name in LABELS.as_dict().items()}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "dataset": listed}
    (tmp_path / "own" / "dataset.json").write_text(json.dumps(content))
    own = read_cohort(tmp_path / "own")
    assert write_scribbles(own.cases, LABELS, tmp_path / "out").cases == ("one", "two")
    for before, after in zip(own.cases, read_cohort(tmp_path / "out").cases, strict=True):
        found, wanted = after.read_image(), before.read_image()
        assert (after.name, found.sequences) == (before.name, ("T1", "T2"))
        assert after.reference is not None
        np.testing.assert_array_equal(found.array, wanted.array)


def test_a_scan_in_two_files_is_written_whole(tmp_path: Path):
    voxels = np.arange(8 * 9 * 3, dtype=np.int16).reshape(3, 9, 8)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"))
    array = np.zeros((8, 9, 3), np.int16)
    array[2:6, 2:6, 1], array[2:6, 7, 1] = 1, 3
    reference = LabelMap(array, read_geometry(tmp_path / "a.mhd"), LABELS)
    write_scribbles([Case("a", tmp_path / "a.mhd", reference)], LABELS, tmp_path / "out")
    (case,) = read_cohort(tmp_path / "out").cases
    np.testing.assert_array_equal(case.read_image().array[0], voxels.transpose(2, 1, 0))
    assert case.read_reference() is not None
