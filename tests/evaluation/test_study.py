"""Results as a table on disk, and what a study says of them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.studies import absent, grid, result, study
from handful.errors import DamagedFile, SettingsError, UnsupportedInput
from handful.evaluation.results import COLUMNS, case_scores, read_results, write_results
from handful.evaluation.study import Study
from handful.reports.paper_tables import latex, markdown


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back_as_it_was_written(suffix: str, tmp_path: Path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = (result(case='a "quoted", name\nof two lines', dice=1 / 3), absent(seed=3, annotator="box"), result(label=2))
    path = tmp_path / f"results{suffix}"
    write_results(rows, path)
    found = read_results(path)
    assert math.isnan(found[1].hd95)
    assert [replace(row, hd95=0.0, assd=0.0) for row in found] == [replace(row, hd95=0.0, assd=0.0) for row in rows]
    assert [row.hd95 for row in found][::2] == [row.hd95 for row in rows][::2]


def test_a_table_of_an_earlier_version_lacks_properties_of_objects_and_decisions(tmp_path: Path):
    write_results([result(size_share=0.25)], tmp_path / "now.csv")
    head, row = (line.split(",") for line in (tmp_path / "now.csv").read_text().splitlines())
    assert read_results(tmp_path / "now.csv")[0].size_share == 0.25
    (tmp_path / "then.csv").write_text("\n".join(",".join(line[:-4]) for line in (head, row)) + "\n")
    assert math.isnan(read_results(tmp_path / "then.csv")[0].size_share)
    assert read_results(tmp_path / "then.csv")[0].decided == ()


def test_decisions_are_sentences(tmp_path: Path):
    write_results([result(decisions='["chosen: unet, in \\"time\\"", "no crop"]')], tmp_path / "results.csv")
    assert read_results(tmp_path / "results.csv")[0].decided == ('chosen: unet, in "time"', "no crop")
    write_results([result(decisions='"no crop"')], tmp_path / "results.csv")
    with pytest.raises(DamagedFile, match="decisions must be a list"):
        read_results(tmp_path / "results.csv")


def test_pandas_and_people_read_the_header(tmp_path: Path):
    write_results([result()], tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_another_table_is_no_table_of_results(tmp_path: Path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DamagedFile, match=r"other\.csv is not a table of results"):
        read_results(tmp_path / "other.csv")
    with pytest.raises(UnsupportedInput, match=r"\.csv or \.parquet"):
        write_results([], tmp_path / "results.xlsx")


def test_absent_labels_count_for_nothing_and_missed_ones_as_zero():
    rows = [result(dice=0.9), absent(label=2), result(label=3, dice=0.0, status="missed"), absent(case="empty")]
    assert case_scores(rows, "dice") == {"case-0": pytest.approx(0.45)}


def test_the_best_is_the_best_automatic_configuration():
    rows = grid(["fate", "unet"], lambda configuration, n, case: 0.8 if configuration == "fate" else 0.6)
    rows += grid(["oracle"], lambda configuration, n, case: 0.99, annotator="box")
    found = study(rows)
    assert [configuration for configuration, _ in found.ranking("hearts", 4)] == ["fate", "unet"]
    assert found.annotators == {"oracle"}


def test_distances_are_better_when_they_are_smaller():
    rows = grid(["near", "far"], lambda configuration, n, case: 0.9 if configuration == "near" else 0.2)
    assert [configuration for configuration, _ in study(rows, measures=("hd95",)).ranking("hearts", 1)] == [
        "near",
        "far",
    ]


def test_configurations_are_compared_in_the_splits_that_all_have():
    rows = grid(
        ["a", "b"], lambda configuration, n, case: (0.7 if configuration == "a" else 0.6) + 0.01 * case, shots=(2,)
    )
    # a has a fourth split, far worse, on the same cases: it says nothing about b
    rows += [result(configuration="a", shots=2, split=3, case=f"case-{case}", dice=0.0) for case in range(7)]
    ((one,),) = study(rows).comparisons("hearts")
    assert (one.n, one.difference.mean) == (7, pytest.approx(0.1))
    assert one.p == pytest.approx(2 / 2**7)


def test_annotators_are_compared_among_themselves():
    rows = grid(["a", "b"], lambda configuration, n, case: 0.5 + 0.01 * case)
    rows += grid(["box", "points"], lambda configuration, n, case: 0.9, annotator="box")
    families = study(rows).comparisons("hearts")
    assert [[(one.first, one.second) for one in family] for family in families] == [[("a", "b")], [("box", "points")]]


def test_how_few_labels_match_a_unet():
    scores = {
        "my net": {1: 0.5, 2: 0.6, 4: 0.7},
        "fate": {1: 0.65, 2: 0.66, 4: 0.69},  # with four, worse by less than the margin
        "weak": {1: 0.1, 2: 0.1, 4: 0.2},
    }
    rows = [
        *grid(["my net"], lambda configuration, n, case: scores[configuration][n], method="unet"),
        *grid(["fate", "weak"], lambda configuration, n, case: scores[configuration][n]),
    ]
    found = {match.shots: match.needed for match in study(rows).matches("hearts")}
    assert found == {1: {"fate": 1, "weak": None}, 2: {"fate": 1, "weak": None}, 4: {"fate": 4, "weak": None}}


def test_a_mean_that_is_better_by_chance_is_no_match():
    def score(configuration: str, shots: int, split: int) -> float:
        return 0.6 if configuration == "my net" else (0.5, 0.62, 0.8)[split]  # 0.64 in the mean

    rows = [
        result(configuration=name, method=method, shots=1, split=split, case=f"{case}", dice=score(name, 1, split))
        for name, method in (("my net", "unet"), ("fate", "fate"))
        for split in range(3)
        for case in range(7)
    ]
    assert [match.needed for match in study(rows).matches("hearts")] == [{"fate": None}]


def test_with_one_split_nothing_is_said_of_matches():
    rows = grid(["my net"], lambda configuration, n, case: 0.5, method="unet")
    rows += grid(["fate"], lambda configuration, n, case: 0.9)
    assert "needed to match" in markdown(study(rows))
    one = study([row for row in rows if row.split == 0])
    assert one.matches("hearts") == []
    assert "more than measured" not in markdown(one)


def test_labels_are_matched_on_the_split_and_cases_that_both_have():
    rows = grid(["my net"], lambda configuration, n, case: 0.6 + 0.01 * case, method="unet", shots=(2,))
    rows += grid(["fate"], lambda configuration, n, case: 0.55 + 0.01 * case, shots=(1, 2))
    # fate alone has an easy split and an easy case, which would lift its mean above that of the U-Net
    rows += [
        result(configuration="fate", shots=n, split=9, case=f"case-{case}", dice=1.0)
        for n in (1, 2)
        for case in range(7)
    ]
    rows += [result(configuration="fate", shots=n, split=0, case="easy", dice=1.0) for n in (1, 2)]
    found = study(rows)
    ours, theirs = (found.estimate("hearts", configuration, 2, "dice") for configuration in ("fate", "my net"))
    assert ours is not None
    assert theirs is not None
    assert ours.mean > theirs.mean
    assert [match.needed for match in found.matches("hearts")] == [{"fate": None}]


def test_configurations_are_compared_where_most_of_them_were_measured():
    rows = grid(["a", "b"], lambda configuration, n, case: 0.5) + grid(
        ["a"], lambda configuration, n, case: 0.5, shots=(8,)
    )
    assert study(rows).shared_shots("hearts") == 4


def test_cost_is_that_of_fits_and_cases_not_of_labels():
    rows = [
        result(label=k, fit_s=fit, split=split, predict_s=1.0, peak_mib=fit)
        for split, fit in ((0, 10.0), (1, 30.0))
        for k in range(5 * split + 1)
    ]
    cost = study(rows).cost("hearts", "fate", 1)
    assert cost is not None
    assert (cost.fit_s, cost.predict_s, cost.peak_mib) == (20.0, 1.0, 30.0)


def test_an_unknown_measure_is_refused():
    with pytest.raises(SettingsError, match="speed"):
        Study(title="x", results=(), measures=("speed",))


def test_markdown_has_every_configuration_and_keeps_its_columns():
    rows = grid(
        ["a|b", "c*d"], lambda configuration, n, case: 0.5 + 0.01 * case + (0.1 if configuration == "c*d" else 0)
    )
    text = markdown(study(rows))
    dice = text.split("**hearts: Dice**")[1].split("**")[0].strip().splitlines()
    assert dice[0] == "| configuration | 1 labelled | 2 labelled | 4 labelled |"
    assert [line.replace(r"\|", "").count("|") for line in dice] == [5] * 4
    assert dice[2].startswith(r"| a\|b | 0.530 \[")
    assert dice[3].startswith(r"| c\*d | 0.630 \[")
    assert r"| a\|b − c\*d | 7 | -0.100 \[-0.100, -0.100\] | 0.016 | 0.016 |" in text


def test_latex_escapes_what_latex_would_take_for_itself():
    text = latex(study(grid(["50% & more_", "b"], lambda configuration, n, case: 0.5 + 0.01 * case)))
    assert r"50\% \& more\_" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    rows = [line for line in text.splitlines() if line.startswith("50")]
    assert all(line.endswith(r" \\") for line in rows)
