"""What became of the papers' claims on real scans: docs/claims.md, and the tables in other documents, from raw results.

    python benchmarks/claims.py                                  # rewrites the documents from docs/results
    python benchmarks/claims.py --data FOLDER [--part acdc ...]  # measures first; what is there is not measured again
    python benchmarks/claims.py --curves                         # and draws the pictures in docs

FOLDER holds one data set a subfolder; parts that time phantoms need none, but their names. A claim is an entry of
CLAIMS: what its paper says, the rule by which it is judged, the parts that measure it, and a function from the evidence
to figures. No verdict is typed in; results that are not there make a claim "not tested here".

Tables between `<!-- table: NAME -->` and `<!-- end -->` in README.md and docs/ are written anew. Names are those of
claims_tables.py and `claims PATH`, the overview with links to PATH.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import interactive_study
import quality
import suggest
from claims_evidence import Difference, Evidence, Pool, balanced, compare, difference, read_evidence, sets_of
from claims_tables import MARKED, TABLES, UNMEASURED, draw_curves, matches, table, with_tables
from handful.errors import SettingsError
from handful.evaluation.evaluate import Estimate

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
MARGIN = 0.02
"""How much worse still passes for as good, in Dice or IoU."""
FEW = 5
"""Labelled cases that are few."""
FACTOR = 10
"""How many times fewer labels claim 1.2 speaks of."""
GAIN = 0.5
"""By what share claim 1.1 says that IoU rises."""
SOME_FAILED = 3
"""Exit code of an experiment of which some fits failed; its table has the others."""
PRUNED = 0.65
"""Share of the steps that pruning may leave, to be about the paper's 0.5625."""

Verdict = Literal["holds", "holds in part", "does not hold", "not tested here"]


# ---------------------------------------------------------------------------------------------------------------------
# How results are made


@dataclass(frozen=True)
class Part:
    """Commands that make a result file; {data} is the folder of data sets.

    Plans and studies go on where they were stopped; what only takes times is taken anew.
    """

    commands: tuple[str, ...]
    needs: str = ""
    """What is not at hand everywhere; such a part runs only when it is named."""
    times: str = ""
    """File of times: once it is there, such a part runs only when it is named."""

    @property
    def is_usual(self) -> bool:
        """Whether it runs without being named."""
        return not self.needs and not (self.times and (ROOT / self.times).exists())


def plan(name: str, needs: str = "", *, alone: bool = False) -> Part:
    """A plan in experiments/claims, and its table taken over; `alone` one fit after the other, for their times."""
    run = f"handful experiment run experiments/claims/{name}.toml -o runs/{name} --data {{data}}"
    table_of = f"docs/results/{name}.parquet"
    if not alone:
        run += (
            f" --cache runs/embeddings --known {table_of}" if (ROOT / table_of).exists() else " --cache runs/embeddings"
        )
    taken = f"cp runs/{name}/results.parquet {table_of}"
    return Part((run + " --processes 1" * alone, taken), needs, times=table_of if alone else "")


def bench(result: str, *commands: str) -> Part:
    """Benchmarks that add lines to a file."""
    return Part(tuple(f"python benchmarks/{command} --out docs/results/{result}.jsonl" for command in commands))


def stopwatch(result: str, command: str) -> Part:
    """A benchmark that writes its file anew."""
    return Part(
        (f"python benchmarks/{command} --out docs/results/{result}.jsonl",), times=f"docs/results/{result}.jsonl"
    )


_EFFICIENCY = "label_efficiency.py --data {data} --cases 8"
_SETTINGS = (
    "window=0 window=6 pointers=false top_k=1 top_k=3 top_k=9 shuffled=1 allow_empty=true foreground_only=true "
    "diverse=true fuse=true second_sweep=true largest_component=true start=best similarity=l1 absent_below=-2"
)
_STUDY = "interactive_study.py {part} --data {{data}} --shots 4"
_ASKED = "--draws 0 --cases 6 --slices 4 --people 1"

