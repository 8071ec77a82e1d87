"""The papers' claims: what each says, the rule by which it is judged, and the figures that judge it.

No verdict is typed in. Results that are missing make a claim "not tested here".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from handful.evaluation.evaluate import Estimate
from reproduction.evidence import NARROW, Difference, Evidence, Pool, balanced, compare, difference, sets_of
from reproduction.verdicts import (
    MARGIN,
    Figure,
    Finding,
    Rule,
    Vote,
    above,
    compared,
    contests,
    figure,
    for_context,
    not_below,
    vote_of,
)

FEW = 5
"""Labelled cases that are few."""
FACTOR = 10
"""How many times fewer labels claim 1.2 speaks of."""
GAIN = 0.5
"""By what share claim 1.1 says that IoU rises."""
PRUNED = 0.65
"""Share of the steps that pruning may leave, to be about the paper's 0.5625."""
GRID = ("acdc", "hippocampus", "sets")
"""Parts of the plans on real scans."""


def prompts_beat_points(evidence: Evidence) -> Finding:
    plain, annotators = "few-shot prompts", ("annotator: 1 point", "annotator: 3 points")
    found = Finding(())
    for ours, annotator in itertools.product((plain, balanced(plain)), annotators):
        differences = compare(evidence.plans, ours, annotator, "iou") or compare(evidence.scans, ours, annotator)
        if not differences and ours == plain:
            found += Finding((), (f"{ours} − {annotator}",))
        most = {one.data_set: max(d.shots[0] for d in differences if d.data_set == one.data_set) for one in differences}
        for one in differences:
            found += Finding((figure(one, above if ours == plain else for_context),))
            if ours == plain and one.shots[0] == most[one.data_set] and one.measure == "iou":
                found += Finding((gain(one),))
    return found


def gain(one: Difference) -> Figure:
    """The same as a share of the second's mean, which is taken as it is."""
    base, e = one.means[1] or math.nan, one.estimate
    share = Estimate(e.mean / base, e.sd / base, e.low / base, e.high / base)
    return Figure(
        one.data_set,
        f"{one.first} over {one.second} with {one.shots[0]}, relative IoU",
        "",
        share,
        compared(share, GAIN),
        "%",
        one.cases,
        one.splits,
    )


def prompts_need_fewer_labels(evidence: Evidence) -> Finding:
    ours, baseline, pools = "few-shot prompts", "U-Net", evidence.plans
    found = of_both_losses(evidence, [(ours, baseline), (ours, NARROW)], for_context)
    figures: list[Figure] = []
    for name in sets_of(pools, (baseline,)):
        few, many = (sorted(tried(pools, name, configuration)) for configuration in (ours, baseline))
        for n in many:
            most = max((m for m in few if FACTOR * m <= n), default=None)
            one = difference(pools, name, (ours, most), (baseline, n)) if most else None
            figures += [figure(one, not_below if n == many[-1] else for_context)] if one else []
    missing = () if figures else (f"{ours} − {baseline} with {FACTOR} times the labels",)
    return Finding(tuple(figures), missing) + found


def tried(pools: Iterable[Pool], data_set: str, configuration: str) -> set[int]:
    """Numbers of labelled cases that a configuration was measured with."""
    return {n for pool in pools for name, one, n in pool.scores if (name, one) == (data_set, configuration)}


def only_the_decoder_trains(evidence: Evidence) -> Finding:
    figures: list[Figure] = []
    for line in evidence.raw("what_trains"):
        if line["method"] != "few-shot-prompts":
            continue
        if line["what"] == "trained":
            held = line["backbone_is_untouched"] and line["trained_parameters"] < line["backbone_parameters"]
            where = line["backbone"]
            figures.append(
                Figure(where, "parameters trained", "", exactly(line["trained_parameters"]), vote_of(held), "n")
            )
            figures.append(
                Figure(where, "parameters of the backbone", "", exactly(line["backbone_parameters"]), None, "n")
            )
        else:
            middle, low, high = line["times_faster"]
            held = low > 1 and line["same_result"]
            saved = Estimate(middle, math.nan, low, high)
            what = "an epoch on stored embeddings, times faster; same result"
            figures.append(Figure("handful-tiny", what, "", saved, vote_of(held), "×"))
    return Finding(tuple(figures))


