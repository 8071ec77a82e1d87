"""The tables that documents show of the evidence, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from handful.evaluation.results import TITLES
from reproduction.evidence import (
    MEASURES,
    SECONDS,
    Evidence,
    Pool,
    Scores,
    balanced,
    difference,
    estimate,
    scores_of,
    sets_of,
    shared,
)
from reproduction.markdown import UNMEASURED, Render, count, interval, signed, table
from reproduction.studies import controls as controls_study
from reproduction.studies import fate_settings as fate_study
from reproduction.studies import foundation as foundation_study
from reproduction.studies import interactive_tables
from reproduction.studies import quality as quality_study
from reproduction.studies import suggest as suggest_study

OURS = (
    "few-shot prompts",
    "few-shot prompts, balanced",
    "FATE",
    "FATE, closer",
    "FATE, three planes",
    "AutoSAM ViT",
    "AutoSAM ViT, balanced",
    "AutoSAM CNN",
    "AutoSAM CNN, balanced",
    "AutoSAM linear",
    "AutoSAM linear, balanced",
    "AutoSAM linear, ReLU",
    "AutoSAM U-Net",
    "AutoSAM U-Net, balanced",
    "ensemble",
    "LoRA",
    "interactive",
)
BASELINE = "U-Net"
OTHERS = (BASELINE, "U-Net + SimCLR", "zero-shot, box", "U-Net, 16 channels", "U-Net, three seeds", "nearest slice")
READERS = (
    "reader: box",
    "reader: 1 point",
    "reader: 3 points",
    "reader: 5 points",
    "reader: 1 click",
    "reader: 3 clicks",
    "reader: 5 clicks",
)
"""They look at the truth of the scan that is scored: bounds for that much work, drawn dashed."""
ARMS = OURS + OTHERS + READERS

MATCHING = """The smallest number of labelled cases tried at which an arm's mean Dice is not below the U-Net's, over the
draws and unseen cases that both were scored on; nothing is interpolated, and of several arms the better one is named,
which flatters a little. Dice in brackets are over all draws of each."""

VOTERS = ("AutoSAM U-Net", BASELINE, "FATE, three planes", "FATE, closer", "U-Net, three seeds")
"""Arms of the plans that an ensemble is set beside: its members, and as many U-Nets."""

DRAWS = 3
"""Draws of the labelled cases that the plans ask for."""
CURVE = 3
"""Numbers of labelled cases that make a curve."""
STEPS = re.compile(r"(?P<arm>.+), (?P<steps>\d+) steps")
"""Arms that a plan trains for different times."""


def label_efficiency(evidence: Evidence, words: Sequence[str]) -> str:
    """Arms by numbers of labelled cases; of one data set, or of all of the plans."""
    known = sets_of(evidence.scans)
    chosen = [word for word in words if word not in MEASURES]
    if unknown := [one for one in chosen if one not in known]:
        return f"(not measured yet: {', '.join(unknown)})"
    measure = next((word for word in words if word in MEASURES), "dice")
    names = chosen or sets_of(evidence.plans)
    parts = [f"**{name}**, {TITLES[measure]}\n\n{_efficiency(evidence, name, measure)}" for name in names]
    return "\n\n".join(parts) or UNMEASURED


def _efficiency(evidence: Evidence, data_set: str, measure: str, arms: Sequence[str] = ARMS) -> str:
    # One table is of one source, so that its columns may be compared.
    pool = next(pool for pool in evidence.scans if data_set in sets_of([pool]))
    shots = sorted({n for name, arm, n in pool.scores if name == data_set and arm in arms})
    found = {n: {arm: scores_of([pool], data_set, arm, n, measure) for arm in arms} for n in shots}
    if pool in evidence.studies:  # a plan's arms see the same cases, benchmarks had more or fewer
        found = {n: shared(of_arms) for n, of_arms in found.items()}
    most = max((_draws(scores) for of_arms in found.values() for scores in of_arms.values()), default=0)
    rows = []
    for arm in arms:
        cells = [found[n].get(arm) for n in shots]
        if any(cells):
            rows.append((arm, *[_drawn(one, measure, most) if one else "–" for one in cells]))
    return table(("arm", *[f"{n} labelled" for n in shots]), rows)


def _drawn(scores: Scores, measure: str, most: int) -> str:
    """A cell that says of how many draws it is, where others are of more."""
    draws = _draws(scores)
    few = f" ({count(draws, 'draw')})" if draws < most else ""
    return interval(estimate(scores), measure) + few


def _draws(scores: Scores) -> int:
    return len({draw for draw, _ in scores})


def glance(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice of a few arms with four labelled cases, or five, a row a data set.

    Of the default loss and an earlier one the former is shown, unless the latter was measured in more draws.
    """
    arms = ("nearest slice", "FATE", "few-shot prompts", "AutoSAM U-Net", BASELINE)
    rows = []
    for name, (n, found) in _with_about(evidence, (4, 5), (*arms, *map(balanced, arms))).items():
        shown = [max(found.get(balanced(arm), {}), found.get(arm, {}), key=_draws) for arm in arms]
        most = max(_draws(scores) for scores in shown)
        rows.append((name, str(n), *[_drawn(scores, "dice", most) if scores else "–" for scores in shown]))
    return table(("data set", "labelled", *arms), rows) if rows else UNMEASURED