PARTS: dict[str, Part] = {
    "acdc": plan("acdc"),
    "hippocampus": plan("hippocampus"),
    "sets": plan("sets"),
    "time": plan("time", alone=True),
    "fate": bench(
        "label_efficiency",
        f"{_EFFICIENCY} --sets msd_hippocampus acdc chaos_mr_t2 --shots 4 "
        "--arms nearest-slice zero-shot fate fate:closer=1.4 reader-points-1 reader-box",
        f"{_EFFICIENCY} --sets acdc --shots 1 2 8 --arms nearest-slice fate fate:closer=1.4",
        f"{_EFFICIENCY} --sets msd_hippocampus chaos_mr_t2 --shots 1 2 8 --arms nearest-slice fate",
        f"{_EFFICIENCY} --sets busi camus cxr_covid drishti_gs dsb2018 kvasir_seg --shots 1 2 4 8 "
        "--arms nearest-slice zero-shot fate reader-box",
        f"{_EFFICIENCY} --sets msd_hippocampus --shots 4 --arms fate:planes=axial,coronal,sagittal",
        f"{_EFFICIENCY} --sets openkbp --shots 4 "
        "--arms nearest-slice fate fate:closer=1.4 fate:closer=1.4,absent_below=-2",
        f"{_EFFICIENCY} --sets acdc msd_hippocampus --shots 4 --draws 0 --arms "
        + " ".join(f"fate:{setting}" for setting in _SETTINGS.split()),
    ),
    "controls": bench(
        "few_shot_prompts",
        "real_data.py --data {data} --threads 1 --controls --seeds 0",
        "real_data.py --data {data} --threads 1",
    ),
    "clicks": bench("interactive", f"{_STUDY.format(part='clicks')} {_ASKED} --sets acdc chaos_mr_t2 openkbp"),
    "generalise": bench(
        "interactive", f"{_STUDY.format(part='generalise')} {_ASKED} --fitted-on acdc --sets chaos_mr_t2"
    ),
    "pruning": bench(
        "interactive", f"{_STUDY.format(part='pruning')} --sets chaos_mr_t2 --seeds 0 1 2 --iterations 200"
    ),
    "auto-sam-speed": stopwatch("auto_sam_speed", "auto_sam_speed.py"),
    "suggest": bench(
        "suggest",
        "suggest.py --data {data} --sets acdc chaos_mr_t2 msd_hippocampus --method fate --budgets 4 16 "
        "--draws 0 1 2 --cases 8 --cache runs/embeddings",
    ),
    "quality": bench(
        "quality", "quality.py --data {data} --sets msd_hippocampus acdc chaos_mr_t2 --shots 4 --draws 0 1 2 --cases 12"
    ),
    "multi-region": stopwatch("multi_region", "multi_region.py"),
    "what-trains": stopwatch("what_trains", "what_trains.py"),
    "encoder-size": plan("encoder_size", "the weights of SAM ViT-B, ViT-L and ViT-H, and a GPU"),
    "btcv": plan("btcv", "BTCV's scans in FOLDER/btcv, and the weights of SAM ViT-B and SAM 2.1 Hiera-tiny"),
}
GRID = ("acdc", "hippocampus", "sets")


def measure(parts: Iterable[str], data: Path | None) -> None:
    """Runs the commands of each part, one after the other, from the repository's root; some need no data."""
    for name in parts:
        for command in PARTS[name].commands:
            if data is None and "{data}" in command:
                raise SettingsError(f"part {name!r} measures scans; name their folder, with --data or DATA=")
            words = [word.format(data=data) for word in shlex.split(command)]
            print("$", shlex.join(words), flush=True)
            if words[0] == "cp":
                shutil.copyfile(ROOT / words[1], ROOT / words[2])
                continue
            program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
            ended = subprocess.run([program, *words[1:]], cwd=ROOT)
            if words[0] == "handful" and ended.returncode == SOME_FAILED:
                print(f"part {name!r}: some fits failed and are left out; handful experiment status tells which")
            else:
                ended.check_returncode()


# ---------------------------------------------------------------------------------------------------------------------
# Figures and verdicts


@dataclass(frozen=True)
class Figure:
    """One number with its 95 % interval, and whether it speaks for the claim."""

    where: str
    what: str
    column: str
    estimate: Estimate
    supports: bool | None
    """None where it is shown beside and decides nothing."""
    unit: Literal["", "×", "%", "n", "share"] = ""
    cases: int = 0
    draws: int = 0

    def __str__(self) -> str:
        one = self.estimate
        if self.unit in ("n", "share"):
            return f"{one.mean:,.0f}" if self.unit == "n" else f"{100 * one.mean:.0f} %"
        scale, form = {"": (1, "+.3f"), "×": (1, ".2f"), "%": (100, "+.0f")}[self.unit]
        ends = "" if math.isnan(one.low) else f" [{scale * one.low:{form}}, {scale * one.high:{form}}]"
        space = " " if self.unit == "%" else ""
        return f"{scale * one.mean:{form}}{ends}{space}{self.unit}"