def exactly(value: float) -> Estimate:
    return Estimate(float(value), math.nan, math.nan, math.nan)


def tokens_carry_the_information(evidence: Evidence) -> Finding:
    pairs = [("few-shot prompts", "wrong tokens"), ("few-shot prompts", "zero tokens")]
    return contests(evidence.studies, pairs)


def fate_beats_zero_shot(evidence: Evidence) -> Finding:
    cropped, annotator = ("FATE, ROI crop", "zero-shot, box"), ("FATE, ROI crop", "annotator: 1 point")
    return contests(evidence.scans, [("FATE", "zero-shot, box")]) + contests(
        evidence.scans, [cropped, annotator], for_context
    )


def fate_beats_low_data_supervised(evidence: Evidence) -> Finding:
    found = contests(evidence.plans, [("FATE", "U-Net")], shots=lambda n: n <= FEW)
    found += contests(evidence.plans, [("FATE", "U-Net")], for_context, shots=lambda n: n > FEW)
    return found + contests(evidence.plans, [("FATE, ROI crop", "U-Net"), ("FATE", NARROW)], for_context)


def consistency_helps(evidence: Evidence) -> Finding:
    neighbours, pointers = ("FATE", "fate:window=0"), ("FATE", "fate:pointers=false")
    far = [("fate:window=0", "FATE")]
    return contests(evidence.studies, [neighbours, pointers]) + contests(evidence.studies, far, for_context, "hd95")


def retrieval_and_support_help(evidence: Evidence) -> Finding:
    pools = evidence.studies
    found = contests(pools, [("FATE", "fate:shuffled=1"), ("FATE", "fate:top_k=1"), ("FATE", "fate:top_k=3")])
    more: list[Figure] = []
    for name in sets_of(evidence.scans, ("FATE",)):
        shots = sorted(tried(evidence.scans, name, "FATE"))
        pairs = sorted(itertools.combinations(shots, 2), key=lambda pair: pair[0] / pair[1])
        both = (difference(evidence.scans, name, ("FATE", most), ("FATE", fewest)) for fewest, most in pairs)
        more += [figure(one, above) for one in itertools.islice(filter(None, both), 1)]
    return found + Finding(tuple(more), () if more else ("FATE with more − FATE with fewer",))


def fate_trains_nothing(evidence: Evidence) -> Finding:
    return Finding(
        tuple(
            Figure(
                line["backbone"],
                "parameters trained; segments a scan without prompts",
                "",
                exactly(line["trained_parameters"]),
                vote_of(
                    line["trained_parameters"] == 0
                    and line["backbone_is_untouched"]
                    and line["predicts_from_the_scan_alone"]
                ),
                "n",
            )
            for line in evidence.raw("what_trains")
            if line["method"] == "fate"
        )
    )


def fixes_matter(evidence: Evidence) -> Finding:
    theirs = ("fate:foreground_only=true", "fate:similarity=l1", "fate:window=6")
    return contests(evidence.studies, [("FATE", one) for one in theirs])


def heads_beat_zero_shot(evidence: Evidence) -> Finding:
    heads = ("AutoSAM ViT", "AutoSAM CNN", "AutoSAM linear")
    pairs = [(head, floor) for floor in ("zero-shot, box", "annotator: box") for head in heads]
    return of_both_losses(evidence, pairs, above, lambda n: n == 1)


def heads_beat_unets(evidence: Evidence) -> Finding:
    pairs = [(head, unet) for unet in ("U-Net", "U-Net + SimCLR") for head in ("AutoSAM ViT", "AutoSAM CNN")]
    more = of_both_losses(evidence, pairs[:2], for_context, lambda n: n > FEW)
    more += of_both_losses(evidence, [("AutoSAM U-Net", "U-Net")], for_context)
    more += contests(evidence.plans, [(head, NARROW) for head in ("AutoSAM ViT", "AutoSAM CNN")], for_context)
    return of_both_losses(evidence, pairs, above, lambda n: n <= FEW) + more


