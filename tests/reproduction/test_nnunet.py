"""nnU-Net's label maps are scored with the cohort's values; a small program takes the place of nnU-Net."""

import sys
from pathlib import Path

import pytest

from handful.data.files import read_cohort
from handful.data.nnunet import export_nnunet
from handful.data.support import SupportSet
from reproduction.studies import nnunet
from reproduction.studies.nnunet import mean_dice, measured, tables
from small_cohort import write_cohort

PROGRAM = """
import json, shutil, sys
from pathlib import Path

folder = Path(sys.argv[1])
scans = sorted((folder / "raw" / "Dataset501_handful" / "imagesTs").iterdir())
(folder / "predicted").mkdir()
for scan, answer in zip(scans, {answers!r}, strict=True):
    shutil.copy(answer, folder / "predicted" / scan.name.replace("_0000", ""))
times = {{"steps": 50, "batch": 2, "fit_core_s": 60.0, "predict_core_s": 1.5}}
(folder / "times.json").write_text(json.dumps(times))
"""


@pytest.fixture
def divided(tmp_path: Path) -> tuple[SupportSet, SupportSet]:
    """Labelled cases and test cases."""
    cohort = read_cohort(write_cohort(tmp_path / "data", cases=4))
    assert cohort.labels is not None
    return SupportSet(cohort.cases[:2], cohort.labels), SupportSet(cohort.cases[2:], cohort.labels)


@pytest.mark.parametrize(("order", "lowest", "highest"), [(1, 1.0, 1.0), (-1, 0.1, 0.95)])
def test_label_maps_are_scored_with_the_values_of_the_cohort(
    order: int, lowest: float, highest: float, tmp_path: Path, divided: tuple[SupportSet, SupportSet]
):
    """nnU-Net calls the labels 1 and 2; with the references as answers all are right, with those of other cases not."""
    support, tests = divided
    assert support.labels.values == (1, 3)
    references = export_nnunet(tests, tmp_path / "references").folder / "labelsTr"
    answers = [str(path) for path in sorted(references.iterdir())][::order]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(answers=answers), "utf-8")
    found = measured([sys.executable, str(program)], support, tests.cases, "2d", 20.0, 0)
    assert found["support"] == ["case-0", "case-1"]
    assert [list(labels) for labels in found["dice"].values()] == [list(support.labels.names)] * 2
    assert lowest <= mean_dice(found) <= highest


def test_the_table_has_a_row_for_each_training():
    line = {"set": "busi", "configuration": "2d", "steps": 50, "batch": 2, "fit_core_s": 60.0, "predict_core_s": 1.5}
    line |= {"dice": {"a": {"lesion": 0.5}, "b": {"lesion": 1.0}}}
    text = tables([line | {"split": split} for split in (0, 1)])
    assert all(f"| busi | 2d | {split} | 2 | 0.750 | 50 | 2 | 1 | 1.5 |" in text for split in (0, 1))


def test_tables_are_printed_without_an_environment_of_nnu_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["nnunet", "--table", "--out", str(tmp_path / "nothing.jsonl")])
    nnunet.main()
    assert "| data set | nnU-Net | split |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["nnunet", "--data", str(tmp_path), "--sets", "busi"])
    with pytest.raises(SystemExit, match="--python"):
        nnunet.main()
