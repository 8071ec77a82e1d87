"""The document of claims says what the committed results say, and verdicts follow their rules."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from handful.errors import SettingsError
from handful.evaluation.results import Result, write_results
from handful.experiments.plan import read_plan

ROOT = Path(__file__).parents[1]
NOISE = (-0.02, 0.01, 0.0, 0.02, -0.01, 0.015, -0.015)


@pytest.fixture(scope="module")
def load():
    """Imports a module of benchmarks/."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def claims(load) -> ModuleType:
    return load("claims")


@pytest.fixture(scope="module")
def measured(load):
    """Evidence of {(data set, arm, shots): mean Dice}, three draws of seven cases each."""
    evidence = load("claims_evidence")

    def made(means: dict[tuple[str, str, int], float], noise: float = 1.0):
        pool = evidence.Pool("made up")
        for number, (point, mean) in enumerate(means.items()):
            for draw in range(3):
                for case in range(7):
                    off = noise * NOISE[(case + draw + 2 * number) % 7]
                    for measure in ("dice", "iou"):
                        pool.add(point, measure, draw, f"case-{case}", mean + off)
        return evidence.Evidence(plans=(pool,))

    return made


def verdict(claims: ModuleType, number: str, evidence) -> str:
    return next(one for one in claims.CLAIMS if one.number == number).figures(evidence).verdict


def heads(cnn: float, unet: float, simclr: float = 0.3) -> dict[tuple[str, str, int], float]:
    return {
        ("hearts", "AutoSAM ViT", 2): 0.7,
        ("hearts", "AutoSAM CNN", 2): cnn,
        ("hearts", "U-Net", 2): unet,
        ("hearts", "U-Net + SimCLR", 2): simclr,
    }


def test_every_document_is_what_the_committed_results_make_of_it(claims: ModuleType):
    evidence = claims.read_evidence(claims.RESULTS)
    for path, text in claims.documents(evidence).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date; run make claims"


def test_every_claim_has_a_row_and_without_results_none_is_judged(claims: ModuleType, measured):
    empty = measured({})
    text = claims.document(empty)
    assert len(claims.CLAIMS) == 19
    for claim in claims.CLAIMS:
        assert f"| [{claim.number}](#{claim.anchor}) |" in text
        assert claim.figures(empty).verdict == "not tested here"
    assert "not run yet" in text


def test_a_claim_holds_where_every_interval_supports_it(claims: ModuleType, measured):
    assert verdict(claims, "3.2", measured(heads(cnn=0.6, unet=0.4))) == "holds"


def test_a_claim_holds_in_part_where_one_comparison_fails(claims: ModuleType, measured):
    assert verdict(claims, "3.2", measured(heads(cnn=0.38, unet=0.4))) == "holds in part"


def test_a_claim_does_not_hold_where_all_comparisons_fail(claims: ModuleType, measured):
    assert verdict(claims, "3.2", measured(heads(cnn=0.6, unet=0.8, simclr=0.8))) == "does not hold"


def test_a_difference_that_cannot_be_told_from_nothing_does_not_support(claims: ModuleType, measured):
    means = {("hearts", "FATE", 4): 0.601, ("hearts", "zero-shot, box", 4): 0.6}
    assert verdict(claims, "2.1", measured(means)) == "does not hold"
    assert verdict(claims, "2.1", measured(means, noise=0.0)) == "holds"


def test_a_comparison_that_is_missing_keeps_a_claim_from_holding(claims: ModuleType, measured):
    means = heads(cnn=0.6, unet=0.4)
    del means["hearts", "U-Net + SimCLR", 2]
    assert verdict(claims, "3.2", measured(means)) == "holds in part"


def test_more_labels_than_few_decide_nothing(claims: ModuleType, measured):
    many = {(name, arm, 20): score for (name, arm, _), score in heads(cnn=0.3, unet=0.8).items()}
    assert verdict(claims, "3.2", measured(heads(cnn=0.6, unet=0.4) | many)) == "holds"


