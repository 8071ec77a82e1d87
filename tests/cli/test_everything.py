import json
from pathlib import Path

from small_cohort import Handful


def test_everything_teaches_by_an_example(handful: Handful):
    result = handful("everything", "--help")
    assert result.exit_code == 0
    assert "Example: handful everything" in " ".join(result.output.split())


def test_one_scan_gives_a_label_map_a_picture_and_a_table(
    cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    keep_all = ("--points", "2", "--least-iou", "0", "--least-stability", "0")
    scan, few = cohort / "images" / "case-0.nii.gz", (*keep_all, "--backbone", backbone)
    result = handful("everything", "-i", scan, "-o", tmp_path / "masks", *few, "--json", "-q")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["done"] == ["case-0"]
    assert content["masks"]["case-0"] > 0
    names = sorted(path.name for path in (tmp_path / "masks").iterdir() if not path.name.startswith("."))
    assert names == ["case-0.nii.gz", "masks.csv", "previews", "run.json"]
    again = handful("everything", "-i", scan, "-o", tmp_path / "masks", *few, "-q")
    assert "0 cases segmented, 1 already segmented" in again.stdout


def test_a_scan_without_masks_is_named_with_what_may_help(
    cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    strict = ("--points", "1", "--least-iou", "1", "--no-preview", "-q", "--cases", "case-0", "--backbone", backbone)
    result = handful("everything", "-i", cohort, "-o", tmp_path / "masks", *strict)
    assert result.exit_code == 0, result.output
    assert "no mask was found in 1 case (case-0); lower --least-iou" in result.stderr
    assert not (tmp_path / "masks" / "previews").exists()


def test_wrong_settings_and_paths_are_wrong_usage(cohort: Path, tmp_path: Path, handful: Handful):
    (tmp_path / "a file").touch()
    for wrong in (
        ("-i", cohort, "-o", tmp_path / "m", "--points", "0"),
        ("-i", cohort, "-o", tmp_path / "a file"),
        ("-i", tmp_path / "none", "-o", tmp_path / "m"),
    ):
        assert handful("everything", *wrong).exit_code == 2
