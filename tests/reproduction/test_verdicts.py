"""Verdicts follow their rules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handful.evaluation.evaluate import Estimate
from handful.experiments.plan import read_plan
from reproduction.claims import CLAIMS
from reproduction.document import document
from reproduction.evidence import Evidence, read_evidence
from reproduction.parts import ROOT
from reproduction.verdicts import VOTES, Figure, Finding, Vote

Measured = Callable[..., Evidence]
FromLines = Callable[..., Evidence]


def verdict(number: str, evidence: Evidence) -> str:
    return next(one for one in CLAIMS if one.number == number).figures(evidence).verdict


def heads(cnn: float, unet: float, simclr: float = 0.3) -> dict[tuple[str, str, int], float]:
    return {
        ("hearts", "AutoSAM ViT", 2): 0.7,
        ("hearts", "AutoSAM CNN", 2): cnn,
        ("hearts", "U-Net", 2): unet,
        ("hearts", "U-Net + SimCLR", 2): simclr,
    }


def test_every_claim_has_a_row_and_without_results_none_is_judged(measured: Measured):
    empty = measured({})
    text = document(empty)
    assert len(CLAIMS) == 19
    for claim in CLAIMS:
        assert f"| [{claim.number}](#{claim.anchor}) |" in text
        assert claim.figures(empty).verdict == "not tested here"
    assert "not run yet" in text


def test_a_claim_holds_where_every_interval_supports_it(measured: Measured):
    assert verdict("3.2", measured(heads(cnn=0.6, unet=0.4))) == "holds"


def test_a_claim_holds_in_part_where_more_than_chance_gives_is_for_it(measured: Measured):
    assert verdict("3.2", measured(heads(cnn=0.38, unet=0.4))) == "holds in part"


def test_a_claim_is_refuted_where_comparisons_are_against_it(measured: Measured):
    assert verdict("3.2", measured(heads(cnn=0.6, unet=0.8, simclr=0.8))) == "refuted here"


def test_a_difference_that_may_be_zero_decides_nothing(measured: Measured):
    means = {("hearts", "FATE", 4): 0.601, ("hearts", "zero-shot, box", 4): 0.6}
    assert verdict("2.1", measured(means)) == "undecided"
    assert verdict("2.1", measured(means, noise=0.0)) == "holds"


def test_one_split_decides_nothing(measured: Measured):
    evidence = measured({("hearts", "FATE", 4): 0.9, ("hearts", "zero-shot, box", 4): 0.1})
    for scores in evidence.plans[0].scores.values():
        scores["dice"] = {key: value for key, value in scores["dice"].items() if key[0] == 0}
    assert verdict("2.1", evidence) == "undecided"


def finding(supporting: int, against: int, undecided: int) -> Finding:
    votes: list[Vote] = [*["for"] * supporting, *["against"] * against, *["undecided"] * undecided]
    return Finding(tuple(Figure("hearts", "a − b", "", Estimate(0.0, 0.0, 0.0, 0.0), vote) for vote in votes))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0), "not tested here"),
        ((1, 0, 0), "holds"),
        ((4, 0, 8), "holds in part"),
        ((1, 24, 15), "refuted here"),  # one in forty is what chance gives
        ((0, 1, 0), "refuted here"),
        ((4, 7, 1), "mixed"),
        ((2, 2, 0), "mixed"),
        ((1, 0, 39), "undecided"),
        ((0, 1, 39), "undecided"),
        ((0, 0, 4), "undecided"),
    ],
)
def test_a_verdict_follows_from_three_counts(counts: tuple[int, int, int], expected: str):
    found = finding(*counts)
    assert tuple(found.count(vote) for vote in VOTES) == counts
    assert found.verdict == expected


def test_the_overview_shows_the_three_counts(measured: Measured):
    (row,) = [line for line in document(measured(heads(cnn=0.38, unet=0.4))).splitlines() if "[3.2]" in line]
    assert row.endswith("| -0.023 to +0.399 | 3 | 1 | 0 | **holds in part** |")


def test_a_comparison_that_is_missing_keeps_a_claim_from_holding(measured: Measured):
    means = heads(cnn=0.6, unet=0.4)
    del means["hearts", "U-Net + SimCLR", 2]
    assert verdict("3.2", measured(means)) == "holds in part"


def test_more_labels_than_few_decide_nothing(measured: Measured):
    many = {(name, configuration, 20): score for (name, configuration, _), score in heads(cnn=0.3, unet=0.8).items()}
    assert verdict("3.2", measured(heads(cnn=0.6, unet=0.4) | many)) == "holds"


@pytest.mark.parametrize(("ours", "expected"), [(0.79, "holds"), (0.77, "refuted here")])
def test_as_good_as_means_within_the_margin(measured: Measured, ours: float, expected: str):
    means = {("hearts", "few-shot prompts", 2): ours, ("hearts", "U-Net", 20): 0.8, ("hearts", "U-Net", 10): 0.5}
    assert verdict("1.2", measured(means, noise=0.0)) == expected


@pytest.mark.parametrize(("ours", "expected"), [(0.6, "holds"), (0.5, "mixed"), (0.3, "refuted here")])
def test_fifty_percent_is_part_of_the_first_claim(measured: Measured, ours: float, expected: str):
    annotators = {("hearts", annotator, 4): 0.38 for annotator in ("annotator: 1 point", "annotator: 3 points")}
    assert verdict("1.1", measured({("hearts", "few-shot prompts", 4): ours} | annotators)) == expected


def asked(configuration: str, dice: float, spread: float, **changes: object) -> dict[str, object]:
    """A line of the interactive study."""
    plain: dict[str, object] = {
        "part": "clicks",
        "set": "hearts",
        "fitted_on": "hearts",
        "configuration": configuration,
        "shots": 4,
        "split": 0,
        "cases_most": 6,
        "slices": 6,
        "seeds": 2,
        "most": 10,
        "annotator": "mixed",
        "iterations": 0 if configuration == "backbone" else 300,
        "digest": "d",
        "cases": [f"case-{n}" for n in range(6)],
        "dice_1": [dice] * 6,
        "dice_3": [dice] * 6,
        "sensitivity_1": [spread] * 6,
    }
    return plain | changes


def splits(line: dict[str, object]) -> list[dict[str, object]]:
    """The line in three splits with other cases."""
    return [line | {"split": n, "cases": [f"case-{6 * n + case}" for case in range(6)]} for n in range(3)]


@pytest.mark.parametrize(("spread", "expected"), [(0.1, "holds"), (0.25, "mixed"), (0.4, "refuted here")])
def test_less_spread_is_better(study: FromLines, spread: float, expected: str):
    lines = [asked("backbone", 0.6, 0.3), asked("interactive:prompts=centre", 0.7, 0.2)]
    lines.append(asked("interactive", 0.7, spread))
    assert verdict("4.2", study(*[one for line in lines for one in splits(line)])) == expected
    assert verdict("4.2", study(*lines)) == "undecided", "one split has no interval"


def test_what_was_fitted_elsewhere_is_compared_there_with_what_was_not_fitted(study: FromLines):
    here = [asked("backbone", 0.6, 0.3), asked("interactive", 0.1, 0.3)]
    configurations = {"interactive": 0.7, "interactive:prompts=centre": 0.65}
    moved = [asked(configuration, dice, 0.3, fitted_on="livers") for configuration, dice in configurations.items()]
    assert verdict("4.3", study(*[one for line in (*here, *moved) for one in splits(line)])) == "holds"
    assert verdict("4.3", study(*here)) == "not tested here"


@pytest.mark.parametrize(
    ("dice", "steps", "random", "expected"),
    [
        (0.69, 170, 0.6, "holds"),
        (0.69, 170, 0.69, "holds in part"),  # leaving out samples at random is as good
        (0.69, 280, 0.6, "holds in part"),
        (0.6, 170, 0.65, "refuted here"),
    ],
)
def test_pruning_has_to_be_better_than_its_controls(
    study: FromLines, dice: float, steps: int, random: float, expected: str
):
    scores = {"pruning.rule=none": 0.7, "pruning.rule=cbdp": dice}
    scores |= {"pruning.rule=random": random, "train.iterations=170": random if dice == 0.6 else 0.6}
    lines = [
        asked(f"interactive:{rule}", score, 0.3, part="pruning", steps=steps, fraction=steps / 300)
        for rule, score in scores.items()
    ]
    assert verdict("4.1", study(*[one for line in lines for one in splits(line)])) == expected


def test_pruning_without_its_controls_does_not_hold(study: FromLines):
    scores = {"none": 0.7, "cbdp": 0.7}
    lines = [
        asked(f"interactive:pruning.rule={rule}", score, 0.3, part="pruning", steps=170, fraction=0.56)
        for rule, score in scores.items()
    ]
    evidence = study(*[one for line in lines for one in splits(line)])
    assert verdict("4.1", evidence) == "holds in part"
    (claim,) = [one for one in CLAIMS if one.number == "4.1"]
    assert any("a plain training of as many steps" in one for one in claim.figures(evidence).missing)


def test_what_is_random_comes_before_the_first_by_name(study: FromLines):
    old, new = asked("backbone", 0.6, 0.3), asked("interactive", 0.7, 0.3)
    first = [line | {"dice_1": [0.1] * 6} for line in (old, new)]
    pools = study(*first, old | {"unseen": "random"}, new | {"unseen": "random"}).clicks
    assert [pool.name.rpartition(": ")[2] for pool in pools] == ["random", "first by name"]
    assert set(pools[0].scores["hearts", "backbone", 4]["dice_1"].values()) == {0.6}


def test_figures_of_the_first_cases_by_name_are_counted(study: FromLines):
    lines = [asked("backbone", 0.6, 0.3), asked("interactive", 0.7, 0.2)]
    told = "Figures whose unseen cases are the first by name, not random ones: 2."
    assert told in document(study(*lines))
    page = document(study(*[line | {"unseen": "random"} for line in lines]))
    assert told not in page
    assert "Studies that have some: no study." in page


@pytest.mark.parametrize(
    ("published", "expected"),
    [([1.0, 1.1, 0.9], "holds"), ([3.1, 2.9, 3.0], "undecided"), ([3.5, 3.4, 3.6], "refuted here")],
)
def test_the_published_head_is_judged_round_by_round(tmp_path: Path, published: list[float], expected: str):
    times = {"cached, faithful head": published, "one pass a class": [3.0, 3.1, 2.95]}
    times["all classes in one pass"] = [0.8, 0.8, 0.8]
    lines = [json.dumps({"variant": name, "core_s": core, "side": 64, "classes": 4}) for name, core in times.items()]
    (tmp_path / "auto_sam_speed.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert verdict("3.4", read_evidence(tmp_path)) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "reproduction" / "plans").glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_of_the_claims_can_be_read(path: Path):
    assert read_plan(path, Path("data")).configurations