@pytest.mark.parametrize(("ours", "expected"), [(0.79, "holds"), (0.77, "does not hold")])
def test_as_good_as_means_within_the_margin(claims: ModuleType, measured, ours: float, expected: str):
    means = {("hearts", "few-shot prompts", 2): ours, ("hearts", "U-Net", 20): 0.8, ("hearts", "U-Net", 10): 0.5}
    assert verdict(claims, "1.2", measured(means, noise=0.0)) == expected


@pytest.mark.parametrize(("ours", "expected"), [(0.6, "holds"), (0.5, "holds in part"), (0.3, "does not hold")])
def test_fifty_percent_is_part_of_the_first_claim(claims: ModuleType, measured, ours: float, expected: str):
    readers = {("hearts", reader, 4): 0.38 for reader in ("reader: 1 point", "reader: 3 points")}
    assert verdict(claims, "1.1", measured({("hearts", "few-shot prompts", 4): ours} | readers)) == expected


def test_the_fewest_labels_that_match_a_unet_are_of_those_tried(load, measured):
    curve = {("hearts", "FATE", n): score for n, score in ((1, 0.5), (2, 0.61), (4, 0.6), (8, 0.75))}
    unet = {("hearts", "U-Net", 8): 0.6, ("hearts", "U-Net", 16): 0.9, ("livers", "U-Net", 4): 0.9}
    text = load("claims_tables").matches(measured(curve | unet, noise=0.0))
    assert "| livers | 4 (0.900) | more than tried |" in text
    assert "**livers**" not in text, "one number makes no sentence"
    assert "| hearts | 8 (0.600) | **2** | FATE (0.610) |" in text
    assert "trained on 16 labelled cases (0.900), handful needs more than the 16 that were tried" in text


def test_the_time_to_a_dice_is_that_of_the_shortest_fit_that_reached_it(load):
    evidence = load("claims_evidence")
    pool = evidence.Pool("made up")
    fits = {"U-Net, 50 steps": (0.5, 10), "U-Net, 100 steps": (0.7, 20), "FATE, 0 steps": (0.6, 1)}
    fits |= {"AutoSAM CNN, 50 steps": (0.7, 15), "AutoSAM CNN, 100 steps": (0.72, 30)}
    for arm, (dice, seconds) in fits.items():
        pool.add(("hearts", arm, 4), "dice", 0, "case", dice)
        pool.add(("hearts", arm, 4), "fit_s", 0, "case", seconds)
    text = load("claims_tables").time_to_dice(evidence.Evidence(plans=(pool,)), [])
    assert "| arm | 0 steps | 50 steps | 100 steps | Dice 0.700 after |" in text
    assert "| AutoSAM CNN | – | 0.700, 15 s | 0.720, 30 s | 15 s |" in text
    assert "| U-Net | – | 0.500, 10 s | 0.700, 20 s | 20 s |" in text
    assert "| FATE | 0.600, 1 s | – | – | not reached |" in text


def test_a_glance_shows_the_arms_with_four_labelled_cases(load, measured):
    means = {("hearts", "FATE", 4): 0.6, ("hearts", "U-Net", 4): 0.7, ("hearts", "FATE", 8): 0.8}
    text = load("claims_tables").glance(measured(means, noise=0.0), [])
    assert "| hearts | 4 | – | 0.600 [0.600, 0.600] | – | – | 0.700 [0.700, 0.700] |" in text


def test_all_methods_stand_in_one_table_and_what_was_measured_in_another(load, measured):
    means = {("hearts", "FATE", 4): 0.6, ("hearts", "U-Net", 4): 0.7, ("hearts", "FATE", 16): 0.8}
    evidence = measured(means | {("livers", "U-Net", 5): 0.5}, noise=0.0)
    scores = evidence.plans[0].scores["hearts", "FATE", 4]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] == 0}
    tables = load("claims_tables")
    assert tables.methods(evidence, ["4", "5"]).splitlines() == [
        "| arm | hearts, 4 | livers, 5 |",
        "| --- | --- | --- |",
        "| FATE | 0.600 (1) | – |",
        "| U-Net | 0.700 | 0.500 |",
    ]
    assert tables.measured(evidence, []).splitlines()[2:] == ["| FATE | 4 (1), 16 | – |", "| U-Net | 4 | 5 |"]


