"""`handful annotate`: a simulated annotator on a labelled scan, as typed."""

import json
from pathlib import Path

import pytest

from handful.data.files import read_label_map, read_volume
from small_cohort import Handful


def scan(cohort: Path) -> tuple[str | Path, ...]:
    """Case 2, which no fitted model has seen, with its truth."""
    return ("-i", cohort / "images" / "case-2.nii.gz", "--reference", cohort / "labels" / "case-2.nii.gz")


def test_the_help_says_that_the_annotator_is_simulated_and_teaches_by_an_example(handful: Handful):
    said = " ".join(handful("annotate", "--help").output.split())
    assert "Example: handful annotate" in said
    assert "simulated annotator" in said
    assert "handful.Session" in said


def test_a_table_is_printed_and_a_label_map_written(cohort: Path, tmp_path: Path, handful: Handful):
    out = tmp_path / "annotated.nii.gz"
    result = handful("annotate", "handful-tiny", *scan(cohort), "-o", out, "--clicks", "3", "--slices", "2", "-q")
    assert result.exit_code == 0, result.output
    for said in ("NoC@0.85", "NoC@0.90", "label 1", "label 3", "whole scan", "simulated annotator"):
        assert said in result.stdout
    annotated, image = read_label_map(out), read_volume(cohort / "images" / "case-2.nii.gz")
    annotated.geometry.require_same(image.geometry, "annotation and scan")
    assert set(annotated.labels.values) == {1, 3}


def test_a_fitted_model_proposes_and_is_corrected(cohort: Path, model: Path, tmp_path: Path, handful: Handful):
    out = tmp_path / "annotated.nii.gz"
    told = json.loads(
        handful(
            "annotate", model, *scan(cohort), "-o", out, "--clicks", "1", "--propose", "--json", "-q",
            "--cache", tmp_path / "cache",
        ).stdout
    )  # fmt: skip
    assert told["annotator"] == "simulated"
    assert [one["name"] for one in told["labels"]] == ["ball", "egg"]
    assert all(len(one["dice_after_click"]) == 1 and one["noc@0.85"] == 1.0 for one in told["labels"])
    assert told["seconds_per_click"]["median"] > 0
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody-knows-it",), "nobody-knows-it"),
        (("handful-tiny", "--propose"), "fitted segmenter"),
    ],
)
def test_a_mistake_in_the_command_writes_nothing(
    arguments: tuple[str, ...], said: str, cohort: Path, tmp_path: Path, handful: Handful
):
    result = handful("annotate", *arguments, *scan(cohort), "-o", tmp_path / "out.nii.gz", "-q")
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(cohort: Path, tmp_path: Path, handful: Handful):
    out = tmp_path / "out.nii.gz"
    out.write_bytes(b"mine")
    result = handful("annotate", "handful-tiny", *scan(cohort), "-o", out, "-q")
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert out.read_bytes() == b"mine"
