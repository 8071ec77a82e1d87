"""`handful experiment` and `handful compare`, as typed."""

import csv
import json
from pathlib import Path

import pytest

from small_cohort import Handful


@pytest.fixture
def plan(cohort: Path, backbone: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(f"""
        name = "Two ways"
        shots = [1, 2]
        splits = [0]
        backbone = "{backbone}"
        [data.phantoms]
        folder = "{cohort.name}"
        [configurations.nearest]
        method = "nearest-slice"
        [configurations.carried]
        method = "zero-shot"
    """)
    return path


@pytest.mark.parametrize("command", ["run", "status", "report"])
def test_every_command_teaches_by_an_example(command: str, handful: Handful):
    result = handful("experiment", command, "--help")
    assert result.exit_code == 0
    assert f"Example: handful experiment {command}" in " ".join(result.output.split())


def test_a_plan_becomes_a_table_and_a_report(plan: Path, cohort: Path, tmp_path: Path, handful: Handful):
    out = tmp_path / "out"
    run = ("experiment", "run", plan, "-o", out, "--data", cohort.parent, "--workers", "1", "-q")
    result = handful(*run)
    assert result.exit_code == 0, result.output
    assert "4 of 4 fits" in result.stdout
    assert f"report: {out / 'report.html'}" in result.stdout
    with (out / "results.csv").open() as file:
        assert {(row["configuration"], row["shots"]) for row in csv.DictReader(file)} == {
            (configuration, shots) for configuration in ("nearest", "carried") for shots in "12"
        }
    again = json.loads(handful(*run, "--json").stdout)
    assert (again["fits"], again["done"], again["missing"], again["failed"]) == (4, 4, [], [])

    status = handful("experiment", "status", out)
    assert "Two ways: 4 of 4 fits done" in status.stdout
    next((out / "trials").iterdir()).unlink()
    assert len(json.loads(handful("experiment", "status", out, "--json").stdout)["missing"]) == 1

    files = json.loads(handful("experiment", "report", out, "--latex", "--json").stdout)["files"]
    assert {Path(file).name for file in files} >= {"results.csv", "tables.md", "tables.tex", "report.html"}
    assert "Not complete: 3 of 4 fits done." in (out / "report.html").read_text()

    elsewhere = ("experiment", "run", plan, "-o", tmp_path / "elsewhere", "--data", cohort.parent, "--workers", "1")
    result = handful(*elsewhere, "--known", out / "results.csv")
    assert "1 of 4 fits to do" in result.stderr
    assert "4 of 4 fits" in result.stdout


def test_a_mistake_in_the_plan_is_named_and_exits_with_2(plan: Path, tmp_path: Path, handful: Handful):
    plan.write_text(plan.read_text().replace("zero-shot", "zero-shto"))
    result = handful("experiment", "run", plan, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no method 'zero-shto'; did you mean 'zero-shot'" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_fit_that_fails_exits_with_3_and_is_in_the_report(plan: Path, cohort: Path, tmp_path: Path, handful: Handful):
    plan.write_text(plan.read_text().replace('method = "nearest-slice"', 'method = "nearest-slice"\nannotator = "box"'))
    out = tmp_path / "out"
    result = handful("experiment", "run", plan, "-o", out, "--data", cohort.parent, "--workers", "1", "-q")
    assert result.exit_code == 3
    assert "failed phantoms, nearest, 1 labelled, split 0" in " ".join(result.stderr.split())
    assert "Fit failed: phantoms, nearest, 1 labelled, split 0." in (out / "report.html").read_text()


def test_compare_takes_one_command(cohort: Path, backbone: Path, tmp_path: Path, handful: Handful):
    out = tmp_path / "out"
    chosen = ("--methods", "nearest-slice,zero-shot", "--shots", "1", "--splits", "1", "--workers", "1", "-q")
    result = handful("compare", "-i", cohort, "-o", out, "--backbone", backbone, *chosen, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["title"] == "Methods on phantoms"
    assert (out / "report.html").read_text().count("<h1>Methods on phantoms</h1>") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shots", "one"), "'one' is not a whole number"),
        (("--methods", "fates"), "did you mean 'fate'"),
        (("--shots", "4"), "nothing to measure: phantoms with 4 labelled"),
    ],
)
def test_a_mistake_in_compare_exits_with_2(
    arguments: tuple[str, ...], said: str, cohort: Path, tmp_path: Path, handful: Handful
):
    result = handful("compare", "-i", cohort, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_files_of_a_data_set_that_are_not_read_are_named(own: Path, backbone: Path, tmp_path: Path, handful: Handful):
    (own / "images" / "scan.mgz").write_bytes(b"a format that is not read")
    line = ("compare", "-i", own, "-o", tmp_path / "out", "--methods", "nearest-slice", "--shots", "1", "--splits", "1")
    result = handful(*line, "--cases", "1", "--workers", "1", "--backbone", backbone, "-q", "--json")
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)
    assert (found["failed"], [one["file"] for one in found["files_left_out"]]) == ([], ["images/scan.mgz"])
    assert "left out images/scan.mgz" in result.stderr