def test_curves_are_of_sets_with_at_least_three_numbers_of_labels(load, measured):
    means = {("hearts", "AutoSAM CNN", n): 0.6 for n in (1, 2, 4)} | {("livers", "AutoSAM CNN", 4): 0.5}
    text = load("claims_tables").auto_sam(measured(means, noise=0.0), [])
    assert "**hearts**, Dice" in text
    assert "livers" not in text


def test_a_cell_of_fewer_draws_says_so(load, measured):
    evidence = measured({("hearts", "FATE", 1): 0.5, ("hearts", "U-Net", 1): 0.6}, noise=0.0)
    scores = evidence.plans[0].scores["hearts", "FATE", 1]
    scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] == 0}
    text = load("claims_tables").label_efficiency(evidence, ["hearts"])
    assert "| FATE | 0.500 [0.500, 0.500] (1 draw) |" in text
    assert "| U-Net | 0.600 [0.600, 0.600] |" in text


def test_a_vote_stands_beside_those_who_vote(load, measured):
    means = {("hearts", "ensemble", 1): 0.8, ("hearts", "U-Net", 1): 0.7, ("hearts", "U-Net", 4): 0.75}
    text = load("claims_tables").ensemble(measured(means, noise=0.0), [])
    assert text.splitlines()[2:] == [
        "| hearts | 1 | ensemble | 0.800 [0.800, 0.800] |  | 3 |",
        "| hearts | 1 | U-Net | 0.700 [0.700, 0.700] | +0.100 [+0.100, +0.100] | 3 |",
    ]


def test_a_table_is_written_between_its_markers_and_again_the_same(load, measured):
    tables = load("claims_tables")
    evidence = measured({("hearts", "FATE", 1): 0.5, ("hearts", "FATE", 2): 0.6}, noise=0.0)
    text = "before\n<!-- table: label_efficiency hearts -->\nold\n<!-- end -->\nafter\n"
    once = tables.with_tables(text, tables.TABLES, evidence, "page.md")
    assert "| FATE | 0.500 [0.500, 0.500] | 0.600 [0.600, 0.600] |" in once
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("<!-- end -->\nafter\n")
    assert tables.with_tables(once, tables.TABLES, evidence, "page.md") == once


