"""Tables say what the results say, and only between their markers."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from handful.errors import SettingsError
from handful.evaluation.results import Result, write_results
from reproduction import tables
from reproduction.document import documents
from reproduction.evidence import FIRST, NARROW, Evidence, Pool, difference, read_evidence
from reproduction.markdown import UNMEASURED, with_tables

Measured = Callable[..., Evidence]


def test_a_difference_is_of_the_pool_with_the_most_shared_splits():
    few, many, as_many = Pool("few"), Pool("many"), Pool("as many")
    for pool, splits, gap in ((few, 1, 0.1), (many, 3, 0.2), (as_many, 3, 0.3)):
        for split in range(splits):
            pool.add(("hearts", "FATE", 4), "dice", split, "a", 0.5 + gap)
            pool.add(("hearts", "U-Net", 4), "dice", split, "a", 0.5)
    for pools in ((few, many, as_many), (many, as_many, few)):
        one = difference(pools, "hearts", ("FATE", 4), ("U-Net", 4))
        assert one is not None
        assert (one.pool, one.splits) == ("many", 3)
        assert one.estimate.mean == pytest.approx(0.2)
    assert difference((few,), "hearts", ("FATE", 4), ("U-Net", 8)) is None


def test_the_fewest_labels_that_match_a_unet_are_of_those_tried(measured: Measured):
    curve = {("hearts", "FATE", n): score for n, score in ((1, 0.5), (2, 0.61), (4, 0.6), (8, 0.75))}
    unet = {("hearts", "U-Net", 8): 0.6, ("hearts", "U-Net", 16): 0.9, ("livers", "U-Net", 4): 0.9}
    text = tables.matches(measured(curve | unet, noise=0.0))
    assert "| livers | 4 (0.900) | not shown |" in text
    assert "**livers**" not in text, "one number makes no sentence"
    assert "| hearts | 8 (0.600) | **2** | FATE (0.610) |" in text
    assert "trained on 16 labelled cases (0.900), handful needs more than the 16 that were tried" in text
    assert "that were tried: 1." in text


def test_a_method_matches_a_unet_only_if_it_is_shown_to_be_no_worse(measured: Measured):
    means = {("hearts", "FATE", 2): 0.6, ("hearts", "FATE", 4): 0.6, ("hearts", "U-Net", 4): 0.61}
    evidence = measured(means, noise=0.0)
    few = evidence.plans[0].scores["hearts", "FATE", 2]["dice"]
    few.update({(split, case): value + (split - 1) * 0.05 for (split, case), value in few.items()})
    assert "| hearts | 4 (0.610) | **4** | FATE (0.600) |" in tables.matches(evidence), "0.01 less is no worse"


def test_the_time_to_a_dice_is_that_of_the_shortest_fit_that_reached_it():
    pool = Pool("made up")
    fits = {"U-Net, 50 steps": (0.5, 10), "U-Net, 100 steps": (0.7, 20), "FATE, 0 steps": (0.6, 1)}
    fits |= {"AutoSAM CNN, 50 steps": (0.7, 15), "AutoSAM CNN, 100 steps": (0.72, 30)}
    for configuration, (dice, seconds) in fits.items():
        pool.add(("hearts", configuration, 4), "dice", 0, "case", dice)
        pool.add(("hearts", configuration, 4), "fit_s", 0, "case", seconds)
    text = tables.time_to_dice(Evidence(plans=(pool,)), [])
    assert "| configuration | 0 steps | 50 steps | 100 steps | Dice 0.700 after |" in text
    assert "| AutoSAM CNN | – | 0.700, 15 s | 0.720, 30 s | 15 s |" in text
    assert "| U-Net | – | 0.500, 10 s | 0.700, 20 s | 20 s |" in text
    assert "| FATE | 0.600, 1 s | – | – | not reached |" in text


def test_a_glance_shows_the_configurations_with_four_labelled_cases(measured: Measured):
    means = {("hearts", "FATE", 4): 0.6, ("hearts", "U-Net", 4): 0.7, ("hearts", "FATE", 8): 0.8}
    text = tables.glance(measured(means, noise=0.0), [])
    assert "| hearts | 4 | – | 0.600 [0.600, 0.600] | – | – | 0.700 [0.700, 0.700] |" in text


def test_all_methods_stand_in_one_table_and_what_was_measured_in_another(measured: Measured):
    means = {("hearts", "FATE", 4): 0.6, ("hearts", "U-Net", 4): 0.7, ("hearts", "FATE", 16): 0.8}
    evidence = measured(means | {("livers", "U-Net", 5): 0.5}, noise=0.0)
    scores = evidence.plans[0].scores["hearts", "FATE", 4]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] == 0}
    assert tables.methods(evidence, ["4", "5"]).splitlines() == [
        "| configuration | hearts, 4 | livers, 5 |",
        "| --- | --- | --- |",
        "| FATE | 0.600 (1) | – |",
        "| U-Net | 0.700 | 0.500 |",
    ]
    assert tables.measured(evidence, []).splitlines()[2:] == ["| FATE | 4 (1), 16 | – |", "| U-Net | 4 | 5 |"]


def test_curves_are_of_sets_with_at_least_three_numbers_of_labels(measured: Measured):
    means = {("hearts", "AutoSAM CNN", n): 0.6 for n in (1, 2, 4)} | {("livers", "AutoSAM CNN", 4): 0.5}
    text = tables.auto_sam(measured(means, noise=0.0), [])
    assert "**hearts**, Dice" in text
    assert "livers" not in text


def test_fate_is_shown_on_random_cases_alone():
    few, many, old = Pool("few"), Pool("many"), Pool(f"old, unseen cases: {FIRST}")
    for pool, shots, dice in ((few, (4, 16), 0.5), (many, (1, 2, 4), 0.6), (old, (1, 2, 4, 8), 0.9)):
        for n in shots:
            for split in range(3):
                pool.add(("hearts", "FATE", n), "dice", split, f"case-{split}", dice)
    text = tables.fate_shots(Evidence(plans=(few,), studies=(many, old)), [])
    assert "| configuration | 1 labelled | 2 labelled | 4 labelled |" in text, "the source with most numbers"
    assert "0.600 [0.600, 0.600]" in text
    assert "0.9" not in text


def test_a_cell_of_fewer_splits_is_marked(measured: Measured):
    evidence = measured({("hearts", "FATE", 1): 0.5, ("hearts", "U-Net", 1): 0.6}, noise=0.0)
    scores = evidence.plans[0].scores["hearts", "FATE", 1]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] == 0}
    text = tables.label_efficiency(evidence, ["hearts"])
    assert "| FATE | 0.500 (1 split) |" in text
    assert "| U-Net | 0.600 [0.600, 0.600] |" in text


def test_an_ensemble_is_listed_with_its_members(measured: Measured):
    means = {("hearts", "ensemble", 1): 0.8, ("hearts", "U-Net", 1): 0.7, ("hearts", "U-Net", 4): 0.75}
    text = tables.ensemble(measured(means, noise=0.0), [])
    assert text.splitlines()[2:] == [
        "| hearts | 1 | ensemble | 0.800 [0.800, 0.800] |  |  | 3 |",
        "| hearts | 1 | U-Net | 0.700 [0.700, 0.700] | +0.100 [+0.100, +0.100] | +0.100, +0.100, +0.100 | 3 |",
    ]


def test_a_difference_over_fewer_splits_than_its_row_is_marked(measured: Measured):
    evidence = measured({("hearts", "ensemble", 1): 0.8, ("hearts", "U-Net", 1): 0.7}, noise=0.0)
    scores = evidence.plans[0].scores["hearts", "ensemble", 1]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] > 0}
    assert "| +0.100 [+0.100, +0.100] (2 shared splits) | +0.100, +0.100 | 3 |" in tables.ensemble(evidence, [])


def test_the_summary_compares_methods_on_the_splits_that_they_share(measured: Measured):
    means = {("acdc", "ensemble", 1): 0.8, ("acdc", "U-Net", 1): 0.7, ("acdc", "U-Net", 5): 0.9}
    evidence = measured(means, noise=0.0)
    scores = evidence.plans[0].scores["acdc", "ensemble", 1]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] > 0}
    unet = evidence.plans[0].scores["acdc", "U-Net", 1]["dice"]
    unet.update({key: 0.1 for key in unet if key[0] == 0})
    (row,) = tables.summary(evidence, []).splitlines()[2:]
    assert row == ("| heart, cine MR | 1 | – | – | – | 0.70 | 0.80 | `ensemble` +0.100 | 2 |"), (
        "the split that the ensemble lacks counts for nobody; with 5 labelled cases there is nothing to compare"
    )


def test_the_summary_marks_a_narrow_unet(measured: Measured):
    evidence = measured({("acdc", "ensemble", 1): 0.8, ("acdc", "U-Net", 1): 0.7, ("acdc", NARROW, 1): 0.6}, noise=0.0)
    assert "| 0.70 | 0.80 |" in tables.summary(evidence, [])
    wide = evidence.plans[0].scores["acdc", "U-Net", 1]
    wide["dice"] = {key: value for key, value in wide["dice"].items() if key[0] == 0}
    assert "| 0.60 (8 channels) | 0.80 | `ensemble` +0.200" in tables.summary(evidence, [])


def test_a_table_is_written_between_its_markers_and_again_the_same(measured: Measured):
    evidence = measured({("hearts", "FATE", 1): 0.5, ("hearts", "FATE", 2): 0.6}, noise=0.0)
    text = "before\n<!-- table: label_efficiency hearts -->\nold\n<!-- end -->\nafter\n"
    once = with_tables(text, tables.TABLES, evidence, "page.md")
    assert "| FATE | 0.500 [0.500, 0.500] | 0.600 [0.600, 0.600] |" in once
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("<!-- end -->\nafter\n")
    assert with_tables(once, tables.TABLES, evidence, "page.md") == once


def test_a_table_of_studies_shows_all_configurations_on_the_same_cases(tmp_path: Path):
    plain = {"set": "hearts", "shots": 4, "split": 0, "digest": "d", "hd95": [1.0, 1.0]}
    lines = [
        plain | {"configuration": "fate", "cases": ["a", "b"], "dice": [0.5, 0.7]},
        plain | {"configuration": "nearest-slice", "cases": ["b", "c"], "dice": [0.4, 0.9]},
    ]
    (tmp_path / "label_efficiency.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    evidence = read_evidence(tmp_path)
    text = tables.label_efficiency(evidence, ["hearts"])
    assert "| FATE | 0.700 |" in text
    assert "| nearest slice | 0.400 |" in text


def test_the_plan_of_a_study_comes_before_its_lines(tmp_path: Path):
    write_results([row(1, "scored", 0.8)], tmp_path / "fate.parquet")
    line = {"set": "hearts", "shots": 4, "split": 0, "digest": "d", "configuration": "fate", "cases": ["a"]}
    (tmp_path / "label_efficiency.jsonl").write_text(json.dumps(line | {"dice": [0.5], "hd95": [1.0]}) + "\n", "utf-8")
    evidence = read_evidence(tmp_path)
    assert evidence.plans == ()
    lines = "studies with weights d, unseen cases: first by name"
    assert [pool.name for pool in evidence.studies] == ["fate.parquet", lines]


def test_only_pages_with_markers_are_rewritten(measured: Measured, tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- table: claims docs/claims.md -->\n<!-- end -->\n", "utf-8")
    (tmp_path / "docs" / "plain.md").write_text("nothing\n", "utf-8")
    found = documents(measured({}), tmp_path)
    assert sorted(path.name for path in found) == ["README.md", "claims.md"]
    assert "| [4.4](docs/claims.md#claim-4-4) |" in found[tmp_path / "README.md"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: labels -->\n<!-- end -->\n", "page.md: there is no table 'labels'"),
        ("<!-- table: fate -->\nno end\n", "page.md: a table's marker is not closed"),
    ],
)
def test_a_wrong_marker_is_named(measured: Measured, text: str, said: str):
    with pytest.raises(SettingsError, match=said):
        with_tables(text, tables.TABLES, measured({}), "page.md")


def test_a_table_of_results_is_read_with_missed_labels_and_without_absent_ones(tmp_path: Path):
    rows = [row(1, "scored", 0.8), row(2, "missed", 0.0), row(3, "absent", 1.0)]
    write_results(rows, tmp_path / "hearts.parquet")
    (pool,) = read_evidence(tmp_path).plans
    assert pool.scores["hearts", "FATE", 4]["dice"] == {(0, "case-0"): pytest.approx(0.4)}
    assert pool.scores["hearts", "FATE", 4]["hd95"] == {(0, "case-0"): pytest.approx(12.5)}


def test_prompts_from_the_reference_stand_in_tables_of_their_own(tmp_path: Path):
    rows = [
        replace(row(1, "scored", dice=case / 10), case=f"case-{case}", configuration="1 box", contrast=1 - case / 10)
        for case in range(1, 10)
    ]
    write_results(rows, tmp_path / "zero_shot.parquet")
    evidence = read_evidence(tmp_path)
    assert evidence.plans == ()
    assert tables.prompted(evidence, []).splitlines()[2:] == ["| hearts | 9 | 0.500 |"]
    assert tables.prompted(evidence, ["contrast"]).splitlines()[2:] == ["| 1 box | 0.800 | 0.500 | 0.200 | -1.00 |"]
    assert tables.prompted(Evidence(), []) == UNMEASURED


def row(label: int, status: str, dice: float) -> Result:
    distance = math.nan if status == "absent" else 25 * (1 - dice) if status == "missed" else 0.0
    return Result(
        experiment="trial",
        data_set="hearts",
        configuration="FATE",
        shots=4,
        split=0,
        case="case-0",
        label=label,
        name=f"label {label}",
        status=status,
        dice=dice,
        iou=dice / (2 - dice),
        hd95=distance,
        assd=distance,
        surface_dice=dice,
        reference_volume=1.0,
        predicted_volume=1.0,
        unit="mm",
        tolerance=1.0,
        failure="",
        predict_s=1.0,
        fit_s=1.0,
        peak_mib=1.0,
        method="fate",
        settings="{}",
        annotator="",
        backbone="handful-tiny",
        backbone_sha256="ab",
        seed=None,
        support="[]",
        device="cpu",
        handful="0.1.0",
        trial="cd",
    )


def test_planes_are_compared_split_by_split():
    pool = Pool("planes")
    for split, dice in ((5, 0.8), (6, 0.6)):
        pool.add(("msd_hippocampus", "one plane", 4), "dice", split, "a", dice)
    assert "| hippocampus, MR | 4 | one plane | 0.700 | 0.800, 0.600 |" in tables.planes(
        Evidence(own={"planes": pool}), []
    )


def test_scribbles_are_told_from_as_many_and_fewer_masks():
    pool = Pool("scribbles")
    for configuration, n, dice in (("U-Net, masks", 20, 0.8), ("U-Net, scribbles", 20, 0.7), ("U-Net, masks", 1, 0.5)):
        pool.add(("busi", configuration, n), "dice", 0, "case", dice)
    shown = tables.scribbles(Evidence(own={"scribbles": pool}), []).splitlines()
    assert shown[2:] == [
        "| breast lesions, ultrasound | U-Net | 1 mask | 0.500 | 0.500 |",
        "| breast lesions, ultrasound | U-Net | 20 masks | 0.800 | 0.800 |",
        "| breast lesions, ultrasound | U-Net | 20 scribbles | 0.700 | 0.700 |",
    ]


def test_adapters_are_listed_by_labelled_cases():
    pool = Pool("volume_adapter")
    for configuration, n, dice in (("U-Net", 8, 0.8), ("MA-SAM", 4, 0.7)):
        pool.add(("acdc", configuration, n), "dice", 0, "case", dice)
    shown = tables.volume_adapter(Evidence(own={"volume_adapter": pool}), []).splitlines()
    assert shown[2:] == [
        "| heart, cine MR | 4 | MA-SAM | 0.700 | 0.700 |",
        "| heart, cine MR | 8 | U-Net | 0.800 | 0.800 |",
    ]
    assert tables.volume_adapter(Evidence(), []) == tables.scribbles(Evidence(), []) == "(not measured yet)"


def test_auto_needs_the_fewest_labels_with_which_it_is_no_worse_than_a_unet(measured: Measured):
    means = {("acdc", "auto", 1): 0.6, ("acdc", "auto", 5): 0.85, ("acdc", "auto", 8): 0.9}
    means |= {("acdc", "U-Net", 5): 0.7, ("acdc", "U-Net", 20): 0.86, ("acdc", "U-Net", 40): 0.95}
    text = tables.how_many(Evidence(curves=measured(means, noise=0.0).plans))
    rows = {row.split(" | ")[1]: row for row in text.splitlines() if row.startswith("| heart")}
    assert "| **5** (+0.150" in rows["5"]
    assert "| – | 0.860" in rows["20"]
    assert re.search(r"\| \*\*5\*\* \(.0\.010", rows["20"])
    assert "| not shown |" in rows["40"]
    assert "| – | – |" in rows["1"], "a U-Net with one was not measured"


def test_fits_that_differ_by_their_seed_also_have_a_mean():
    def line(seed: int, scored: str, dice: float) -> dict[str, object]:
        rows = [{"case": case, "dice": dice} for case in "ab"]
        what = {"configuration": "self-training", "labelled": "3", "scored": scored, "seed": seed, "digest": "d"}
        return what | {"rows": rows, "dice_of_labels": {"wall": dice}, "fit_core_s": 3600 * (1 + seed)}

    lines = (line(0, "val", 0.8), line(1, "val", 0.9), line(2, "left_out", 0.5))
    rows = tables.semi_supervised(Evidence(lines={"semi_supervised": lines}), []).splitlines()[2:]
    assert [row.split(" | ")[3] for row in rows] == ["2", "0", "1", "0, 1"]  # left out first
    assert rows[3].split(" | ")[4].startswith("0.850 [")
    assert rows[3].endswith("| wall 0.850 | 1.50 |")
    again = [line(0, "val", 0.8), line(0, "val", 0.8) | {"digest": "other weights"}]
    assert len(tables.semi_supervised(Evidence(lines={"semi_supervised": tuple(again)}), []).splitlines()[2:]) == 2


def test_settings_of_fate_are_shown_on_random_unseen_cases_where_these_are_measured():
    line = {"set": "hearts", "configuration": "fate", "shots": 4, "most_cases": 1, "digest": "d", "cases": ["a"]}
    line |= {"hd95": [1.0], "absent": [[4, 1, 8]]}
    old = [line | {"split": split, "dice": [0.2]} for split in (0, 1)]
    new = [line | {"split": 0, "dice": [0.6], "unseen": "random"}]
    assert "| `fate` | 0.200 [" in _fate(old)
    assert "| `fate` | 0.600 | 1.0 | 25 %, 2 voxels | 1 | 1 |" in _fate([*old, *new])


def _fate(lines: list[dict[str, object]]) -> str:
    return tables.fate_configurations(Evidence(lines={"label_efficiency": tuple(lines)}), ["hearts"])