@dataclass(frozen=True)
class Finding:
    """What results say of a claim."""

    figures: tuple[Figure, ...]
    missing: tuple[str, ...] = ()
    """Comparisons that the claim speaks of and nothing was measured for."""

    def __add__(self, other: Finding) -> Finding:
        return Finding(self.figures + other.figures, self.missing + other.missing)

    @property
    def deciding(self) -> list[Figure]:
        return [one for one in self.figures if one.supports is not None]

    @property
    def verdict(self) -> Verdict:
        """By how many of the deciding figures support the claim; one that is missing keeps it from 'holds'."""
        support = [bool(one.supports) for one in self.deciding]
        if not support:
            return "not tested here"
        if all(support) and not self.missing:
            return "holds"
        return "holds in part" if any(support) else "does not hold"


Rule = Callable[[Difference], bool | None]


def above(one: Difference) -> bool:
    """The whole interval lies above 0."""
    return one.estimate.low > 0


def not_below(one: Difference) -> bool:
    """The whole interval lies above -MARGIN."""
    return one.estimate.low > -MARGIN


def beside(one: Difference) -> None:
    """Shown, and decides nothing."""


def figure(one: Difference, rule: Rule) -> Figure:
    first, second = one.shots
    same = first == second
    what = f"{one.first} − {one.second}" if same else f"{one.first} with {first} − {one.second} with {second}"
    measure = {"dice": "", "iou": ", IoU", "hd95": ", HD95"}.get(one.measure, f", {one.measure}")
    column = f"{first} labelled" if same else ""
    return Figure(one.data_set, what + measure, column, one.estimate, rule(one), cases=one.cases, draws=one.draws)


def contests(
    pools: Sequence[Pool],
    pairs: Sequence[tuple[str, str]],
    rule: Rule = above,
    measure: str = "dice",
    shots: Callable[[int], bool] = lambda n: True,
) -> Finding:
    """First minus second of each pair, wherever both were measured."""
    figures: list[Figure] = []
    missing: list[str] = []
    for first, second in pairs:
        found = compare(pools, first, second, measure, shots)
        figures += [figure(one, rule) for one in found]
        if not found and rule is not beside:
            missing.append(f"{first} − {second}")
    return Finding(tuple(figures), tuple(missing))


# ---------------------------------------------------------------------------------------------------------------------
# From results to figures, a function a claim


def prompts_beat_points(evidence: Evidence) -> Finding:
    plain, readers = "few-shot prompts", ("reader: 1 point", "reader: 3 points")
    found = Finding(())
    for ours, reader in itertools.product((plain, balanced(plain)), readers):
        differences = compare(evidence.plans, ours, reader, "iou") or compare(evidence.scans, ours, reader)
        if not differences and ours == plain:
            found += Finding((), (f"{ours} − {reader}",))
        most = {one.data_set: max(d.shots[0] for d in differences if d.data_set == one.data_set) for one in differences}
        for one in differences:
            found += Finding((figure(one, above if ours == plain else beside),))
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
        share.mean >= GAIN,
        "%",
        one.cases,
        one.draws,
    )


def prompts_need_fewer_labels(evidence: Evidence) -> Finding:
    ours, baseline, pools = "few-shot prompts", "U-Net", evidence.plans
    found = of_both_losses(evidence, [(ours, baseline)], beside)
    compared: list[Figure] = []
    for name in sets_of(pools, (baseline,)):
        few, many = (sorted(tried(pools, name, arm)) for arm in (ours, baseline))
        for n in many:
            most = max((m for m in few if FACTOR * m <= n), default=None)
            one = difference(pools, name, (ours, most), (baseline, n)) if most else None
            compared += [figure(one, not_below if n == many[-1] else beside)] if one else []
    missing = () if compared else (f"{ours} − {baseline} with {FACTOR} times the labels",)
    return Finding(tuple(compared), missing) + found


def tried(pools: Iterable[Pool], data_set: str, arm: str) -> set[int]:
    """Numbers of labelled cases that an arm was measured with."""
    return {n for pool in pools for name, one, n in pool.scores if (name, one) == (data_set, arm)}


