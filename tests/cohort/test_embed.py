import shutil
from pathlib import Path

import pytest

from handful.backbones.base import Backbone
from handful.cohort.embed import embed_cohort
from handful.data.cases import Cohort
from handful.data.files import read_cohort


def test_every_slice_is_encoded_once(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    first = embed_cohort(cohort.cases[:2], backbone, tmp_path / "cache")
    again = embed_cohort(cohort.cases[:3], backbone, tmp_path / "cache")
    assert (first.slices, first.computed) == (12, 12)
    assert (again.slices, again.computed) == (18, 6)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert again.mib == size / 2**20 > first.mib


def test_a_damaged_scan_is_listed_and_the_others_are_encoded(folder: Path, backbone: Backbone, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "c")
    scan = tmp_path / "c" / "images" / "case-1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    result = embed_cohort(read_cohort(tmp_path / "c").cases, backbone, tmp_path / "cache")
    assert [one.case for one in result.failures] == ["case-1"]
    assert result.computed == 18


def test_embeddings_that_cannot_be_stored_are_an_error(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    (tmp_path / "a file").touch()
    with pytest.warns(UserWarning, match="no longer cached"), pytest.raises(OSError, match="a file"):
        embed_cohort(cohort.cases[:1], backbone, tmp_path / "a file" / "cache")


def test_a_repeated_job_encodes_as_many_slices_in_a_call_as_one_that_was_not_stopped(
    cohort: Cohort, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = list[int]()
    encode = type(backbone)._encode
    monkeypatch.setattr(
        type(backbone), "_encode", lambda self, slices: calls.append(len(slices)) or encode(self, slices)
    )
    case = cohort.cases[:1]
    whole = embed_cohort(case, backbone, tmp_path)
    undisturbed = [count for count in calls if count > 1]
    stored = {file: file.read_bytes() for file in sorted(tmp_path.glob("*.safetensors"))}
    next(iter(stored)).unlink()
    calls.clear()
    assert embed_cohort(case, backbone, tmp_path).computed == 1
    assert len(stored) == whole.computed
    assert max(calls) in undisturbed, "a slice alone would differ in the last bit"
    assert {file: file.read_bytes() for file in sorted(tmp_path.glob("*.safetensors"))} == stored


def test_embeddings_that_were_removed_for_others_are_counted(cohort: Cohort, backbone: Backbone, tmp_path: Path):
    whole = embed_cohort(cohort.cases[:2], backbone, tmp_path / "whole")
    assert (whole.removed, whole.limit_mib) == (0, 20 * 1024)
    assert whole.needed_mib == pytest.approx(whole.mib)
    third = whole.mib / 3 / 1024
    result = embed_cohort(cohort.cases[:2], backbone, tmp_path / "small", limit_gib=third)
    stored = len(list((tmp_path / "small").glob("*.safetensors")))
    assert (result.slices, result.removed) == (12, 12 - stored)
    assert 0 < stored <= 4
    assert result.needed_mib == pytest.approx(whole.mib)
    assert result.limit_mib == pytest.approx(third * 1024, rel=0.01)
    assert embed_cohort(cohort.cases[:2], backbone, tmp_path / "small", limit_gib=1).removed == 0


def test_an_entry_that_another_process_removes_meanwhile_is_not_counted(
    cohort: Cohort, backbone: Backbone, tmp_path: Path
):
    result = embed_cohort(cohort.cases[:1], backbone, tmp_path)
    (tmp_path / f"{'ab' * 32}.safetensors").symlink_to(tmp_path / "removed")
    assert embed_cohort(cohort.cases[:1], backbone, tmp_path).mib == result.mib