def linear_is_worst(evidence: Evidence) -> Finding:
    found = of_both_losses(evidence, [("AutoSAM ViT", "AutoSAM linear"), ("AutoSAM CNN", "AutoSAM linear")], above)
    return found + contests(evidence.plans, [("AutoSAM linear", "AutoSAM linear, ReLU")], for_context)


def of_both_losses(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], rule: Rule, shots: Callable[[int], bool] = lambda n: True
) -> Finding:
    """As `contests`; configurations with the later loss, where a plan has them, are for context, so that nothing counts
    twice."""
    later = [(balanced(first), balanced(second)) for first, second in pairs]
    return contests(evidence.plans, pairs, rule, shots=shots) + contests(
        evidence.plans, later, for_context, shots=shots
    )


def one_pass_is_faster(evidence: Evidence) -> Finding:
    """The published head decides; ours, which does not copy the image for each class, is for comparison."""
    times = {line["variant"]: line for line in evidence.raw("auto_sam_speed")}
    alone, ours = times.get("one pass a class"), times.get("all classes in one pass")
    published = times.get("cached, faithful head")
    if alone is None or published is None:
        return Finding(())
    where = f"SAM ViT-B, {alone['side']} pixels, {alone['classes']} classes"
    what = "a training step of {}, times faster than one pass per class"
    found = [faster(where, what.format("the published head"), published, alone)]
    if ours:
        found.append(replace(faster(where, what.format("our head with a shared pass"), ours, alone), vote=None))
    return Finding(tuple(found))


def faster(where: str, what: str, one: dict[str, list[float]], other: dict[str, list[float]]) -> Figure:
    """How many times the core-seconds of `one` the other took, round by round; the interval is the range."""
    ratios = [its / mine for mine, its in zip(one["core_s"], other["core_s"], strict=True)]
    found = Estimate(fmean(ratios), math.nan, min(ratios), max(ratios))
    return Figure(where, what, "", found, compared(found, 1.0), "×")


def encoder_size_matters(evidence: Evidence) -> Finding:
    return contests(evidence.plans, [("AutoSAM ViT, ViT-L", "AutoSAM ViT, ViT-B")]) + contests(
        evidence.plans, [("AutoSAM ViT, ViT-H", "AutoSAM ViT, ViT-L")]
    )


def pruning_is_as_good(evidence: Evidence) -> Finding:
    """Pruning has to be as good as no pruning, and better than its controls: as many steps of a plain training, and on
    samples left out at random. That it leaves enough out decides only where it does not."""
    rule = "interactive:pruning.rule={}".format
    measured = sorted({one for pool in evidence.pruning for scores in pool.scores.values() for one in scores})
    last = max((one for one in measured if one.startswith("dice_")), default="dice_3")
    shorter = {one for pool in evidence.pruning for _, one, _ in pool.scores if "train.iterations=" in one}
    controls = [rule("random"), *(sorted(shorter) or ["a plain training of as many steps"])]
    found = contests(evidence.pruning, [(rule("cbdp"), rule("none"))], not_below, last)
    found += contests(evidence.pruning, [(rule("cbdp"), control) for control in controls], above, last)
    found += contests(evidence.pruning, [(rule("cbdp"), rule("infobatch"))], for_context, last)
    pruned = [line for line in evidence.raw("interactive") if line["configuration"] == rule("cbdp")]
    steps = []
    for name in sorted({line["set"] for line in pruned}):
        share = fmean(line["steps"] / line["iterations"] for line in pruned if line["set"] == name)
        vote: Vote | None = None if share <= PRUNED else "against"
        steps.append(Figure(name, "share of the steps made", "", exactly(share), vote, "share"))
    return found + Finding(tuple(steps))


def people_matter_less(evidence: Evidence) -> Finding:
    """Sensitivity is better where it is less, so the method is the second of each pair."""
    pairs = [("interactive:prompts=centre", "interactive"), ("backbone", "interactive")]
    return contests(evidence.clicks, pairs, measure="sensitivity_1") + contests(
        evidence.clicks, [(second, first) for first, second in pairs], for_context, "dice_1"
    )


def it_generalises(evidence: Evidence) -> Finding:
    pairs = [("interactive", "interactive:prompts=centre"), ("interactive", "backbone")]
    return contests(evidence.elsewhere, pairs, measure="dice_1")


