"""The tables that documents show of the evidence, by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from handful.evaluation.evaluate import Estimate
from handful.evaluation.results import TITLES, case_scores
from handful.evaluation.thirds import thirds
from reproduction.evidence import (
    FIRST,
    MEASURES,
    NARROW,
    SECONDS,
    Difference,
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
from reproduction.studies import boxes as boxes_study
from reproduction.studies import controls as controls_study
from reproduction.studies import fate_settings as fate_study
from reproduction.studies import foundation as foundation_study
from reproduction.studies import interactive_tables
from reproduction.studies import intervals as intervals_study
from reproduction.studies import nnunet as nnunet_study
from reproduction.studies import quality as quality_study
from reproduction.studies import retrieval as retrieval_study
from reproduction.studies import semi_supervised as semi_supervised_study
from reproduction.studies import suggest as suggest_study
from reproduction.studies import synthetic as synthetic_study
from reproduction.studies import windows as windows_study
from reproduction.study import Study
from reproduction.verdicts import MARGIN, not_below

OURS = (
    "few-shot prompts",
    "few-shot prompts, balanced",
    "FATE",
    "FATE, ROI crop",
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
COHORT = ("auto", "U-Net", "few-shot prompts", "FATE", "nearest slice")
"""Configurations of the plan of few labelled and many unlabelled cases."""
BASELINE = "U-Net"
OTHERS = (
    BASELINE,
    "U-Net + SimCLR",
    "zero-shot, box",
    NARROW,
    "U-Net + SimCLR, 8 channels",
    "U-Net, three seeds",
    "nearest slice",
)
ANNOTATORS = (
    "annotator: box",
    "annotator: 1 point",
    "annotator: 3 points",
    "annotator: 5 points",
    "annotator: 1 click",
    "annotator: 3 clicks",
    "annotator: 5 clicks",
)
"""They look at the truth of the scan that is scored: bounds for that much work, drawn dashed."""
CONFIGURATIONS = OURS + OTHERS + ANNOTATORS

MATCHING = f"""The smallest number of labelled cases, of those tried, with which a method is not worse than the U-Net
(non-inferior): the whole 95 % interval of the difference lies above −{MARGIN}. Both are compared on the splits and
unseen cases that they share; nothing is interpolated. The U-Net has the package's width; it makes 1,000 steps whatever
the number of labels, which keeps it from gaining much from many. Of several methods that are not worse the best one is
named, which is too favourable; forms of methods that were tried: {{tried}}. The ensemble contains a U-Net. Dice
in brackets are over all splits of each."""

VOTERS = ("AutoSAM U-Net", BASELINE, NARROW, "FATE, three planes", "FATE, ROI crop", "U-Net, three seeds")
"""Configurations of the plans that an ensemble is set beside: its members, and as many U-Nets."""

CONTENTS = {
    "cxr_covid": "lungs and heart, X-ray",
    "camus": "left ventricle, ultrasound",
    "chaos_mr_t2": "abdominal organs, MR",
    "acdc": "heart, cine MR",
    "msd_hippocampus": "hippocampus, MR",
    "drishti_gs": "optic disc and cup, fundus",
    "openkbp": "head and neck, CT",
    "dsb2018": "cell nuclei, microscopy",
    "kvasir_seg": "polyps, colonoscopy",
    "busi": "breast lesions, ultrasound",
}
"""What the scans of each data set show."""
SUMMARY = (
    ("msd_hippocampus", 1),
    ("msd_hippocampus", 4),
    ("acdc", 1),
    ("acdc", 5),
    ("chaos_mr_t2", 4),
    ("openkbp", 4),
    ("kvasir_seg", 4),
)
"""Data set and number of labelled cases of each row of the summary."""
FATE_AND_FLOOR = ("nearest slice", "FATE", "FATE, ROI crop")
BASELINE_METHOD = "unet"
COLUMNS = {
    "nearest-slice": ("nearest slice",),
    "fate": ("FATE",),
    "auto-sam-unet": ("AutoSAM U-Net, balanced", "AutoSAM U-Net"),
    BASELINE_METHOD: (BASELINE, NARROW),
    "ensemble": ("ensemble",),
}
"""Columns of the summary: the method as people type it, and its configurations in the plans, the default form first."""

SPLITS = 3
"""Random splits of the labelled cases that the plans ask for."""
CURVE = 3
"""Numbers of labelled cases that make a curve."""
STEPS = re.compile(r"(?P<configuration>.+), (?P<steps>\d+) steps")
"""Configurations that a plan trains for different times."""


def label_efficiency(evidence: Evidence, words: Sequence[str]) -> str:
    """Configurations by numbers of labelled cases; of one data set, or of all of the plans."""
    known = sets_of(evidence.scans)
    chosen = [word for word in words if word not in MEASURES]
    if unknown := [one for one in chosen if one not in known]:
        return f"(not measured yet: {', '.join(unknown)})"
    measure = next((word for word in words if word in MEASURES), "dice")
    names = chosen or sets_of(evidence.plans)
    parts = [f"**{name}**, {TITLES[measure]}\n\n{_efficiency(evidence, name, measure)}" for name in names]
    return "\n\n".join(parts) or UNMEASURED


def _efficiency(evidence: Evidence, data_set: str, measure: str, configurations: Sequence[str] = CONFIGURATIONS) -> str:
    # One table is of one source, so that its columns may be compared.
    pool = next(pool for pool in evidence.scans if data_set in sets_of([pool]))
    shots = sorted(
        {n for name, configuration, n in pool.scores if name == data_set and configuration in configurations}
    )
    found = {
        n: {configuration: scores_of([pool], data_set, configuration, n, measure) for configuration in configurations}
        for n in shots
    }
    if pool in evidence.studies:  # a plan's configurations see the same cases, benchmarks had more or fewer
        found = {n: shared(of_configurations) for n, of_configurations in found.items()}
    most = max(
        (_splits(scores) for of_configurations in found.values() for scores in of_configurations.values()), default=0
    )
    rows = []
    for configuration in configurations:
        cells = [found[n].get(configuration) for n in shots]
        if any(cells):
            rows.append((configuration, *[_drawn(one, measure, most) if one else "–" for one in cells]))
    return table(("configuration", *[f"{n} labelled" for n in shots]), rows)


def _drawn(scores: Scores, measure: str, most: int) -> str:
    """A cell that says of how many splits it is, where others are of more."""
    splits = _splits(scores)
    few = f" ({count(splits, 'split')})" if splits < most else ""
    return interval(estimate(scores), measure) + few


def _splits(scores: Scores) -> int:
    return len({split for split, _ in scores})


def glance(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice of a few configurations with four labelled cases, or five, a row a data set.

    Of the default loss and an earlier one the former is shown, unless the latter was measured in more splits.
    """
    configurations = ("nearest slice", "FATE", "few-shot prompts", "AutoSAM U-Net", BASELINE)
    rows = []
    for name, (n, found) in _with_about(evidence, (4, 5), (*configurations, *map(balanced, configurations))).items():
        shown = [
            max(found.get(balanced(configuration), {}), found.get(configuration, {}), key=_splits)
            for configuration in configurations
        ]
        most = max(_splits(scores) for scores in shown)
        rows.append((name, str(n), *[_drawn(scores, "dice", most) if scores else "–" for scores in shown]))
    return table(("data set", "labelled", *configurations), rows) if rows else UNMEASURED


