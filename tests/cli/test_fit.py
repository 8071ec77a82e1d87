"""What `handful fit` refuses before it loads a backbone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handful.cli.fit import _print_result, _with_unlabelled
from handful.cohort.fit import FitResult
from handful.data.cases import Case, Cohort
from handful.data.unlabelled import UnlabelledScans
from handful.errors import SettingsError
from handful.methods.catalog import build_method
from phantoms import phantom_case, support_set


@pytest.mark.parametrize(
    ("name", "settings"), [("know-sam", {}), ("unet", {"pretrain": "simclr", "encoder": "none"}), ("fate", {})]
)
def test_boxes_are_refused_where_a_method_would_not_learn_from_them(name: str, settings: dict[str, Any]):
    support = support_set(1)
    cohort = Cohort(support.cases, support.labels, "phantoms")
    with pytest.raises(SettingsError, match="only self-training and auto learn from boxes"):
        _with_unlabelled(support, cohort, build_method(name, settings), None, Path("boxes.csv"), quiet=True)
    for learning in ("self-training", "auto"):
        found = _with_unlabelled(support, cohort, build_method(learning, {}), None, Path("boxes.csv"), quiet=True)
        assert found == (support, [])


def test_an_unlabelled_scan_that_cannot_be_read_is_listed_and_the_others_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    support, good = support_set(1), phantom_case(7)
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    cases = (*support.cases, Case("bad", tmp_path / "bad.nii.gz"), replace(good, reference=None))
    cohort = Cohort(cases, support.labels, "phantoms")
    found, failures = _with_unlabelled(support, cohort, build_method("self-training", {}), None, None, quiet=True)
    assert [failure.case for failure in failures] == ["bad"]
    assert "bad" in capsys.readouterr().err
    assert [case.name for case in found.unlabelled.cases] == [good.name]
    assert found.unlabelled.digests == UnlabelledScans.of((good,)).digests


def test_the_next_command_can_be_pasted_where_names_have_spaces(capsys: pytest.CaptureFixture[str]):
    made = {"method": "fate", "model": Path("my model"), "cases": ["ann"]}
    _print_result(False, made, FitResult(True, {}), 1.0, Cohort((), None, "mine"), Path("my cohort"))
    assert "next: handful predict 'my model' -i 'my cohort' -o predictions" in capsys.readouterr().out