def many_regions_are_faster(evidence: Evidence) -> Finding:
    lines = {(line["what"], line["regions"], line["at_once"]): line for line in evidence.raw("multi_region")}
    figures = [
        faster(line["backbone"], f"{what}, {n} regions, times faster than one by one", line, lines[what, n, 1])
        for (what, n, at_once), line in sorted(lines.items())
        if at_once == n > 1
    ]
    return Finding(tuple(figures))


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, how it is judged, and by what."""

    number: str
    says: str
    theirs: str
    """The paper's figure."""
    rule: str
    differs: str
    """Where our test is not the paper's."""
    parts: tuple[str, ...]
    figures: Callable[[Evidence], Finding]

    @property
    def anchor(self) -> str:
        return f"claim-{self.number.replace('.', '-')}"


PAPERS = {
    "1": "Few-shot embeddings as prompts (Xie et al., WACV 2024)",
    "2": "FATE-SAM (He et al., arXiv 2501.09138)",
    "3": "AutoSAM (Hu et al., arXiv 2306.13731)",
    "4": "Interactive multi-organ tuning with pruning (Wang et al., ISBI 2025)",
}
_ABOVE = "Each difference's interval lies above 0"
_EARLIER_FATE = (
    "the figures of the plans acdc, hippocampus and sets were measured before FATE's object pointers and its memory of "
    "labels that it calls present were corrected; of 168 cases that were measured before and after, no Dice differs by "
    "more than 0.0003"
)
_UNETS = (
    "U-Nets that decide have 16 channels and 1,000 steps, the package's defaults when they were measured (augmentation "
    "and initial weights have changed since); narrower ones of 8 channels and 700 steps are for comparison"
)
_CHOSEN = (
    "top_k=5 and window=1, FATE's defaults, were chosen on eight unseen cases of acdc and of msd_hippocampus, some of "
    "which are scored here"
)
_HEADS = "the ViT head has one token and a shared pass instead of the published form, and the CNN He's initialisation"
_SLICE = (
    "on acdc and msd_hippocampus the heads were trained on the Dice of each slice, on the other sets on the Dice of "
    'the batch, as by the authors; configurations called "balanced" have the latter everywhere; they are for comparison'
)
_EARLIER = (
    "on acdc and msd_hippocampus the training had 16 views per slice and the Dice of each slice, on the other sets 4 "
    'views and the Dice of the batch, which are now the defaults; configurations called "balanced" have these '
    "everywhere and are shown for comparison"
)
_TINY = "handful-tiny instead of the paper's SAM"

MEASURED_ON = """## What was chosen on which cases

* **Unseen cases** are chosen at random, others for each split, by the function that plans use. Lines of the studies
  that do not say `"unseen": "random"` are older: they scored the first cases by name, the same ones in every split (on
  acdc all of one disease, on busi benign lesions only). A section says how many of its figures are of such lines.
  Studies that have some: {older}.
* **`handful-tiny`** was trained on synthetic scans alone, but its anatomy follows the kinds of scans in the ten data
  sets, and its versions were compared on up to 25 cases of each ([handful-tiny](handful_tiny.md)). Only data sets that
  it was not developed with can tell how good it is on a new anatomy.
* **The place of crops**: three constants were chosen on draws from ACDC's training patients, some of whom are in acdc,
  and tried on others from acdc and drishti_gs. No figure of this page is of such crops yet.
* **FATE**: `top_k=5` and `window=1` were chosen on eight cases of acdc and eight of msd_hippocampus.
* **Few-shot prompts**: background, views, rate and length of the training were chosen on the first split of
  msd_hippocampus, with earlier weights of `handful-tiny`.
* **AutoSAM**: the CNN head's rate on msd_hippocampus was chosen on two of the fits that are reported.
* **The loss** of AutoSAM and few-shot prompts was changed when both had found nothing on openkbp, whose cases are
  scored.
* **U-Net**: its rate, and no elastic deformation, were chosen on unseen cases of the first split of msd_hippocampus.
  This favours the U-Net there. The plans `acdc` and `sets` call a narrower net "U-Net", which was taken to save time,
  and the package's width "U-Net, 16 channels"; here they are "{narrow}" and "U-Net".
* **Images without labels.** "U-Net + SimCLR" learns from all images of a data set, those of the scored cases included.
  The slices that `suggest` may choose are those of patients who are not scored. No other method in these tables uses
  images without labels."""