def summary(evidence: Evidence, words: Sequence[str]) -> str:
    """A few data sets in few columns: mean Dice over the splits and cases that all methods of a row share.

    A difference over fewer than three splits has no interval, which would say next to nothing.
    """
    rows = []
    for data_set, n in SUMMARY:
        forms = {method: _default_form(evidence, data_set, names, n) for method, names in COLUMNS.items()}
        found = shared({method: scores for method, (_, scores) in forms.items()})
        ours = next((method for method in ("ensemble", "auto-sam-unet") if method in found), None)
        if BASELINE_METHOD not in found or ours is None:
            continue
        gap = estimate({key: found[ours][key] - value for key, value in found[BASELINE_METHOD].items()}, 1.0)
        means = [f"{estimate(found[method]).mean:.2f}" if method in found else "–" for method in COLUMNS]
        if forms[BASELINE_METHOD][0] == NARROW:
            means[list(COLUMNS).index(BASELINE_METHOD)] += " (8 channels)"
        splits = _splits(found[ours])
        shown = _signed_with_interval(gap, splits)
        rows.append((CONTENTS[data_set], str(n), *means, f"`{ours}` {shown}", str(splits)))
    heads = ("scans", "labelled", *(f"`{method}`" for method in COLUMNS), "minus `unet` [95 % interval]", "splits")
    return table(heads, rows) if rows else UNMEASURED


def _default_form(evidence: Evidence, data_set: str, configurations: Sequence[str], n: int) -> tuple[str, Scores]:
    """The first of the configurations that a plan measured in most splits, and its scores."""
    found = [(one, scores_of(evidence.plans, data_set, one, n)) for one in configurations]
    return max(found, key=lambda form: _splits(form[1]))