def only_the_decoder_trains(evidence: Evidence) -> Finding:
    figures: list[Figure] = []
    for line in evidence.raw("what_trains"):
        if line["method"] != "few-shot-prompts":
            continue
        if line["what"] == "trained":
            held = line["backbone_is_untouched"] and line["trained_parameters"] < line["backbone_parameters"]
            where = line["backbone"]
            figures.append(Figure(where, "parameters trained", "", exactly(line["trained_parameters"]), held, "n"))
            figures.append(Figure(where, "of the backbone", "", exactly(line["backbone_parameters"]), None, "n"))
        else:
            middle, low, high = line["times_faster"]
            held = low > 1 and line["same_result"]
            saved = Estimate(middle, math.nan, low, high)
            what = "an epoch on kept embeddings, times faster; same result"
            figures.append(Figure("handful-tiny", what, "", saved, held, "×"))
    return Finding(tuple(figures))


def exactly(value: float) -> Estimate:
    return Estimate(float(value), math.nan, math.nan, math.nan)


def tokens_carry_the_information(evidence: Evidence) -> Finding:
    pairs = [("few-shot prompts", "wrong tokens"), ("few-shot prompts", "zero tokens")]
    return contests(evidence.benches, pairs)


def fate_beats_zero_shot(evidence: Evidence) -> Finding:
    closer, reader = ("FATE, closer", "zero-shot, box"), ("FATE, closer", "reader: 1 point")
    return contests(evidence.scans, [("FATE", "zero-shot, box")]) + contests(evidence.scans, [closer, reader], beside)


def fate_beats_low_data_supervised(evidence: Evidence) -> Finding:
    found = contests(evidence.plans, [("FATE", "U-Net")], shots=lambda n: n <= FEW)
    found += contests(evidence.plans, [("FATE", "U-Net")], beside, shots=lambda n: n > FEW)
    return found + contests(evidence.plans, [("FATE, closer", "U-Net")], beside)


def consistency_helps(evidence: Evidence) -> Finding:
    neighbours, pointers = ("FATE", "fate:window=0"), ("FATE", "fate:pointers=false")
    far = [("fate:window=0", "FATE")]
    return contests(evidence.benches, [neighbours, pointers]) + contests(evidence.benches, far, beside, "hd95")


def retrieval_and_support_help(evidence: Evidence) -> Finding:
    pools = evidence.benches
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
                "parameters trained; segments a scan without being asked",
                "",
                exactly(line["trained_parameters"]),
                line["trained_parameters"] == 0
                and line["backbone_is_untouched"]
                and line["predicts_from_the_scan_alone"],
                "n",
            )
            for line in evidence.raw("what_trains")
            if line["method"] == "fate"
        )
    )


def fixes_matter(evidence: Evidence) -> Finding:
    theirs = ("fate:foreground_only=true", "fate:similarity=l1", "fate:window=6")
    return contests(evidence.benches, [("FATE", one) for one in theirs])


def heads_beat_zero_shot(evidence: Evidence) -> Finding:
    heads = ("AutoSAM ViT", "AutoSAM CNN", "AutoSAM linear")
    pairs = [(head, floor) for floor in ("zero-shot, box", "reader: box") for head in heads]
    return of_both_losses(evidence, pairs, above, lambda n: n == 1)


def heads_beat_unets(evidence: Evidence) -> Finding:
    pairs = [(head, unet) for unet in ("U-Net", "U-Net + SimCLR") for head in ("AutoSAM ViT", "AutoSAM CNN")]
    more = of_both_losses(evidence, pairs[:2], beside, lambda n: n > FEW)
    more += of_both_losses(evidence, [("AutoSAM U-Net", "U-Net")], beside)
    return of_both_losses(evidence, pairs, above, lambda n: n <= FEW) + more


def linear_is_worst(evidence: Evidence) -> Finding:
    found = of_both_losses(evidence, [("AutoSAM ViT", "AutoSAM linear"), ("AutoSAM CNN", "AutoSAM linear")], above)
    return found + contests(evidence.plans, [("AutoSAM linear", "AutoSAM linear, ReLU")], beside)


def of_both_losses(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], rule: Rule, shots: Callable[[int], bool] = lambda n: True
) -> Finding:
    """As `contests`; arms with the later loss, where a plan has them, stand beside, so that nothing counts twice."""
    later = [(balanced(first), balanced(second)) for first, second in pairs]
    return contests(evidence.plans, pairs, rule, shots=shots) + contests(evidence.plans, later, beside, shots=shots)


def one_pass_is_faster(evidence: Evidence) -> Finding:
    times = {line["variant"]: line for line in evidence.raw("auto_sam_speed")}
    together, alone = (times.get(name) for name in ("all classes in one pass", "one pass a class"))
    if together is None or alone is None:
        return Finding(())
    where = f"SAM ViT-B, {together['side']} pixels, {together['classes']} classes"
    return Finding((faster(where, "a training step, times faster than one pass a class", together, alone),))