def methods(evidence: Evidence, words: Sequence[str]) -> str:
    """Mean Dice of every arm, a row, on every data set, a column, with about as many labelled cases as `words` say.

    Where not all of three draws were measured, their number stands behind.
    """
    about = tuple(int(word) for word in words)
    of_set = _with_about(evidence, about, ARMS)
    rows = []
    for arm in ARMS:
        scores = [found.get(arm) for _, found in of_set.values()]
        if any(scores):
            cells = [f"{estimate(one).mean:.3f}{_few(one)}" if one else "–" for one in scores]
            rows.append((arm, *cells))
    return table(("arm", *[f"{name}, {n}" for name, (n, _) in of_set.items()]), rows) if rows else UNMEASURED


def measured(evidence: Evidence, words: Sequence[str]) -> str:
    """Numbers of labelled cases that each arm, a row, was measured with on each data set, a column, by any source."""
    names = sets_of(evidence.scans)
    rows = []
    for arm in ARMS:
        cells = []
        for name in names:
            of_n: dict[int, Scores] = {}
            for pool in evidence.scans:
                for one, other, n in pool.scores:
                    if (one, other) == (name, arm):
                        of_n[n] = max(of_n.get(n, {}), scores_of([pool], name, arm, n), key=_draws)
            cells.append(", ".join(f"{n}{_few(scores)}" for n, scores in sorted(of_n.items())) or "–")
        if set(cells) != {"–"}:
            rows.append((arm, *cells))
    return table(("arm", *names), rows) if rows else UNMEASURED


def _few(scores: Scores) -> str:
    draws = _draws(scores)
    return f" ({draws})" if draws < DRAWS else ""


def _with_about(
    evidence: Evidence, about: Sequence[int], arms: Sequence[str]
) -> dict[str, tuple[int, dict[str, Scores]]]:
    """Of each data set the number of labels and the scores of the source that has the most arms, of one source each."""
    chosen = {}
    for name in sets_of(evidence.scans, arms):
        tried = [(pool, n) for n in about for pool in evidence.scans]
        pool, n = max(tried, key=lambda one: sum(bool(scores_of([one[0]], name, arm, one[1])) for arm in arms))
        found = {arm: scores_of([pool], name, arm, n) for arm in arms}
        if any(found.values()):
            chosen[name] = n, shared(found) if pool in evidence.studies else found
    return chosen


def fate(evidence: Evidence, words: Sequence[str]) -> str:
    """Training-free arms with four labelled volumes, one row per data set: first Dice, then HD95."""
    arms = ("nearest slice", "zero-shot, box", "FATE", "FATE, closer", "reader: 1 point", "reader: box")
    # One row is of one source, so that its columns may be compared.
    sources = {
        name: pool for pool in reversed(evidence.studies) for name, arm, n in pool.scores if (arm, n) == ("FATE", 4)
    }
    parts = []
    for measure, title in (("dice", "Dice"), ("hd95", "HD95")):
        rows = []
        for name, pool in sorted(sources.items()):
            found = shared({arm: scores_of([pool], name, arm, 4, measure) for arm in arms})
            rows.append([name, *[interval(estimate(found[arm]), measure) if arm in found else "–" for arm in arms]])
        parts.append(table((title, *arms), rows))
    return "\n\n".join(parts)