def methods(evidence: Evidence, words: Sequence[str]) -> str:
    """Mean Dice of every configuration, a row, on every data set, a column, with about as many labelled cases as
    `words` say.

    Where not all of three splits were measured, their number stands behind.
    """
    about = tuple(int(word) for word in words)
    of_set = _with_about(evidence, about, CONFIGURATIONS)
    rows = []
    for configuration in CONFIGURATIONS:
        scores = [found.get(configuration) for _, found in of_set.values()]
        if any(scores):
            cells = [f"{estimate(one).mean:.3f}{_few(one)}" if one else "–" for one in scores]
            rows.append((configuration, *cells))
    return table(("configuration", *[f"{name}, {n}" for name, (n, _) in of_set.items()]), rows) if rows else UNMEASURED


def measured(evidence: Evidence, words: Sequence[str]) -> str:
    """Numbers of labelled cases that each configuration, a row, was measured with on each data set, a column, by any
    source."""
    names = sets_of(evidence.scans)
    rows = []
    for configuration in CONFIGURATIONS:
        cells = []
        for name in names:
            of_n: dict[int, Scores] = {}
            for pool in evidence.scans:
                for one, other, n in pool.scores:
                    if (one, other) == (name, configuration):
                        of_n[n] = max(of_n.get(n, {}), scores_of([pool], name, configuration, n), key=_splits)
            cells.append(", ".join(f"{n}{_few(scores)}" for n, scores in sorted(of_n.items())) or "–")
        if set(cells) != {"–"}:
            rows.append((configuration, *cells))
    return table(("configuration", *names), rows) if rows else UNMEASURED


def _few(scores: Scores) -> str:
    splits = _splits(scores)
    return f" ({splits})" if splits < SPLITS else ""


def _with_about(
    evidence: Evidence, about: Sequence[int], configurations: Sequence[str]
) -> dict[str, tuple[int, dict[str, Scores]]]:
    """Of each data set the number of labels and the scores of the source that has the most configurations, of one
    source each."""
    chosen = {}
    for name in sets_of(evidence.scans, configurations):
        pool, n = _with_most(evidence.scans, name, configurations, about)
        found = {configuration: scores_of([pool], name, configuration, n) for configuration in configurations}
        if any(found.values()):
            chosen[name] = n, shared(found) if pool in evidence.studies else found
    return chosen


def fate(evidence: Evidence, words: Sequence[str]) -> str:
    """Training-free configurations with four labelled volumes, or five, one row per data set: first Dice, then HD95."""
    configurations = (*FATE_AND_FLOOR, "zero-shot, box", "annotator: 1 point", "annotator: box")
    parts = []
    for measure, title in (("dice", "Dice"), ("hd95", "HD95")):
        rows = []
        for name in sets_of(_of_random_cases(evidence), ("FATE",)):
            pool, n = _with_most(_of_random_cases(evidence), name, configurations, (4, 5))
            scores = [scores_of([pool], name, configuration, n, measure) for configuration in configurations]
            most = max(map(_splits, scores))
            rows.append((name, str(n), *[_drawn(one, measure, most) if one else "–" for one in scores]))
        parts.append(table((title, "labelled", *configurations), rows))
    return "\n\n".join(parts)


def fate_shots(evidence: Evidence, words: Sequence[str]) -> str:
    """FATE and the floor over the number of labelled volumes, one table per data set, of the source with most
    numbers."""
    pools = _of_random_cases(evidence)
    tables = []
    for name in sets_of(pools, ("FATE",)):
        tried = [
            sorted(n for one, configuration, n in p.scores if (one, configuration) == (name, "FATE")) for p in pools
        ]
        shots, pool = max(zip(tried, pools, strict=True), key=lambda one: len(one[0]))
        found = {
            configuration: [scores_of([pool], name, configuration, n) for n in shots]
            for configuration in FATE_AND_FLOOR
        }
        most = max(_splits(scores) for of_shots in found.values() for scores in of_shots)
        rows = [
            (configuration, *[_drawn(one, "dice", most) if one else "–" for one in scores])
            for configuration, scores in found.items()
            if any(scores)
        ]
        if len(shots) > 1:
            tables.append(f"**{name}**\n\n{table(('configuration', *[f'{n} labelled' for n in shots]), rows)}")
    return "\n\n".join(tables) or UNMEASURED


def _of_random_cases(evidence: Evidence) -> list[Pool]:
    """Sources whose unseen cases were chosen at random."""
    return [pool for pool in evidence.scans if not pool.name.endswith(FIRST)]


def _with_most(
    pools: Sequence[Pool], name: str, configurations: Sequence[str], about: Sequence[int]
) -> tuple[Pool, int]:
    """The source and the number of labelled cases, of those in `about`, with the most configurations on a data set."""

    def measured(one: tuple[Pool, int]) -> int:
        return sum(bool(scores_of([one[0]], name, configuration, one[1])) for configuration in configurations)

    return max(((pool, n) for n in about for pool in pools), key=measured)


