"""The tables of the study of continual learning."""

from reproduction.studies.continual import ROUTED, tables


def routing(split: int, wrong: str | None = None) -> dict[str, object]:
    """A line in which every scan gets its own expert, but for one scan of the first data set."""
    picked = [{name: {"a": name, "b": name} for name in ROUTED[:number]} for number in range(2, len(ROUTED) + 1)]
    if wrong:
        picked[-1][ROUTED[0]]["a"] = wrong
    return {"part": "routing", "split": split, "picked": picked, "margins": {name: [0.5, 0.7] for name in ROUTED}}


def test_right_and_wrong_experts_are_counted_over_the_splits():
    text = tables([routing(0), routing(1, wrong=ROUTED[3])])
    assert f"| {ROUTED[0]} | 3 of 4 | {ROUTED[3]} (1) | 0.60 | 0.50 |" in text
    assert f"| {ROUTED[1]} | 4 of 4 | – | 0.60 | 0.50 |" in text
    assert f"| 2 | {ROUTED[1]} | 8 of 8 |" in text
    assert f"| {len(ROUTED)} | {ROUTED[-1]} | {4 * len(ROUTED) - 1} of {4 * len(ROUTED)} |" in text


def test_what_earlier_tasks_lose_is_the_change_since_they_were_learned():
    steps = [
        {"task": "acdc", "own": {"acdc": [0.8, 0.6]}, "fit_core_s": 1.0},
        {"task": "cxr", "own": {"acdc": [0.4, 0.2], "cxr": [0.9]}, "fit_core_s": 1.0},
    ]
    line = {"part": "naive", "configuration": "unet", "order": "forward", "split": 0, "steps": steps}
    text = tables([line])
    assert "| unet, one net | forward | 0 | acdc | acdc 0.700 | – | – |" in text
    assert "| unet, one net | forward | 0 | cxr | acdc 0.300, cxr 0.900 | -0.400 | – |" in text
