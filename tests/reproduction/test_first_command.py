"""An earlier version's first command is measured on given cases, and compared with today's on the same ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.studies import result
from handful.evaluation.results import write_results
from reproduction import tables
from reproduction.evidence import Evidence, Pool, read_evidence
from reproduction.parts import ROOT
from reproduction.studies.first_command import measured
from small_cohort import write_cohort


def test_the_version_fits_the_labelled_cases_and_is_scored_on_the_others(tmp_path: Path):
    data = write_cohort(tmp_path / "data", cases=4)
    lines = measured(ROOT, "fit nearest-slice", data, ["case-0", "case-3"], ["case-1", "case-2"], tmp_path / "work")
    assert sorted({line["case"] for line in lines}) == ["case-1", "case-2"]
    assert {line["label"] for line in lines} == {1, 3}
    assert all(0.2 < line["dice"] < 1 for line in lines)
    assert sorted(path.name for path in (tmp_path / "work/cohort/labels").iterdir()) == [
        "case-0.nii.gz",
        "case-3.nii.gz",
    ]
    assert not list((tmp_path / "work/scans/labels").iterdir()), "references of test cases are not there"


def evidence(*cases: str, splits: int = 1) -> Evidence:
    now, shown = Pool("cohort"), {"set": "busi", "support": ["x", "y"], "label": 1, "command": "fit", "commit": "a"}
    lines = []
    for split in range(3):
        for case, dice in (("a", 0.8), ("b", 0.6)):
            now.add(("busi", "auto", 2), "dice", split, case, dice - 0.1 * split)
        for case, dice in zip(cases, (0.5, 0.4), strict=True):
            lines.append(shown | {"split": split, "case": case, "dice": dice})
    return Evidence(timed=(now,), lines={"first_command": tuple(line for line in lines if line["split"] < splits)})


def test_the_table_compares_the_same_cases_of_one_split():
    assert "| breast lesions, ultrasound | 2 | 2 | 0.450 | 0.700 | +0.250 | 1 |" in tables.first_command(
        evidence("a", "b"), []
    )


def test_three_splits_have_an_interval():
    row = tables.first_command(evidence("a", "b", splits=3), []).splitlines()[-1]
    assert "| 0.600 [" in row
    assert "| +0.150 [" in row
    assert row.endswith("| 3 |")


def test_other_test_cases_are_no_comparison():
    with pytest.raises(ValueError, match="other test cases of busi"):
        tables.first_command(evidence("a", "c"), [])


@pytest.mark.parametrize("key", ["command", "commit"])
def test_lines_of_another_command_or_version_are_not_mixed(key: str):
    found = evidence("a", "b")
    lines = found.raw("first_command")
    other = tuple(line | {key: "other", "dice": 0.0} for line in lines)
    with pytest.raises(ValueError, match=r"several commands.*other"):
        tables.first_command(replace(found, lines={"first_command": lines + other}), [])


def test_a_configuration_with_fewer_splits_than_others_says_so():
    three = evidence("a", "b").timed[0]
    three.add(("busi", "FATE", 2), "dice", 0, "a", 0.5)
    assert "| 0.500 (1 split) | 3 |" in tables.cohort(Evidence(timed=(three,)), [])


def test_reasons_are_quoted_from_the_first_split_that_has_them(tmp_path: Path):
    auto = {"configuration": "auto", "data_set": "busi"}
    rows = [
        result(**auto, split=0, trial="a"),
        result(**auto, split=2, trial="c", decisions='["chosen: fate"]'),
        result(**auto, split=1, trial="b", decisions='["chosen: unet", "no crop"]'),
        result(configuration="FATE", data_set="busi", trial="d", decisions='["no crop at all"]'),
    ]
    write_results(rows, tmp_path / "cohort.parquet")
    assert tables.reasons(read_evidence(tmp_path), ["auto"]) == (
        "*breast lesions, ultrasound*\n\n* chosen: unet\n* no crop"
    )