def fate_settings(evidence: Evidence, words: Sequence[str]) -> str:
    """Each setting of FATE by itself, with four volumes of the data sets that `words` name.

    With the word "earlier" those of the first split and the first cases by name.
    """
    earlier = "earlier" in words
    lines = [
        line
        for line in evidence.raw("label_efficiency")
        if line["set"] in words and line["shots"] == 4 and (line.get("unseen", FIRST) == FIRST) == earlier
    ]
    return fate_study.by_setting([line for line in lines if line["split"] == 0 or not earlier]) if lines else UNMEASURED


def fate_configurations(evidence: Evidence, words: Sequence[str]) -> str:
    """All configurations of FATE's study on one data set with four labelled cases; random unseen ones go first."""
    lines = [line for line in evidence.raw("label_efficiency") if line["set"] in words and line["shots"] == 4]
    random = [line for line in lines if line.get("unseen", FIRST) != FIRST]
    return fate_study.table_of(random or lines) if lines else UNMEASURED


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


def foundation_small(evidence: Evidence, words: Sequence[str]) -> str:
    """The same of a few cases, on which both embedded models were measured."""
    lines = evidence.raw("foundation_small")
    return foundation_study.table_of(" ".join(words), lines) if lines else UNMEASURED


def synthetic(evidence: Evidence, words: Sequence[str]) -> str:
    """The validations of the training of handful-small, on synthetic episodes."""
    lines = evidence.raw("handful_small_validation")
    return synthetic_study.table_of(lines) if lines else UNMEASURED


def speed(evidence: Evidence, words: Sequence[str]) -> str:
    """The part of benchmarks/before_after.py that `words` name."""
    lines = [line for line in evidence.raw("before_after") if line["table"].startswith(words[0])]
    if not lines:
        return UNMEASURED
    columns = [name for name in lines[0] if name not in ("commit", "table", "what")]
    rows = [[line["what"], *[_spread(line[column]) for column in columns]] for line in lines]
    return table(["", *columns], rows)


def _spread(cell: str | float | Sequence[float]) -> str:
    """A figure with three digits, or a median with its range."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    median, least, most = (_spread(value) for value in cell)
    return median if least == most else f"{median} [{least}, {most}]"


def auto_sam(evidence: Evidence, words: Sequence[str]) -> str:
    """The heads and few-shot prompts beside the U-Nets, two tables a data set of which there is a curve."""
    configurations = (
        tuple(configuration for configuration in OURS if configuration.startswith(("AutoSAM", "few-shot"))) + OTHERS[:3]
    )
    names = sets_with_curves(evidence)
    parts = [
        f"**{name}**, {TITLES[measure]}\n\n{_efficiency(evidence, name, measure, configurations)}"
        for name in names
        for measure in ("dice", "hd95")
    ]
    return "\n\n".join(parts) or UNMEASURED


def ensemble(evidence: Evidence, words: Sequence[str]) -> str:
    """The vote beside those who vote and beside a vote of U-Nets, and by how much it differs from each."""
    rows = []
    for pool in evidence.plans:
        for name in sets_of([pool], ("ensemble",)):
            for shots in sorted(
                n for one, configuration, n in pool.scores if (one, configuration) == (name, "ensemble")
            ):
                of = {
                    configuration: scores_of([pool], name, configuration, shots)
                    for configuration in ("ensemble", *VOTERS)
                }
                found = {configuration: scores for configuration, scores in of.items() if scores}
                for configuration, scores in found.items():
                    one = difference([pool], name, ("ensemble", shots), (configuration, shots))
                    gaps = ("", "")
                    if one and configuration != "ensemble":
                        gaps = _gap(one, _splits(scores)), _gap_of_splits(found["ensemble"], scores)
                    dice = interval(estimate(scores), "dice")
                    rows.append((name, str(shots), configuration, dice, *gaps, str(_splits(scores))))
    heads = ("data set", "labelled", "configuration", "Dice", "ensemble minus this", "on each split", "splits")
    return table(heads, rows) if rows else UNMEASURED


def _gap(one: Difference, most: int) -> str:
    """A difference, and on how many splits it rests where a side was measured in more."""
    return signed(one.estimate) + (f" ({count(one.splits, 'shared split')})" if one.splits < most else "")


def _gap_of_splits(first: Scores, second: Scores) -> str:
    """The difference on each split that both have, of the cases that both have."""
    gaps: dict[int, list[float]] = {}
    for split, case in sorted(first.keys() & second.keys()):
        gaps.setdefault(split, []).append(first[split, case] - second[split, case])
    return ", ".join(f"{fmean(values):+.3f}" for values in gaps.values())


def rates(evidence: Evidence, words: Sequence[str]) -> str:
    """What the learning rate is worth to the head 'cnn': its configuration beside the one that learns twice as fast."""
    rows = [row[1:] for row in _beside(evidence, "AutoSAM CNN", "AutoSAM CNN, 2e-3")]
    heads = ("data set", "labelled", "Dice at 1e-3", "at 2e-3", "difference", "splits")
    return table(heads, rows) if rows else UNMEASURED


def losses(evidence: Evidence, words: Sequence[str]) -> str:
    """What the loss is worth to AutoSAM's heads: that of the batch, balanced, beside that of each slice, unweighted."""
    heads = [
        configuration for configuration in OURS if configuration.startswith("AutoSAM") and ", " not in configuration
    ]
    pairs = [
        pair
        for configuration in heads
        for pair in ((balanced(configuration), configuration), (configuration, f"{configuration}, slice"))
    ]
    rows = [row for pair in pairs for row in _beside(evidence, *pair)]
    titles = ("configuration", "data set", "labelled", "Dice by batch, balanced", "by slice", "difference", "splits")
    return table(titles, [(row[0].removesuffix(", balanced"), *row[1:]) for row in rows]) if rows else UNMEASURED


