"""Verdicts follow their rules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handful.experiments.plan import read_plan
from reproduction.claims import CLAIMS
from reproduction.document import document
from reproduction.evidence import Evidence, read_evidence
from reproduction.parts import ROOT

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


def test_a_claim_holds_in_part_where_one_comparison_fails(measured: Measured):
    assert verdict("3.2", measured(heads(cnn=0.38, unet=0.4))) == "holds in part"


def test_a_claim_does_not_hold_where_all_comparisons_fail(measured: Measured):
    assert verdict("3.2", measured(heads(cnn=0.6, unet=0.8, simclr=0.8))) == "does not hold"


def test_a_difference_that_may_be_zero_does_not_support_a_claim(measured: Measured):
    means = {("hearts", "FATE", 4): 0.601, ("hearts", "zero-shot, box", 4): 0.6}
    assert verdict("2.1", measured(means)) == "does not hold"
    assert verdict("2.1", measured(means, noise=0.0)) == "holds"


def test_a_comparison_that_is_missing_keeps_a_claim_from_holding(measured: Measured):
    means = heads(cnn=0.6, unet=0.4)
    del means["hearts", "U-Net + SimCLR", 2]
    assert verdict("3.2", measured(means)) == "holds in part"


def test_more_labels_than_few_decide_nothing(measured: Measured):
    many = {(name, configuration, 20): score for (name, configuration, _), score in heads(cnn=0.3, unet=0.8).items()}
    assert verdict("3.2", measured(heads(cnn=0.6, unet=0.4) | many)) == "holds"


@pytest.mark.parametrize(("ours", "expected"), [(0.79, "holds"), (0.77, "does not hold")])
def test_as_good_as_means_within_the_margin(measured: Measured, ours: float, expected: str):
    means = {("hearts", "few-shot prompts", 2): ours, ("hearts", "U-Net", 20): 0.8, ("hearts", "U-Net", 10): 0.5}
    assert verdict("1.2", measured(means, noise=0.0)) == expected


@pytest.mark.parametrize(("ours", "expected"), [(0.6, "holds"), (0.5, "holds in part"), (0.3, "does not hold")])
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


@pytest.mark.parametrize(("spread", "expected"), [(0.1, "holds"), (0.25, "holds in part"), (0.4, "does not hold")])
def test_less_spread_is_better(study: FromLines, spread: float, expected: str):
    centre = asked("interactive:prompts=centre", 0.7, 0.2)
    evidence = study(asked("backbone", 0.6, 0.3), centre, asked("interactive", 0.7, spread))
    assert verdict("4.2", evidence) == expected


def test_what_was_fitted_elsewhere_is_compared_there_with_what_was_not_fitted(study: FromLines):
    here = [asked("backbone", 0.6, 0.3), asked("interactive", 0.1, 0.3)]
    configurations = {"interactive": 0.7, "interactive:prompts=centre": 0.65}
    moved = [asked(configuration, dice, 0.3, fitted_on="livers") for configuration, dice in configurations.items()]
    assert verdict("4.3", study(*here, *moved)) == "holds"
    assert verdict("4.3", study(*here)) == "not tested here"


@pytest.mark.parametrize(
    ("dice", "steps", "expected"),
    [(0.69, 170, "holds"), (0.69, 280, "holds in part"), (0.6, 280, "does not hold")],
)
def test_pruning_is_as_good_only_with_fewer_steps(study: FromLines, dice: float, steps: int, expected: str):
    scores = {"none": 0.7, "cbdp": dice}
    lines = [
        asked(f"interactive:pruning.rule={rule}", score, 0.3, part="pruning", steps=steps, fraction=steps / 300)
        for rule, score in scores.items()
    ]
    assert verdict("4.1", study(*lines)) == expected


@pytest.mark.parametrize(("alone", "expected"), [([3.0, 3.2, 2.9], "holds"), ([1.5, 0.6, 0.8], "does not hold")])
def test_one_pass_is_judged_round_by_round(tmp_path: Path, alone: list[float], expected: str):
    times = {"all classes in one pass": [1.0, 1.1, 0.9], "one pass a class": alone}
    lines = [json.dumps({"variant": name, "core_s": core, "side": 64, "classes": 4}) for name, core in times.items()]
    (tmp_path / "auto_sam_speed.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert verdict("3.4", read_evidence(tmp_path)) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "reproduction" / "plans").glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_of_the_claims_can_be_read(path: Path):
    assert read_plan(path, Path("data")).configurations
