import json
from pathlib import Path

import pytest

from small_cohort import Handful


@pytest.fixture
def half(own: Path) -> Path:
    """A cohort of which two cases are unlabelled."""
    for name in ("case-2", "case-3"):
        (own / "labels" / f"{name}.nii.gz").unlink()
    return own


def test_suggest_teaches_by_an_example(handful: Handful):
    result = handful("suggest", "--help")
    assert result.exit_code == 0
    assert "Example: handful suggest" in " ".join(result.output.split())


def test_suggestions_are_listed_and_written(half: Path, backbone: Path, tmp_path: Path, handful: Handful):
    result = handful("suggest", "-i", half, "-o", tmp_path / "s", "--backbone", backbone, "--count", "3")
    assert result.exit_code == 0, result.output
    assert "3 of 12 unlabelled slices; 12 labelled slices" in result.stdout
    assert "represents" in result.stdout
    assert "(0 to 5)" in result.stdout
    assert "24 slices in 4 cases, about" in result.stderr
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["suggestions.csv", "suggestions.png"]


def test_a_model_uses_its_own_backbone_and_ranks_by_its_disagreement(
    half: Path, model: Path, tmp_path: Path, handful: Handful
):
    result = handful("suggest", "-i", half, "-o", tmp_path / "s", "--model", model, "--json", "-q")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert len(said["suggestions"]) == 8
    assert any(one["disagreement"] > 0 for one in said["suggestions"])
    assert said["candidates"] == said["labelled_slices"] == 12


def test_fewer_candidates_than_requested_are_reported(half: Path, backbone: Path, tmp_path: Path, handful: Handful):
    chosen = ("--backbone", backbone, "--whole-cases", "--count", "5", "-q")
    result = handful("suggest", "-i", half, "-o", tmp_path / "s", *chosen)
    assert result.exit_code == 0, result.output
    assert "5 requested, found 2 unlabelled cases" in result.stdout


def test_a_broken_scan_is_named_and_exits_with_3(half: Path, backbone: Path, tmp_path: Path, handful: Handful):
    scan = half / "images" / "case-3.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    result = handful("suggest", "-i", half, "-o", tmp_path / "s", "--backbone", backbone, "-q")
    assert result.exit_code == 3
    assert "failed case-3" in result.stderr
    assert (tmp_path / "s" / "suggestions.csv").is_file()


def test_a_cohort_without_anything_left_to_label_is_a_mistake(
    cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
):
    result = handful("suggest", "-i", cohort, "-o", tmp_path / "s", "--backbone", backbone, "-q")
    assert result.exit_code == 2
    assert "no unlabelled slice left" in " ".join(result.stderr.split())
    assert not (tmp_path / "s").exists()


def test_embeddings_are_stored_in_the_cache(half: Path, backbone: Path, tmp_path: Path, handful: Handful):
    chosen = ("--backbone", backbone, "--cache", tmp_path / "cache", "-q")
    assert handful("suggest", "-i", half, "-o", tmp_path / "s", *chosen).exit_code == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 24