def prompts(evidence: Evidence, words: Sequence[str]) -> str:
    """What the defaults of few-shot prompts are worth beside what they were: the loss, the views, and both."""
    configuration = "few-shot prompts"
    pairs = {
        "loss: by batch, balanced; by slice": [(f"{configuration}, 16 views", f"{configuration}, slice")],
        "views: 4; 16": [(configuration, f"{configuration}, 16 views")],
        "both": [(configuration, f"{configuration}, slice"), (balanced(configuration), configuration)],
    }
    rows = [(what, *row[1:]) for what, both in pairs.items() for pair in both for row in _beside(evidence, *pair)]
    return (
        table(("what", "data set", "labelled", "now", "before", "difference", "splits"), rows) if rows else UNMEASURED
    )


def _beside(evidence: Evidence, first: str, second: str) -> list[tuple[str, ...]]:
    """Two configurations wherever one plan has both: their Dice, the difference and its splits."""
    rows = []
    for pool in evidence.plans:
        for name in sets_of([pool], (second,)):
            for shots in sorted(n for one, configuration, n in pool.scores if (one, configuration) == (name, second)):
                one = difference([pool], name, (first, shots), (second, shots))
                if one:
                    means = [f"{mean:.3f}" for mean in one.means]
                    rows.append((first, name, str(shots), *means, signed(one.estimate), str(one.splits)))
    return rows