def fate_shots(evidence: Evidence, words: Sequence[str]) -> str:
    """FATE and the floor over the number of labelled volumes, one table per data set."""
    arms = ("nearest slice", "FATE", "FATE, closer")
    tables = []
    for name in sets_of(evidence.studies, ("FATE",)):
        pools = [(sorted(n for one, arm, n in p.scores if (one, arm) == (name, "FATE")), p) for p in evidence.studies]
        shots, pool = max(pools, key=lambda one: len(one[0]))
        found = {n: shared({arm: scores_of([pool], name, arm, n, "dice") for arm in arms}) for n in shots}
        if len(shots) > 1:
            rows = [
                [arm, *[interval(estimate(of[arm]), "dice") if arm in of else "–" for of in found.values()]]
                for arm in arms
                if any(arm in of for of in found.values())
            ]
            tables.append(f"**{name}**\n\n{table(('arm', *[f'{n} labelled' for n in shots]), rows)}")
    return "\n\n".join(tables) or UNMEASURED


def fate_settings(evidence: Evidence, words: Sequence[str]) -> str:
    """Each setting of FATE by itself, on the first draw of four volumes of the data sets that `words` name."""
    lines = [line for line in evidence.raw("label_efficiency") if line["set"] in words and line["shots"] == 4]
    return fate_study.by_setting([line for line in lines if line["draw"] == 0]) if lines else UNMEASURED


def fate_arms(evidence: Evidence, words: Sequence[str]) -> str:
    """All arms of FATE's study on one data set with four labelled cases."""
    lines = [line for line in evidence.raw("label_efficiency") if line["set"] in words and line["shots"] == 4]
    return fate_study.table_of(lines) if lines else UNMEASURED


def few_shot(evidence: Evidence, words: Sequence[str]) -> str:
    """The study of few-shot prompts: `methods` with the first weights, all `weights`, or the controls' `tokens`."""
    lines = evidence.raw("few_shot_prompts")
    made = {
        "methods": lambda: controls_study.methods_table(
            lines, next(iter(controls_study.WEIGHTS)), controls_study.METHODS
        ),
        "weights": lambda: controls_study.weights_table(lines),
        "tokens": lambda: controls_study.tokens_table(lines),
    }
    return made[words[0]]() if lines else UNMEASURED


def foundation(evidence: Evidence, words: Sequence[str]) -> str:
    """What the backbone that `words` name makes of prompts and memories, untrained."""
    lines = evidence.raw("foundation")
    return foundation_study.table_of(" ".join(words), lines) if lines else UNMEASURED


def auto_sam(evidence: Evidence, words: Sequence[str]) -> str:
    """The heads and few-shot prompts beside the U-Nets, two tables a data set of which there is a curve."""
    arms = tuple(arm for arm in OURS if arm.startswith(("AutoSAM", "few-shot"))) + OTHERS[:3]
    names = sets_with_curves(evidence)
    parts = [
        f"**{name}**, {TITLES[measure]}\n\n{_efficiency(evidence, name, measure, arms)}"
        for name in names
        for measure in ("dice", "hd95")
    ]
    return "\n\n".join(parts) or UNMEASURED


def ensemble(evidence: Evidence, words: Sequence[str]) -> str:
    """The vote beside those who vote and beside a vote of U-Nets, and by how much it differs from each."""
    rows = []
    for pool in evidence.plans:
        for name in sets_of([pool], ("ensemble",)):
            for shots in sorted(n for one, arm, n in pool.scores if (one, arm) == (name, "ensemble")):
                of = {arm: scores_of([pool], name, arm, shots) for arm in ("ensemble", *VOTERS)}
                found = {arm: scores for arm, scores in of.items() if scores}
                for arm, scores in found.items():
                    one = difference([pool], name, ("ensemble", shots), (arm, shots))
                    gap = signed(one.estimate) if one and arm != "ensemble" else ""
                    rows.append((name, str(shots), arm, interval(estimate(scores), "dice"), gap, str(_draws(scores))))
    heads = ("data set", "labelled", "arm", "Dice", "ensemble minus this", "draws")
    return table(heads, rows) if rows else UNMEASURED


def rates(evidence: Evidence, words: Sequence[str]) -> str:
    """What the learning rate is worth to the head 'cnn': its arm beside the one that learns twice as fast."""
    rows = [row[1:] for row in _beside(evidence, "AutoSAM CNN", "AutoSAM CNN, 2e-3")]
    heads = ("data set", "labelled", "Dice at 1e-3", "at 2e-3", "difference", "draws")
    return table(heads, rows) if rows else UNMEASURED


