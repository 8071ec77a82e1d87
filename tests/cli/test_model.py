"""`handful model inspect` and `handful fit --anonymous`."""

import json
from pathlib import Path

from small_cohort import Handful


def test_a_model_says_what_it_is_and_what_it_holds(cohort: Path, model: Path, handful: Handful) -> None:
    shown = handful("model", "inspect", model).stdout
    for text in ("method: nearest-slice", "labels: 1 ball, 3 egg", "axial slices", "names and digests of"):
        assert text in shown
    content = json.loads(handful("model", "inspect", model, "--json").stdout)
    assert content["method"] == "nearest-slice"
    assert content["made_for"]["channels"] == [1]
    assert "masks of the labelled slices" in content["holds"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, handful: Handful) -> None:
    result = handful("model", "inspect", tmp_path)
    assert result.exit_code == 1
    assert "not a fitted model" in result.stderr


def test_an_anonymous_fit_of_a_method_that_keeps_pictures_is_refused(
    cohort: Path, backbone: Path, tmp_path: Path, handful: Handful
) -> None:
    fit = ("fit", "nearest-slice", "-i", cohort, "--backbone", backbone, "-o", tmp_path / "m", "--anonymous")
    result = handful(*fit)
    assert result.exit_code == 2
    assert "nearest-slice keeps pictures or masks" in result.stderr
    assert not (tmp_path / "m").exists()
