"""The table and the page of a review, from results written by hand."""

import csv
from pathlib import Path

from handful.curation.calibration import Calibration
from handful.curation.quality import CaseQuality, LabelQuality
from handful.curation.signals import Signals
from handful.evaluation.evaluate import Failure
from handful.reports.review_page import ReviewResult, write_review

NAN = float("nan")


def case(name: str, ball: float, egg: float, flags: tuple[str, ...] = ()) -> CaseQuality:
    signals = Signals(confidence=0.5, consistency=NAN, reverse=0.25)
    return CaseQuality(
        name,
        (
            LabelQuality(label=1, name="ball", predicted_dice=ball, signals=signals, size=12.5, flags=flags),
            LabelQuality(label=3, name="egg", predicted_dice=egg, signals=signals, size=0.125, flags=()),
        ),
    )


def result(*cases: CaseQuality, failures: tuple[Failure, ...] = (), calibrated: bool = False) -> ReviewResult:
    calibration = Calibration(weights={}, usual={}, offsets={}, cases=3, error=0.07) if calibrated else None
    return ReviewResult(cases, (), failures, ("case-0", "case-1"), calibration)


def written(folder: Path, found: ReviewResult, pictured: int) -> tuple[list[dict[str, str]], str]:
    table, page = write_review(folder, found, found.cases[:pictured])
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), page.read_text(encoding="utf-8")


def test_the_table_has_one_line_per_case_and_label_the_worst_first(tmp_path: Path):
    rows, _ = written(tmp_path, result(case("a", 0.3, 0.9, ("empty", "too small")), case("b", 0.6, 0.2)), pictured=0)
    assert [(row["case"], row["name"], row["predicted_dice"]) for row in rows] == [
        ("b", "egg", "0.200"),
        ("a", "ball", "0.300"),
        ("b", "ball", "0.600"),
        ("a", "egg", "0.900"),
    ]
    assert rows[1]["flags"] == "empty; too small"
    assert (rows[1]["confidence"], rows[1]["consistency"], rows[1]["reverse"]) == ("0.500", "", "0.250")
    assert (rows[1]["size"], rows[1]["calibrated"]) == ("12.5", "no")


def test_the_page_shows_the_pictures_of_the_cases_it_was_given(tmp_path: Path):
    _, page = written(tmp_path, result(case("a b", 0.3, 0.9, ("empty",)), case("c", 0.6, 0.7)), pictured=1)
    assert '<img src="pictures/a%20b.png"' in page
    assert "pictures/c.png" not in page
    assert "The worst 1 of 2" in page
    assert "ball 0.30</b> · empty" in page


def test_names_and_reasons_are_escaped(tmp_path: Path):
    failed = Failure("<b>", "cut off & torn")
    _, page = written(tmp_path, result(case("<i>", 0.3, 0.9), failures=(failed,)), pictured=1)
    assert "<i>" not in page
    assert "&lt;b&gt;: cut off &amp; torn" in page


def test_only_a_calibrated_review_states_its_error(tmp_path: Path):
    plain, calibrated = (
        written(tmp_path, result(case("a", 0.3, 0.9), calibrated=calibrated), pictured=1)
        for calibrated in (False, True)
    )
    assert "0.07" not in plain[1]
    assert "± 0.07" in calibrated[1]
    assert [row["calibrated"] for row in calibrated[0]] == ["yes", "yes"]


def test_the_page_lists_three_hundred_lines_and_refers_to_the_table_for_the_rest(tmp_path: Path):
    cases = [case(f"case-{number}", 0.3, 0.9) for number in range(151)]
    rows, page = written(tmp_path, result(*cases), pictured=0)
    assert len(rows) == 302
    assert page.count("<tr>") == 1 + 300
    assert "the first 300 of 302; all are in review.csv" in page


def test_a_review_without_any_case_is_a_page_all_the_same(tmp_path: Path):
    rows, page = written(tmp_path, result(failures=(Failure("a", "no file"),)), pictured=0)
    assert rows == []
    assert "a: no file" in page