def losses(evidence: Evidence, words: Sequence[str]) -> str:
    """What the loss is worth to AutoSAM's heads: that of the batch, balanced, beside that of each slice, unweighted."""
    heads = [arm for arm in OURS if arm.startswith("AutoSAM") and ", " not in arm]
    pairs = [pair for arm in heads for pair in ((balanced(arm), arm), (arm, f"{arm}, slice"))]
    rows = [row for pair in pairs for row in _beside(evidence, *pair)]
    titles = ("arm", "data set", "labelled", "Dice by batch, balanced", "by slice", "difference", "draws")
    return table(titles, [(row[0].removesuffix(", balanced"), *row[1:]) for row in rows]) if rows else UNMEASURED


def prompts(evidence: Evidence, words: Sequence[str]) -> str:
    """What the defaults of few-shot prompts are worth beside what they were: the loss, the views, and both."""
    arm = "few-shot prompts"
    pairs = {
        "loss: by batch, balanced; by slice": [(f"{arm}, 16 views", f"{arm}, slice")],
        "views: 4; 16": [(arm, f"{arm}, 16 views")],
        "both": [(arm, f"{arm}, slice"), (balanced(arm), arm)],
    }
    rows = [(what, *row[1:]) for what, both in pairs.items() for pair in both for row in _beside(evidence, *pair)]
    return table(("what", "data set", "labelled", "now", "before", "difference", "draws"), rows) if rows else UNMEASURED


def _beside(evidence: Evidence, first: str, second: str) -> list[tuple[str, ...]]:
    """Two arms wherever one plan has both: their Dice, the difference and its draws."""
    rows = []
    for pool in evidence.plans:
        for name in sets_of([pool], (second,)):
            for shots in sorted(n for one, arm, n in pool.scores if (one, arm) == (name, second)):
                one = difference([pool], name, (first, shots), (second, shots))
                if one:
                    means = [f"{mean:.3f}" for mean in one.means]
                    rows.append((first, name, str(shots), *means, signed(one.estimate), str(one.draws)))
    return rows