CLAIMS = (
    Claim(
        "1.1",
        "Few-shot tokens beat SAM prompted with points.",
        "about +50 % IoU",
        f"{_ABOVE}, and with the most labels the interval of the relative IoU lies above {100 * GAIN:.0f} % (the "
        "annotator's mean is taken as it is).",
        f"{_TINY}; {_EARLIER}; the simulated annotator's points come from the reference of "
        "every slice. Where IoU was not measured, Dice is used.",
        GRID,
        prompts_beat_points,
    ),
    Claim(
        "1.2",
        "As good as full supervision with ten times fewer labels.",
        '"approaching"',
        f"With at most a tenth of the U-Net's largest number of labelled cases, the interval lies above −{MARGIN}.",
        f"{_TINY}, a U-Net with up to 40 labelled volumes instead of nnU-Net with all of them; {_UNETS}; {_EARLIER}.",
        ("acdc", "hippocampus"),
        prompts_need_fewer_labels,
    ),
    Claim(
        "1.3",
        "Only the decoder is trained, and stored embeddings make that cheap.",
        "no number",
        "Fewer parameters are trained than the backbone has, and the backbone is unchanged. An epoch on stored "
        "embeddings is faster in every round, and the fit gives the same result.",
        f"{_TINY}; synthetic scans, since no figure depends on the scans. The interval is the range over rounds.",
        ("what-trains",),
        only_the_decoder_trains,
    ),
    Claim(
        "1.4",
        "The tokens carry the information.",
        "–",
        f"{_ABOVE} over the same decoder prompted with another label's tokens, and with zeros.",
        f"{_TINY}, with the first weights of handful-tiny, which these controls were run with; one split.",
        ("controls",),
        tokens_carry_the_information,
    ),
    Claim(
        "2.1",
        "Better than zero-shot SAM and SAM 2, without training.",
        "BTCV, 3 volumes: 87.2 against 39.1 and 44.4 Dice",
        f"{_ABOVE} over the same backbone prompted with boxes copied from the most similar labelled slice.",
        f"{_TINY} and SAM 2, on our data sets; BTCV with SAM's own weights was not run. On acdc FATE sees whole slices "
        f"and zero-shot a crop, which puts FATE at a disadvantage; {_EARLIER_FATE}.",
        ("fate", *GRID, "btcv"),
        fate_beats_zero_shot,
    ),
    Claim(
        "2.2",
        "Better than supervised training on as few volumes.",
        "BTCV, 3 volumes: 87.2 against 61.4 (U-Net), 22.3 (UNETR) Dice",
        f"{_ABOVE} over a U-Net trained on the same cases, with up to {FEW} of them.",
        f"{_TINY}, our data sets instead of BTCV, no UNETR; {_UNETS}; {_EARLIER_FATE}.",
        (*GRID, "btcv"),
        fate_beats_low_data_supervised,
    ),
    Claim(
        "2.3",
        "Volumetric consistency helps.",
        "unknown",
        f"{_ABOVE} over a fit without neighbouring slices (window=0), and over one without object pointers.",
        f"{_TINY}; three splits of four labelled volumes; {_CHOSEN}.",
        ("fate-settings",),
        consistency_helps,
    ),
    Claim(
        "2.4",
        "Retrieval and more support help.",
        "unknown",
        f"{_ABOVE} over supports chosen at random, over 1 and over 3 supports instead of 5, and, for the most labelled "
        "cases, over the fewest (the two numbers farthest apart that one source has both of).",
        f"{_TINY}; splits of four labelled volumes, except where their number varies; {_CHOSEN}; {_EARLIER_FATE}.",
        ("fate", "fate-settings", *GRID),
        retrieval_and_support_help,
    ),
    Claim(
        "2.5",
        "No expert input, no training.",
        "–",
        "No parameter is trained, the backbone is unchanged, and a scan is segmented from its image alone.",
        "A property of the code, counted after a fit.",
        ("what-trains",),
        fate_trains_nothing,
    ),
    Claim(
        "2.6",
        "Where the authors' code differs from their paper, the paper's way is better.",
        "–",
        f"{_ABOVE} over each of the code's own choices: labelled slices only, L1 similarity, six neighbours.",
        f"{_TINY}; this is our claim, not the paper's. Stale supports and pointers of one direction were not measured; "
        f"{_CHOSEN}.",
        ("fate-settings",),
        fixes_matter,
    ),
    Claim(
        "3.1",
        "Fine-tuning a head on one volume beats zero-shot SAM.",
        "unknown; a replication has .62 to .66 mean Dice",
        f"{_ABOVE} for each of the three heads with 1 labelled case, over boxes copied from that case and over a "
        "simulated annotator's boxes.",
        f"{_TINY}; {_HEADS}; {_SLICE}.",
        GRID,
        heads_beat_zero_shot,
    ),
    Claim(
        "3.2",
        "AutoSAM and the CNN head beat a U-Net, from scratch and self-supervised, when labels are few.",
        "unknown",
        f"{_ABOVE} with up to {FEW} labelled cases, for both heads over both U-Nets. Our own head is for comparison.",
        f"{_TINY}; SimCLR is trained on all images of a data set without their labels, those of the scored cases among "
        f"them, which favours it; {_UNETS}; {_HEADS}; {_SLICE}.",
        GRID,
        heads_beat_unets,
    ),
    Claim(
        "3.3",
        "The linear head is the worst.",
        "a replication has .21 and .46, with a final ReLU",
        f"{_ABOVE} for both other heads over it. The effect of the ReLU is shown for comparison.",
        f"{_TINY}; {_HEADS}; {_SLICE}.",
        GRID,
        linear_is_worst,
    ),
    Claim(
        "3.4",
        "All classes are segmented in one pass.",
        "–",
        "A training step of the published head is faster than one pass per class: the ratio of core-seconds lies above "
        "1 in every round. Our own head is for comparison.",
        "A model of SAM ViT-B's size with random weights; the interval is the range over rounds. The published head "
        "copies the image for each class; ours does not.",
        ("auto-sam-speed",),
        one_pass_is_faster,
    ),
    Claim(
        "3.5",
        "The size of the encoder matters.",
        "unknown",
        f"{_ABOVE} for ViT-L over ViT-B, and for ViT-H over ViT-L.",
        "This needs SAM's own weights.",
        ("encoder-size",),
        encoder_size_matters,
    ),
    Claim(
        "4.1",
        "56.25 % of the iterations are as good as all.",
        "56.25 %",
        f"With at most {100 * PRUNED:.0f} % of the steps, the interval of cbdp minus no pruning lies above −{MARGIN}, "
        "and those of cbdp minus its two controls lie above 0: random pruning, and a plain training of as many steps.",
        f"{_TINY}, our data sets instead of FLARE22 and Synapse; Dice after the annotator's last prompt.",
        ("pruning",),
        pruning_is_as_good,
    ),
    Claim(
        "4.2",
        "The result depends less on how people prompt.",
        "unknown",
        "The standard deviation of a region's Dice over ways of prompting and simulated annotators is larger with "
        "centre clicks, and without tuning: each interval lies above 0.",
        f"{_TINY}, our data sets, simulated annotators; one split.",
        ("clicks",),
        people_matter_less,
    ),
    Claim(
        "4.3",
        "It generalises better to another data set.",
        "unknown",
        f"{_ABOVE} on a data set that it was not fitted on, over a fit with centre clicks, and over no tuning.",
        f"{_TINY}, our data sets instead of FLARE and Synapse; one split.",
        ("generalise",),
        it_generalises,
    ),
    Claim(
        "4.4",
        "Segmenting many regions in one call is faster.",
        "unknown",
        "All regions of a slice in one call are faster than one by one, in prediction and in training: the interval of "
        "the ratio of core-seconds lies above 1 for each number of regions.",
        "The decoder of handful-tiny; the interval is the range over rounds.",
        ("multi-region",),
        many_regions_are_faster,
    ),
)
