"""The table on the terminal and the three files."""

import csv
import io
import json
import stat
from dataclasses import replace

import pytest
from rich.console import Console

from handful.evaluation.evaluate import Failure, Files, Report, score_case
from handful.reports.score_tables import print_table, write_csv, write_json, write_nnunet_summary


@pytest.fixture
def report(label_map, cube) -> Report:
    """Ann: liver two thirds right, spleen absent. Bob: liver right, spleen missed. Eve could not be read."""
    rows = (
        *score_case("ann", label_map({1: cube(k=2)}), label_map({1: cube()})),
        *score_case("bob", label_map({1: cube()}), label_map({1: cube(), 2: cube(i=7)})),
    )
    files = {"ann": Files("out/ann.nii.gz", "truth/ann.nii.gz")}
    return Report(rows=rows, failures=(Failure("eve", "truth/eve.nii.gz [cut off]"),), files=files)


def printed(report: Report, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_table(report, console)
    return console.file.getvalue()


def test_table_has_a_line_a_label_and_their_mean(report):
    lines = printed(report).splitlines()
    liver, spleen, mean = (next(line for line in lines if name in line) for name in ("liver ", "spleen ", "mean "))
    assert "0.833 [0.667, 1.000]" in liver
    assert "0 of 2" in liver
    assert "1 of 1" in spleen
    assert "1 of 3" in mean


def test_table_names_the_failed_cases_as_they_are_written(report):
    assert "failed eve: truth/eve.nii.gz [cut off]" in printed(report)


def test_table_states_what_was_left_out_and_the_tolerance(report):
    text = " ".join(printed(report).split())
    assert "absent from both maps (left out): 1" in text
    assert "surface Dice, 1 mm" in text


def test_table_of_one_case_shows_no_interval(label_map, cube):
    text = printed(Report(rows=tuple(score_case("ann", label_map({1: cube(k=2)}), label_map({1: cube()})))))
    assert "0.667" in text
    assert "[" not in next(line for line in text.splitlines() if "liver" in line)


def test_csv_has_a_line_a_row_and_empty_cells_for_what_is_undefined(report, tmp_path):
    write_csv(report, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["case"], line["name"], line["status"]) for line in lines] == [
        ("ann", "liver", "scored"),
        ("ann", "spleen", "absent"),
        ("bob", "liver", "scored"),
        ("bob", "spleen", "missed"),
    ]
    assert float(lines[0]["dice"]) == pytest.approx(2 / 3)
    assert lines[1]["hd95"] == ""
    assert lines[3]["n_ref"] == "27"


def test_json_holds_rows_summary_and_failures_and_no_nan(report, tmp_path):
    write_json(report, tmp_path / "scores.json")
    text = (tmp_path / "scores.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["format"] == 2
    assert content["tolerance_mm"] == 1.0
    assert content["rows"][1]["hd95"] is None
    assert [entry["name"] for entry in content["summary"]] == ["liver", "spleen", "mean"]
    assert content["summary"][0]["estimates"]["dice"]["mean"] == pytest.approx(5 / 6)
    assert content["failures"] == [{"case": "eve", "reason": "truth/eve.nii.gz [cut off]"}]


def test_nnunet_summary_has_its_form(report, tmp_path):
    write_nnunet_summary(report, tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert set(content) == {"metric_per_case", "mean", "foreground_mean"}
    ann, bob = content["metric_per_case"]
    assert (ann["reference_file"], ann["prediction_file"]) == ("truth/ann.nii.gz", "out/ann.nii.gz")
    assert bob["reference_file"] == "bob"
    counts = {"FP": 9, "TP": 18, "FN": 9, "TN": 924, "n_pred": 27, "n_ref": 27}
    assert ann["metrics"]["1"] == {"Dice": pytest.approx(2 / 3), "IoU": 0.5} | counts
    assert ann["metrics"]["2"]["Dice"] is None
    assert bob["metrics"]["2"]["Dice"] == 0
    assert content["mean"]["1"]["Dice"] == pytest.approx(5 / 6)
    assert content["mean"]["2"]["Dice"] == 0
    assert content["foreground_mean"]["Dice"] == pytest.approx(5 / 12)


@pytest.mark.parametrize("write", [write_csv, write_json, write_nnunet_summary])
def test_a_file_is_replaced_whole_and_readable_by_others(write, report, tmp_path):
    path = tmp_path / "deep" / "file"
    write(report, path)
    first = path.read_bytes()
    write(Report(rows=()), path)
    assert path.read_bytes() != first
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & stat.S_IROTH


def test_table_fits_a_terminal_of_eighty_columns_without_cutting_a_number(report):
    ventricles = tuple(replace(row, name="right ventricle" if row.label == 1 else "myocardium") for row in report.rows)
    text = printed(replace(report, rows=ventricles), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "[0.667, 1.000]" in text
    assert "[0.654, 1.000]" in text
    assert "…" not in text