def faster(where: str, what: str, one: dict[str, list[float]], other: dict[str, list[float]]) -> Figure:
    """How many times the core-seconds of `one` the other took, round by round."""
    ratios = Estimate.of([its / mine for mine, its in zip(one["core_s"], other["core_s"], strict=True)])
    return Figure(where, what, "", ratios, ratios.low > 1, "×")


def encoder_size_matters(evidence: Evidence) -> Finding:
    return contests(evidence.plans, [("AutoSAM ViT, ViT-L", "AutoSAM ViT, ViT-B")]) + contests(
        evidence.plans, [("AutoSAM ViT, ViT-H", "AutoSAM ViT, ViT-L")]
    )


def pruning_is_as_good(evidence: Evidence) -> Finding:
    arm = "interactive:pruning.rule={}".format
    measured = sorted({one for pool in evidence.pruning for scores in pool.scores.values() for one in scores})
    last = max((one for one in measured if one.startswith("dice_")), default="dice_3")
    found = contests(evidence.pruning, [(arm("cbdp"), arm("none"))], not_below, last)
    found += contests(evidence.pruning, [(arm("cbdp"), arm("random")), (arm("cbdp"), arm("infobatch"))], beside, last)
    pruned = [line for line in evidence.raw("interactive") if line["arm"] == arm("cbdp")]
    steps = []
    for name in sorted({line["set"] for line in pruned}):
        share = fmean(line["steps"] / line["iterations"] for line in pruned if line["set"] == name)
        steps.append(Figure(name, "share of the steps made", "", exactly(share), share <= PRUNED, "share"))
    return found + Finding(tuple(steps))