def test_a_table_of_benchmarks_shows_all_arms_on_the_same_cases(load, tmp_path: Path):
    plain = {"set": "hearts", "shots": 4, "draw": 0, "digest": "d", "hd95": [1.0, 1.0]}
    lines = [
        plain | {"arm": "fate", "cases": ["a", "b"], "dice": [0.5, 0.7]},
        plain | {"arm": "nearest-slice", "cases": ["b", "c"], "dice": [0.4, 0.9]},
    ]
    (tmp_path / "label_efficiency.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    evidence = load("claims_evidence").read_evidence(tmp_path)
    text = load("claims_tables").label_efficiency(evidence, ["hearts"])
    assert "| FATE | 0.700 |" in text
    assert "| nearest slice | 0.400 |" in text


def test_only_pages_with_markers_are_rewritten(claims: ModuleType, measured, tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- table: claims docs/claims.md -->\n<!-- end -->\n", "utf-8")
    (tmp_path / "docs" / "plain.md").write_text("nothing\n", "utf-8")
    found = claims.documents(measured({}), tmp_path)
    assert sorted(path.name for path in found) == ["README.md", "claims.md"]
    assert "| [4.4](docs/claims.md#claim-4-4) |" in found[tmp_path / "README.md"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: labels -->\n<!-- end -->\n", "page.md: there is no table 'labels'"),
        ("<!-- table: fate -->\nno end\n", "page.md: a table's marker is not closed"),
    ],
)
def test_a_wrong_marker_is_named(load, measured, text: str, said: str):
    tables = load("claims_tables")
    with pytest.raises(SettingsError, match=said):
        tables.with_tables(text, tables.TABLES, measured({}), "page.md")


def test_a_table_of_results_is_read_with_missed_labels_and_without_absent_ones(load, tmp_path: Path):
    rows = [row(1, "scored", 0.8), row(2, "missed", 0.0), row(3, "absent", 1.0)]
    write_results(rows, tmp_path / "hearts.parquet")
    (pool,) = load("claims_evidence").read_evidence(tmp_path).plans
    assert pool.scores["hearts", "FATE", 4]["dice"] == {(0, "case-0"): pytest.approx(0.4)}
    assert pool.scores["hearts", "FATE", 4]["hd95"] == {(0, "case-0"): pytest.approx(12.5)}


def asked(arm: str, dice: float, spread: float, **changes: object) -> dict[str, object]:
    """A line of the interactive study."""
    plain: dict[str, object] = {
        "part": "clicks",
        "set": "hearts",
        "fitted_on": "hearts",
        "arm": arm,
        "shots": 4,
        "draw": 0,
        "cases_most": 6,
        "slices": 6,
        "seeds": 2,
        "most": 10,
        "reader": "mixed",
        "iterations": 0 if arm == "backbone" else 300,
        "digest": "d",
        "cases": [f"case-{n}" for n in range(6)],
        "dice_1": [dice] * 6,
        "dice_3": [dice] * 6,
        "sensitivity_1": [spread] * 6,
    }
    return plain | changes


@pytest.fixture
def study(load, tmp_path: Path):
    """Evidence of lines of the interactive study."""

    def made(*lines: dict[str, object]):
        (tmp_path / "interactive.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return load("claims_evidence").read_evidence(tmp_path)

    return made


@pytest.mark.parametrize(("spread", "expected"), [(0.1, "holds"), (0.25, "holds in part"), (0.4, "does not hold")])
def test_less_spread_is_better(claims: ModuleType, study, spread: float, expected: str):
    centre = asked("interactive:prompts=centre", 0.7, 0.2)
    evidence = study(asked("backbone", 0.6, 0.3), centre, asked("interactive", 0.7, spread))
    assert verdict(claims, "4.2", evidence) == expected


def test_what_was_fitted_elsewhere_is_compared_there_with_what_was_not_fitted(claims: ModuleType, study):
    here = [asked("backbone", 0.6, 0.3), asked("interactive", 0.1, 0.3)]
    arms = {"interactive": 0.7, "interactive:prompts=centre": 0.65}
    moved = [asked(arm, dice, 0.3, fitted_on="livers") for arm, dice in arms.items()]
    assert verdict(claims, "4.3", study(*here, *moved)) == "holds"
    assert verdict(claims, "4.3", study(*here)) == "not tested here"


@pytest.mark.parametrize(
    ("dice", "steps", "expected"),
    [(0.69, 170, "holds"), (0.69, 280, "holds in part"), (0.6, 280, "does not hold")],
)
def test_pruning_is_as_good_only_with_fewer_steps(claims: ModuleType, study, dice: float, steps: int, expected: str):
    scores = {"none": 0.7, "cbdp": dice}
    lines = [
        asked(f"interactive:pruning.rule={rule}", score, 0.3, part="pruning", steps=steps, fraction=steps / 300)
        for rule, score in scores.items()
    ]
    assert verdict(claims, "4.1", study(*lines)) == expected


@pytest.mark.parametrize(("alone", "expected"), [([3.0, 3.2, 2.9], "holds"), ([1.5, 0.6, 0.8], "does not hold")])
def test_one_pass_is_judged_round_by_round(claims: ModuleType, load, tmp_path: Path, alone: list[float], expected: str):
    times = {"all classes in one pass": [1.0, 1.1, 0.9], "one pass a class": alone}
    lines = [json.dumps({"variant": name, "core_s": core, "side": 64, "classes": 4}) for name, core in times.items()]
    (tmp_path / "auto_sam_speed.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert verdict(claims, "3.4", load("claims_evidence").read_evidence(tmp_path)) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "claims").glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_of_the_claims_can_be_read(path: Path):
    assert read_plan(path, Path("data")).arms


def row(label: int, status: str, dice: float) -> Result:
    distance = math.nan if status == "absent" else 25 * (1 - dice) if status == "missed" else 0.0
    return Result(
        experiment="trial",
        data_set="hearts",
        arm="FATE",
        shots=4,
        draw=0,
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
        reader="",
        backbone="handful-tiny",
        backbone_sha256="ab",
        seed=None,
        support="[]",
        device="cpu",
        handful="0.1.0",
        cell="cd",
    )