def time_to_dice(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice and seconds of fits of few and of many steps, and after how long each arm is as good as the U-Net's best."""
    parts = []
    for pool in evidence.plans:
        for name in sets_of([pool]):
            tried: dict[str, dict[int, tuple[float, float]]] = {}
            for (data_set, arm, _), scores in pool.scores.items():
                if data_set == name and (found := STEPS.fullmatch(arm)):
                    point = estimate(scores["dice"]).mean, estimate(scores[SECONDS]).mean
                    tried.setdefault(found["arm"], {})[int(found["steps"])] = point
            if BASELINE in tried:
                parts.append(f"**{name}**\n\n{_times(tried)}")
    return "\n\n".join(parts) or UNMEASURED


def _times(tried: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    steps = sorted({n for points in tried.values() for n in points})
    best = max(dice for dice, _ in tried[BASELINE].values())
    rows = []
    for arm, points in tried.items():
        cells = [f"{points[n][0]:.3f}, {points[n][1]:.0f} s" if n in points else "–" for n in steps]
        reached = [seconds for dice, seconds in points.values() if dice >= best]
        rows.append((arm, *cells, f"{min(reached):.0f} s" if reached else "not reached"))
    return table(("arm", *[f"{n} steps" for n in steps], f"Dice {best:.3f} after"), rows)


def interactive(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice after prompts, prompts to a Dice, and spread over ways of asking."""
    measures = {
        "dice_1": "Dice after 1",
        "dice_3": "after 3",
        "dice_5": "after 5",
        "noc_85": "prompts to 0.85",
        "noc_90": "to 0.90",
        "sensitivity_1": "spread after 1",
    }
    return _asked((*evidence.clicks, *evidence.elsewhere), measures)


def _asked(pools: Sequence[Pool], measures: Mapping[str, str]) -> str:
    rows = []
    for pool in pools:
        for (name, arm, n), scores in sorted(pool.scores.items()):
            cells = [interval(estimate(scores[one]), "dice") if one in scores else "–" for one in measures]
            rows.append((name, f"{arm.removeprefix('interactive:')}, {n} labelled", *cells))
    return table(("set", "arm", *measures.values()), rows) if rows else UNMEASURED


def matches(evidence: Evidence, words: Sequence[str] = ()) -> str:
    """How few labelled cases match a U-Net with more: of the numbers that were tried, nothing is interpolated.

    A sentence a data set of which there is a curve, and all numbers below; with the word "short" a sentence a number
    and nothing below.
    """
    rows, sentences = [], []
    told = sets_with_curves(evidence)
    for name in sets_of(evidence.plans, (BASELINE,)):
        pool = next(pool for pool in evidence.plans if name in sets_of([pool], (BASELINE,)))
        curves = {arm: _curve(pool, name, arm) for arm in (*OURS, BASELINE)}
        for n, score in sorted(curves[BASELINE].items()):
            reached = [
                (m, -dice, arm)
                for arm in OURS
                for m, dice in curves[arm].items()
                if (one := difference([pool], name, (arm, m), (BASELINE, n))) and one.estimate.mean >= 0
            ]
            sentence = (
                f"* **{name}**: to match a U-Net trained on {count(n, 'labelled case')} ({score:.3f}), handful needs "
            )
            if reached:
                fewest, negative, arm = min(reached)
                one = difference([pool], name, (arm, fewest), (BASELINE, n))
                gap = signed(one.estimate) if one else "–"
                rows.append((name, f"{n} ({score:.3f})", f"**{fewest}**", f"{arm} ({-negative:.3f})", gap))
                sentence += f"**{fewest}** ({arm}, {-negative:.3f})."
            else:
                rows.append((name, f"{n} ({score:.3f})", "more than tried", "", ""))
                sentence += f"more than the {max(max(curve, default=0) for curve in curves.values())} that were tried."
            if name in told and ("short" in words or n == max(curves[BASELINE])):
                sentences.append(sentence)
    if not rows:
        return "Not run yet: it takes the plans `acdc`, `hippocampus` and `sets`."
    if "short" in words:
        return "\n".join(sentences)
    heads = ("data set", "a U-Net trained on (Dice)", "handful needs", "with (Dice)", "difference")
    return "\n\n".join((MATCHING, "\n".join(sentences), table(heads, rows)))


def sets_with_curves(evidence: Evidence) -> list[str]:
    """Data sets of the plans that were tried with enough numbers of labelled cases to show a curve."""
    tried = {
        name: {n for pool in evidence.plans for one, _, n in pool.scores if one == name}
        for name in sets_of(evidence.plans)
    }
    return [name for name, numbers in tried.items() if len(numbers) >= CURVE]


def _curve(pool: Pool, data_set: str, arm: str) -> dict[int, float]:
    shots = {n for name, one, n in pool.scores if (name, one) == (data_set, arm)}
    return {n: estimate(scores_of([pool], data_set, arm, n)).mean for n in sorted(shots)}


def suggest(evidence: Evidence, words: Sequence[str]) -> str:
    """What suggested slices are worth compared with random ones."""
    lines = list(evidence.raw("suggest"))
    return suggest_study.tables(lines) if lines else UNMEASURED


def pruning(evidence: Evidence, words: Sequence[str]) -> str:
    """The rules of pruning: Dice of each organ, what they left out, and what that saved."""
    lines = [line for line in evidence.raw("interactive") if line["part"] == "pruning"]
    return interactive_tables.pruning_tables(lines) if lines else UNMEASURED


def quality(evidence: Evidence, words: Sequence[str]) -> str:
    """How well a predicted Dice agrees with the true one."""
    lines = list(evidence.raw("quality"))
    return quality_study.tables(lines) if lines else UNMEASURED


TABLES: dict[str, Render] = {
    "label_efficiency": label_efficiency,
    "match": matches,
    "glance": glance,
    "methods": methods,
    "measured": measured,
    "fate": fate,
    "fate_shots": fate_shots,
    "fate_settings": fate_settings,
    "fate_arms": fate_arms,
    "few_shot": few_shot,
    "foundation": foundation,
    "auto_sam": auto_sam,
    "ensemble": ensemble,
    "rates": rates,
    "losses": losses,
    "prompts": prompts,
    "time_to_dice": time_to_dice,
    "interactive": interactive,
    "pruning": pruning,
    "suggest": suggest,
    "quality": quality,
}