def people_matter_less(evidence: Evidence) -> Finding:
    """Sensitivity is better where it is less, so the method is the second of each pair."""
    pairs = [("interactive:prompts=centre", "interactive"), ("backbone", "interactive")]
    return contests(evidence.clicks, pairs, measure="sensitivity_1") + contests(
        evidence.clicks, [(second, first) for first, second in pairs], beside, "dice_1"
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


# ---------------------------------------------------------------------------------------------------------------------
# The claims


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
_SLICE = (
    "on acdc and msd_hippocampus the heads were trained on each slice's Dice, the authors' on the batch's, as here on "
    'the other sets; arms called "balanced" have that, too, and stand beside'
)
_EARLIER = (
    "on acdc and msd_hippocampus 16 views a slice and each slice's own Dice were trained on, on the other sets 4 views "
    'and the Dice of the batch, now the defaults; arms called "balanced" have these, too, and stand beside'
)
_TINY = "handful-tiny in place of the paper's SAM"

CLAIMS = (
    Claim(
        "1.1",
        "Few-shot tokens beat SAM asked with points.",
        "about +50 % IoU",
        f"{_ABOVE}, and with the most labels IoU rises by at least {100 * GAIN:.0f} % of the reader's.",
        f"{_TINY}; {_EARLIER}; the reader's points come from the truth on every slice, so it knows where an organ is. "
        "IoU is in the plans' tables; where these were not run yet, Dice stands for it.",
        GRID,
        prompts_beat_points,
    ),
    Claim(
        "1.2",
        "As good as fully supervised with ten times fewer labels.",
        '"approaching"',
        f"With at most a tenth of the labelled cases that the U-Net had at most, the interval lies above −{MARGIN}.",
        f"{_TINY}, a U-Net of up to 40 labelled volumes in place of nnU-Net on all of them; {_EARLIER}.",
        ("acdc", "hippocampus"),
        prompts_need_fewer_labels,
    ),
    Claim(
        "1.3",
        "Only the decoder is trained, and keeping embeddings makes that cheap.",
        "no number",
        "Fewer parameters train than the backbone has, which stays as it was; an epoch on kept embeddings is faster in "
        "every round and fits give the same result.",
        f"{_TINY}; phantoms, as nothing depends on the scans. The interval is the range over rounds.",
        ("what-trains",),
        only_the_decoder_trains,
    ),
    Claim(
        "1.4",
        "The tokens carry the information.",
        "–",
        f"{_ABOVE} when the same decoder is asked with another label's tokens, and with zeros.",
        f"{_TINY}: its first weights, which the controls were run with.",
        ("controls",),
        tokens_carry_the_information,
    ),
    Claim(
        "2.1",
        "Without training better than zero-shot SAM and SAM 2.",
        "BTCV, 3 volumes: 87.2 against 39.1 and 44.4 Dice",
        f"{_ABOVE} over the same backbone asked with boxes carried over from the most similar labelled slice.",
        f"{_TINY} and of SAM 2, on our sets; BTCV with SAM's own weights was not run.",
        ("fate", *GRID, "btcv"),
        fate_beats_zero_shot,
    ),
    Claim(
        "2.2",
        "Better than supervised training on as few volumes.",
        "BTCV, 3 volumes: 87.2 against 61.4 (U-Net), 22.3 (UNETR) Dice",
        f"{_ABOVE} over a U-Net trained on the same cases, with up to {FEW} of them.",
        f"{_TINY}, our sets in place of BTCV, no UNETR.",
        (*GRID, "btcv"),
        fate_beats_low_data_supervised,
    ),
    Claim(
        "2.3",
        "Volumetric consistency helps.",
        "unknown",
        f"{_ABOVE} over no neighbouring slices (window=0), and over none of their object pointers.",
        f"{_TINY}; one draw of four labelled volumes.",
        ("fate",),
        consistency_helps,
    ),
    Claim(
        "2.4",
        "Retrieval and more support help.",
        "unknown",
        f"{_ABOVE} over supports dealt out at random, over 1 and 3 supports in place of 5, and over the fewest "
        "labelled cases (of the numbers that one source has both of, the two farthest apart).",
        f"{_TINY}; one draw of four labelled volumes, but for the number of them.",
        ("fate", *GRID),
        retrieval_and_support_help,
    ),
    Claim(
        "2.5",
        "No expert input, no training.",
        "–",
        "No parameter trains, the backbone stays as it was, and a scan is segmented from its image alone.",
        "A property of the code, counted after a fit.",
        ("what-trains",),
        fate_trains_nothing,
    ),
    Claim(
        "2.6",
        "What the authors' code does otherwise than their paper matters.",
        "–",
        f"{_ABOVE} over each switch that brings back what the code does: labelled slices only, L1 similarity, six "
        "neighbours.",
        f"{_TINY}; ours to claim, not the paper's. Stale supports and pointers of one direction were not measured.",
        ("fate",),
        fixes_matter,
    ),
    Claim(
        "3.1",
        "Fine-tuning a head on one volume beats zero-shot SAM.",
        "unknown; a replication has .62 to .66 mean Dice",
        f"{_ABOVE} for each of the three heads with 1 labelled case, over boxes carried over from it and over a "
        "reader's.",
        f"{_TINY}; {_SLICE}.",
        GRID,
        heads_beat_zero_shot,
    ),
    Claim(
        "3.2",
        "AutoSAM and the CNN head beat a U-Net, from scratch and self-supervised, when labels are few.",
        "unknown",
        f"{_ABOVE} with up to {FEW} labelled cases, for both heads over both U-Nets. Our own head stands beside.",
        f"{_TINY}; SimCLR learns from the scans that the plan names; {_SLICE}.",
        GRID,
        heads_beat_unets,
    ),
    Claim(
        "3.3",
        "The linear head is the worst.",
        "a replication has .21 and .46, with the ReLU at its end",
        f"{_ABOVE} for both other heads over it. What the ReLU costs stands beside.",
        f"{_TINY}; {_SLICE}.",
        GRID,
        linear_is_worst,
    ),
    Claim(
        "3.4",
        "All classes come in one pass.",
        "–",
        "A training step takes less than one pass a class; the interval of the ratio of core-seconds lies above 1.",
        "SAM ViT-B's true size with random weights; the interval is a bootstrap over rounds.",
        ("auto-sam-speed",),
        one_pass_is_faster,
    ),
    Claim(
        "3.5",
        "The size of the encoder matters.",
        "unknown",
        f"{_ABOVE} for ViT-L over ViT-B, and for ViT-H over ViT-L.",
        "Needs SAM's own weights; nothing of ours can stand for them.",
        ("encoder-size",),
        encoder_size_matters,
    ),
    Claim(
        "4.1",
        "56.25 % of the iterations are as good as all.",
        "56.25 %",
        f"The interval of cbdp minus no pruning lies above −{MARGIN}, with at most {100 * PRUNED:.0f} % of the steps.",
        f"{_TINY}, our sets in place of FLARE22 and Synapse; Dice after the last of the reader's prompts.",
        ("pruning",),
        pruning_is_as_good,
    ),
    Claim(
        "4.2",
        "What comes out depends less on how people ask.",
        "unknown",
        "The spread of one region's Dice over ways and people is larger with centre clicks, and without tuning: each "
        "interval lies above 0.",
        f"{_TINY}, our sets, simulated people.",
        ("clicks",),
        people_matter_less,
    ),
    Claim(
        "4.3",
        "It generalises better to another data set.",
        "unknown",
        f"{_ABOVE} on a set it was not fitted on, over centre clicks fitted likewise, and over no tuning.",
        f"{_TINY}, our sets in place of FLARE to Synapse.",
        ("generalise",),
        it_generalises,
    ),
    Claim(
        "4.4",
        "Many regions at once are faster.",
        "unknown",
        "All regions of a slice in one call take less than one by one, answering and training: the interval of the "
        "ratio of core-seconds lies above 1 for each number of regions.",
        "The decoder of handful-tiny; the interval is a bootstrap over rounds.",
        ("multi-region",),
        many_regions_are_faster,
    ),
)


# ---------------------------------------------------------------------------------------------------------------------
# The document

HEAD = """# The papers' claims, on our scans

Written by `make claims` from the raw lines in [results/](results); nothing here is typed in, verdicts least of all.
`make claims DATA=folder` measures what is missing first (days on two cores; `PART=acdc` takes one part), and goes on
where it was stopped.

Figures are differences of mean Dice over unseen cases, first arm minus second, paired by draw and case, with 95 %
two-stage bootstrap intervals over draws and cases (of one draw, over its cases), unless they say otherwise. A missed or
invented label counts as 0.
**Bold** figures support their claim by its rule, plain ones do not, those in (brackets) stand beside and decide
nothing. The overview shows the median of the deciding ones.

* **holds**: all deciding figures support it, and none of the comparisons it speaks of is missing.
* **holds in part**: some do.
* **does not hold**: none does. That includes differences that these few cases cannot tell from 0.
* **not tested here**: there is no figure, for the reason named.

Unless a row says otherwise all is with `handful-tiny`, not with SAM's weights, and on other data than the papers'. A
verdict says how the method fares in that setting; it neither proves nor refutes a paper. Many figures are looked at and
none is corrected for that: of forty intervals, one lies above 0 by chance.
"""


def document(evidence: Evidence) -> str:
    """docs/claims.md."""
    found = [(claim, claim.figures(evidence)) for claim in CLAIMS]
    parts = [HEAD, overview(found, "#"), f"## To match a U-Net\n\n{matches(evidence)}"]
    for paper, title in PAPERS.items():
        parts.append(f"## {title}")
        parts += [section(claim, one) for claim, one in found if claim.number.startswith(paper)]
    parts.append(recipes())
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview(found: Sequence[tuple[Claim, Finding]], page: str) -> str:
    """A row a claim, linked to its section on `page`."""
    rows = [
        (f"[{claim.number}]({page}{claim.anchor})", claim.says, claim.theirs, headline(one), said(claim, one))
        for claim, one in found
    ]
    return table(("", "claim", "the paper's figure", "ours", "verdict"), rows)


def claims_table(evidence: Evidence, words: Sequence[str]) -> str:
    """The overview, for another document: `words` is the way from there to this one."""
    return overview([(claim, claim.figures(evidence)) for claim in CLAIMS], f"{words[0] if words else 'claims.md'}#")


def suggest_table(evidence: Evidence, words: Sequence[str]) -> str:
    """What suggested slices are worth beside random ones."""
    lines = list(evidence.raw("suggest"))
    return suggest.tables(lines) if lines else UNMEASURED


def pruning_table(evidence: Evidence, words: Sequence[str]) -> str:
    """The rules of pruning: Dice of each organ, what they left out, and what that saved."""
    lines = [line for line in evidence.raw("interactive") if line["part"] == "pruning"]
    return interactive_study.pruning_tables(lines) if lines else UNMEASURED


def quality_table(evidence: Evidence, words: Sequence[str]) -> str:
    """How well a predicted Dice agrees with the true one."""
    lines = list(evidence.raw("quality"))
    return quality.tables(lines) if lines else UNMEASURED


def said(claim: Claim, finding: Finding) -> str:
    """The verdict, with the reason where there is none."""
    if finding.verdict != "not tested here":
        return f"**{finding.verdict}**"
    needs = next((PARTS[part].needs for part in claim.parts if PARTS[part].needs), "")
    return f"{finding.verdict}: {f'needs {needs}' if needs and len(claim.parts) == 1 else 'not run yet'}"


def headline(finding: Finding) -> str:
    """The median of the deciding figures that share a unit with the first, and how many of all support the claim."""
    deciding = finding.deciding
    if not deciding:
        return "–"
    alike = sorted((one for one in deciding if one.unit == deciding[0].unit), key=lambda one: one.estimate.mean)
    middle = alike[(len(alike) - 1) // 2]
    where = ", ".join(filter(None, (middle.where, middle.column)))
    count = f"; {sum(bool(one.supports) for one in deciding)} of {len(deciding)} in favour" if len(deciding) > 1 else ""
    return f"{middle} ({middle.what}; {where}){count}"


def section(claim: Claim, finding: Finding) -> str:
    """A claim with its rule, its figures and its commands."""
    lines = [
        f'<a id="{claim.anchor}"></a>\n\n### {claim.number} {claim.says}',
        f"{said(claim, finding)}. Rule: {claim.rule} What differs: {claim.differs}",
    ]
    if finding.missing and finding.figures:
        lines.append(f"Not measured yet: {'; '.join(finding.missing)}.")
    if finding.figures:
        lines.append(grid(finding.figures) + counted(finding.figures))
    with_data = any("{data}" in command for part in claim.parts for command in PARTS[part].commands)
    parts = " ".join(claim.parts)
    lines.append(f'`make claims {"DATA=FOLDER " if with_data else ""}PART="{parts}"`')
    return "\n\n".join(lines)


def counted(figures: Sequence[Figure]) -> str:
    """Of how many cases and draws the figures are."""
    cases, draws = ([one for figure in figures if (one := getattr(figure, name))] for name in ("cases", "draws"))
    if not cases:
        return ""
    return f"\n\nUnseen cases a figure: {between(cases)}; draws of the labelled ones: {between(draws)}."


def between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def recipes() -> str:
    """What each part runs."""
    lines = []
    for name, part in PARTS.items():
        lines.append(f"# {name}" + (f": needs {part.needs}; runs only when it is named" if part.needs else ""))
        lines += [command.format(data="FOLDER") for command in part.commands]
    return "## What each part runs\n\n```\n" + "\n".join(lines) + "\n```"


def grid(figures: Sequence[Figure]) -> str:
    """Figures by data set and comparison, with the numbers of labelled cases side by side; then those without."""
    columns = sorted({one.column for one in figures if one.column}, key=lambda name: int(name.split()[0]))
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for one in figures:
        rows.setdefault((one.where, one.what), {})[one.column] = one
    wide = [
        (*row, *[shown(cells[column]) if column in cells else "" for column in columns])
        for row, cells in rows.items()
        if "" not in cells
    ]
    narrow = [(*row, shown(cells[""])) for row, cells in rows.items() if "" in cells]
    tables = [table(("where", "what", *columns), wide)] if wide else []
    return "\n\n".join(tables + ([table(("where", "what", "figure"), narrow)] if narrow else []))


def shown(one: Figure) -> str:
    return f"({one})" if one.supports is None else f"**{one}**" if one.supports else str(one)


def documents(evidence: Evidence, root: Path = ROOT) -> dict[Path, str]:
    """Every document that is made of results, and what it should hold."""
    own = {"claims": claims_table, "pruning": pruning_table, "suggest": suggest_table, "quality": quality_table}
    tables = TABLES | own
    made = {root / "docs" / "claims.md": document(evidence)}
    for path in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if path not in made and MARKED in (text := path.read_text(encoding="utf-8")):
            made[path] = with_tables(text, tables, evidence, path.name)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets: measure what is missing first")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument(
        "--curves", action="store_true", help="also draw docs/label_efficiency.png and docs/quality.png"
    )
    arguments = parser.parse_args()
    usual = [name for name, part in PARTS.items() if part.is_usual] if arguments.data else []
    measure(arguments.part or usual, arguments.data.resolve() if arguments.data else None)
    evidence = read_evidence(RESULTS)
    for path, text in documents(evidence).items():
        path.write_text(text, encoding="utf-8")
        print("wrote", path.relative_to(ROOT))
    if arguments.curves:
        draw_curves(evidence, ROOT / "docs" / "label_efficiency.png")
        if lines := list(evidence.raw("quality")):
            quality.draw(lines, ROOT / "docs" / "quality.png")


if __name__ == "__main__":
    main()