def time_to_dice(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice and seconds of fits of few and of many steps, and after how long each configuration is as good as the
    U-Net's best."""
    parts = []
    for pool in evidence.plans:
        for name in sets_of([pool]):
            tried: dict[str, dict[int, tuple[float, float]]] = {}
            for (data_set, configuration, _), scores in pool.scores.items():
                if data_set == name and (found := STEPS.fullmatch(configuration)):
                    point = estimate(scores["dice"]).mean, estimate(scores[SECONDS]).mean
                    tried.setdefault(found["configuration"], {})[int(found["steps"])] = point
            if BASELINE in tried:
                parts.append(f"**{name}**\n\n{_times(tried)}")
    return "\n\n".join(parts) or UNMEASURED


def _times(tried: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    steps = sorted({n for points in tried.values() for n in points})
    best = max(dice for dice, _ in tried[BASELINE].values())
    rows = []
    for configuration, points in tried.items():
        cells = [f"{points[n][0]:.3f}, {points[n][1]:.0f} s" if n in points else "–" for n in steps]
        reached = [seconds for dice, seconds in points.values() if dice >= best]
        rows.append((configuration, *cells, f"{min(reached):.0f} s" if reached else "not reached"))
    return table(("configuration", *[f"{n} steps" for n in steps], f"Dice {best:.3f} after"), rows)


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
        for (name, configuration, n), scores in sorted(pool.scores.items()):
            cells = [interval(estimate(scores[one]), "dice") if one in scores else "–" for one in measures]
            rows.append((name, f"{configuration.removeprefix('interactive:')}, {n} labelled", *cells))
    return table(("set", "configuration", *measures.values()), rows) if rows else UNMEASURED


def matches(evidence: Evidence, words: Sequence[str] = ()) -> str:
    """How few labelled cases do no worse than a U-Net with more: of the numbers that were tried, nothing is
    interpolated.

    A sentence a data set of which there is a curve, and all numbers below; with the word "short" a sentence a number
    and nothing below.
    """
    rows, sentences = [], []
    told = sets_with_curves(evidence)
    for name in sets_of(evidence.plans, (BASELINE,)):
        pool = next(pool for pool in evidence.plans if name in sets_of([pool], (BASELINE,)))
        curves = {configuration: _curve(pool, name, configuration) for configuration in (*OURS, BASELINE)}
        for n, score in sorted(curves[BASELINE].items()):
            reached = _fewest_labels(pool, name, OURS, n)
            sentence = (
                f"* **{name}**: to be no worse than a U-Net trained on {count(n, 'labelled case')} ({score:.3f}), "
                "handful needs "
            )
            if reached:
                configuration, fewest = reached.first, reached.shots[0]
                dice = curves[configuration][fewest]
                gap = signed(reached.estimate)
                rows.append((name, f"{n} ({score:.3f})", f"**{fewest}**", f"{configuration} ({dice:.3f})", gap))
                sentence += f"**{fewest}** ({configuration}, {dice:.3f})."
            else:
                rows.append((name, f"{n} ({score:.3f})", "not shown", "", ""))
                sentence += (
                    f"more than the {max(max(curve, default=0) for curve in curves.values())} that were tried, or "
                )
                sentence += "more splits to show it."
            if name in told and ("short" in words or n == max(curves[BASELINE])):
                sentences.append(sentence)
    if not rows:
        return "Not run yet: it takes the plans `acdc`, `hippocampus` and `sets`."
    if "short" in words:
        return "\n".join(sentences)
    heads = ("data set", "a U-Net trained on (Dice)", "handful needs", "with (Dice)", "difference")
    tried = len({one for pool in evidence.plans for _, one, _ in pool.scores if one in OURS})
    return "\n\n".join((MATCHING.format(tried=tried), "\n".join(sentences), table(heads, rows)))


def how_many(evidence: Evidence, words: Sequence[str] = ()) -> str:
    """Mean Dice of `auto` and a U-Net by the number of labelled cases, and the fewest with which `auto` is no worse
    than the U-Net with each number."""
    rows = []
    for pool in evidence.curves:
        for name in sets_of([pool]):
            for n in sorted({shots for one, _, shots in pool.scores if one == name}):
                ours, theirs = (scores_of([pool], name, one, n) for one in ("auto", BASELINE))
                reached = _fewest_labels(pool, name, ("auto",), n)
                needed = f"**{reached.shots[0]}** ({signed(reached.estimate)})" if reached else "not shown"
                most = max(_splits(ours), _splits(theirs))
                cells = [_with_interval(scores, most) if scores else "–" for scores in (ours, theirs)]
                rows.append((CONTENTS[name], str(n), *cells, needed if theirs else "–", str(most)))
    header = ("scans", "labelled", "auto", "U-Net", "auto needs as many (difference)", "splits")
    return table(header, rows) if rows else UNMEASURED


def _fewest_labels(pool: Pool, data_set: str, ours: Sequence[str], n: int) -> Difference | None:
    """The fewest labelled cases with which one of `ours` is no worse than a U-Net with n, of those that are as few the
    best; None if no number is shown to suffice."""
    found = [
        one
        for configuration in ours
        for m in _curve(pool, data_set, configuration)
        if (one := difference([pool], data_set, (configuration, m), (BASELINE, n))) and not_below(one) == "for"
    ]
    return min(found, key=lambda one: (one.shots[0], -one.means[0], one.first), default=None)


def sets_with_curves(evidence: Evidence) -> list[str]:
    """Data sets of the plans that were tried with enough numbers of labelled cases to show a curve."""
    tried = {
        name: {n for pool in evidence.plans for one, _, n in pool.scores if one == name}
        for name in sets_of(evidence.plans)
    }
    return [name for name, numbers in tried.items() if len(numbers) >= CURVE]


def _curve(pool: Pool, data_set: str, configuration: str) -> dict[int, float]:
    shots = {n for name, one, n in pool.scores if (name, one) == (data_set, configuration)}
    return {n: estimate(scores_of([pool], data_set, configuration, n)).mean for n in sorted(shots)}


def suggest(evidence: Evidence, words: Sequence[str]) -> str:
    """What suggested slices are worth compared with random ones."""
    return _of_study(evidence, suggest_study.STUDY)


def pruning(evidence: Evidence, words: Sequence[str]) -> str:
    """The rules of pruning: Dice of each organ, what they left out, and what that saved."""
    lines = [line for line in evidence.raw("interactive") if line["part"] == "pruning"]
    return interactive_tables.pruning_tables(lines) if lines else UNMEASURED


def _of_study(evidence: Evidence, study: Study) -> str:
    """The tables of a study, from its file."""
    lines = list(evidence.raw(study.results))
    return study.tables(lines) if lines else UNMEASURED


def quality(evidence: Evidence, words: Sequence[str]) -> str:
    """How well a predicted Dice agrees with the true one."""
    return _of_study(evidence, quality_study.STUDY)


def retrieval(evidence: Evidence, words: Sequence[str]) -> str:
    """Features by which the most similar labelled slice is found."""
    return _of_study(evidence, retrieval_study.STUDY)


def semi_supervised(evidence: Evidence, words: Sequence[str]) -> str:
    """What unlabelled scans are worth on the hearts of the semi-supervised literature."""
    return _of_study(evidence, semi_supervised_study.STUDY)


def boxes(evidence: Evidence, words: Sequence[str]) -> str:
    """What one box per unlabelled picture is worth."""
    return _of_study(evidence, boxes_study.STUDY)


def windows(evidence: Evidence, words: Sequence[str]) -> str:
    """What lies outside of the crop in unseen scans."""
    return _of_study(evidence, windows_study.STUDY)


def planes(evidence: Evidence, words: Sequence[str]) -> str:
    """A U-Net on one plane, and on several with as many training steps in all."""
    return _own_table(evidence, "planes", "U-Net on")


def volume_adapter(evidence: Evidence, words: Sequence[str]) -> str:
    """Adapters between slices, a 2D fine-tuning of the same encoder, and U-Nets."""
    return _own_table(evidence, "volume_adapter", "method")


def _own_table(evidence: Evidence, plan: str, what: str) -> str:
    """A row for each configuration of a plan; `what` is the title of their column."""
    scores = evidence.own.get(plan, Pool("")).scores
    rows = [
        (CONTENTS[name], str(n), configuration, *_with_splits(scores[name, configuration, n]["dice"]))
        for name, n, configuration in sorted((name, n, configuration) for name, configuration, n in scores)
    ]
    return table(("scans", "labelled", what, "Dice", "of each split"), rows) if rows else UNMEASURED


def scribbles(evidence: Evidence, words: Sequence[str]) -> str:
    """Scribbles on some cases, and whole masks on as many and on fewer."""
    pool = evidence.own.get("scribbles", Pool(""))
    rows = [
        (CONTENTS[name], *_of_whom(configuration, n), *_with_splits(pool.scores[name, configuration, n]["dice"]))
        for name, configuration, n in sorted(pool.scores, key=lambda one: (one[0], one[1].partition(",")[0], one[1:]))
    ]
    return table(("scans", "method", "labels", "Dice", "of each split"), rows) if rows else UNMEASURED


def _of_whom(configuration: str, n: int) -> tuple[str, str]:
    """The method of "METHOD, masks", and "4 masks"."""
    method, _, labels = configuration.rpartition(", ")
    return method, f"{n} {labels}" if n > 1 else f"{n} {labels.removesuffix('s')}"


def _with_splits(scores: Scores) -> tuple[str, str]:
    """The mean over all cases, and that of each split."""
    splits = sorted({split for split, _ in scores})
    of_splits = [fmean(dice for (one, _), dice in scores.items() if one == split) for split in splits]
    return f"{fmean(of_splits):.3f}", ", ".join(f"{mean:.3f}" for mean in of_splits)


def nnunet(evidence: Evidence, words: Sequence[str]) -> str:
    """nnU-Net itself, on the cases of the table of cohorts."""
    return _of_study(evidence, nnunet_study.STUDY)


def cohort(evidence: Evidence, words: Sequence[str]) -> str:
    """Mean Dice of each configuration with few labelled and many unlabelled cases, with its interval where there are
    three splits. Configurations that were measured nowhere have no column."""
    places = {(name, n) for pool in evidence.timed for name, _, n in pool.scores}
    measured = {one for pool in evidence.timed for _, one, _ in pool.scores}
    columns = [one for one in COHORT if one in measured]
    rows = []
    for name, n in sorted(places, key=lambda place: (list(CONTENTS).index(place[0]), place)):
        found = {one: scores_of(evidence.timed, name, one, n) for one in columns}
        widest = max(found.values(), key=_splits)
        cells = [_with_interval(scores, _splits(widest)) if scores else "–" for scores in found.values()]
        rows.append((CONTENTS[name], str(n), _cases(widest), *cells, str(_splits(widest))))
    return table(("scans", "labelled", "test cases a split", *columns, "splits"), rows) if rows else UNMEASURED


def reasons(evidence: Evidence, words: Sequence[str]) -> str:
    """What a configuration said of its fit, word by word, on the first split of each data set that has it."""
    (configuration,) = words
    said: dict[str, tuple[str, ...]] = {}
    for row in evidence.decided:
        if row.configuration == configuration:
            said.setdefault(row.data_set, row.decided)
    lists = [
        "\n".join((f"*{what}*", "", *(f"* {sentence}" for sentence in said[name])))
        for name, what in CONTENTS.items()
        if name in said
    ]
    return "\n\n".join(lists) or UNMEASURED


def first_command(evidence: Evidence, words: Sequence[str]) -> str:
    """What the first command of the README gave before and gives now, on the same cases, with intervals where there are
    three splits."""
    lines = evidence.raw("first_command")
    commands = {(line["command"], line["commit"]) for line in lines}
    if len(commands) > 1:
        raise ValueError(
            f"first_command.jsonl has lines of several commands, which no mean may mix: {sorted(commands)}"
        )
    rows = []
    for name in [name for name in CONTENTS if any(line["set"] == name for line in lines)]:
        labels: dict[tuple[int, str], list[float]] = {}
        for line in lines:
            if line["set"] == name:
                labels.setdefault((line["split"], line["case"]), []).append(line["dice"])
        before = {key: fmean(dice) for key, dice in labels.items()}
        shots = len(next(line["support"] for line in lines if line["set"] == name))
        splits = {split for split, _ in before}
        found = scores_of(evidence.timed, name, "auto", shots)
        after = {key: dice for key, dice in found.items() if key[0] in splits}
        if before.keys() != after.keys():
            raise ValueError(f"first_command.jsonl and cohort.parquet have other test cases of {name}")
        gain = estimate({key: after[key] - before[key] for key in before}, 1.0)
        cells = (_with_interval(before), _with_interval(after), _signed_with_interval(gain, len(splits)))
        rows.append((CONTENTS[name], str(shots), _cases(before), *cells, str(len(splits))))
    header = ("scans", "labelled", "test cases a split", "before", "now", "difference", "splits")
    return table(header, rows) if rows else UNMEASURED


def _cases(scores: Scores) -> str:
    """How many cases a split has, such as "8" or "7 to 8"."""
    sizes = Counter(split for split, _ in scores).values()
    return f"{min(sizes)}" + (f" to {max(sizes)}" if max(sizes) > min(sizes) else "")


def _with_interval(scores: Scores, most: int = 0) -> str:
    """A mean, with its interval where there are three splits; the number of splits where others have more."""
    found = estimate(scores, 1.0)
    few = f" ({count(_splits(scores), 'split')})" if _splits(scores) < most else ""
    return (interval(found) if _splits(scores) >= SPLITS else f"{found.mean:.3f}") + few


def _signed_with_interval(gap: Estimate, splits: int) -> str:
    return signed(gap) if splits >= SPLITS else f"{gap.mean:+.3f}"


def intervals(evidence: Evidence) -> str:
    """How often intervals cover the true value, as simulated."""
    lines = evidence.raw("intervals")
    return intervals_study.tables(lines) if lines else UNMEASURED


def prompted(evidence: Evidence, words: Sequence[str]) -> str:
    """Dice with prompts from the reference: a row per data set, or with a property of objects, by its thirds."""
    rows = evidence.prompted
    configurations = list(dict.fromkeys(row.configuration for row in rows))
    if not rows:
        return UNMEASURED
    if words:
        found = {name: thirds([row for row in rows if row.configuration == name], words[0]) for name in configurations}
        heads = ("prompts", "lowest third", "middle third", "highest third", "rank correlation")
        return table(
            heads,
            [
                (name, *[f"{mean:.3f}" for mean in one.means], f"{one.correlation:+.2f}")
                for name, one in found.items()
                if one is not None
            ],
        )
    scores = {
        (name, configuration): case_scores(
            [row for row in rows if (row.data_set, row.configuration) == (name, configuration)], "dice"
        )
        for name in sorted({row.data_set for row in rows})
        for configuration in configurations
    }
    lines = []
    for name in sorted({name for name, _ in scores}):
        of_set = [scores[name, configuration] for configuration in configurations]
        means = [f"{fmean(one.values()):.3f}" if one else "–" for one in of_set]
        lines.append((name, str(max(map(len, of_set))), *means))
    return table(("data set", "scans", *configurations), lines)


TABLES: dict[str, Render] = {
    "prompted": prompted,
    "label_efficiency": label_efficiency,
    "match": matches,
    "summary": summary,
    "glance": glance,
    "methods": methods,
    "measured": measured,
    "fate": fate,
    "fate_shots": fate_shots,
    "fate_settings": fate_settings,
    "fate_configurations": fate_configurations,
    "few_shot": few_shot,
    "foundation": foundation,
    "foundation_small": foundation_small,
    "synthetic": synthetic,
    "speed": speed,
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
    "retrieval": retrieval,
    "semi_supervised": semi_supervised,
    "boxes": boxes,
    "windows": windows,
    "planes": planes,
    "scribbles": scribbles,
    "volume_adapter": volume_adapter,
    "how_many": how_many,
    "nnunet": nnunet,
    "cohort": cohort,
    "first_command": first_command,
    "reasons": reasons,
}
