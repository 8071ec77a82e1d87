"""How well the quality that is predicted without a reference agrees with the true one, on unseen cases of real scans.

    python -m reproduction.studies.quality --data FOLDER --sets msd_hippocampus acdc chaos_mr_t2 --shots 4 --splits 0 1
    2

FOLDER holds one subfolder per data set (images/, labels/, dataset.json). A configuration is a method, or a method with
settings such as "fate:window=0". It is fitted on a split of the labelled cases and predicts up to --cases cases of
other patients; `predict_quality` then judges each prediction from the image, the prediction and the support alone, and
only afterwards the reference is read. The true Dice of a label that neither map holds is left out, as in all means.

The table, of each set and configuration and of each way to predict (calibrated, the plain mean of the signals, each
signal by itself): Pearson and Spearman correlation with the true Dice over all cases and labels, and Spearman within a
label and split, averaged, which no difference between labels helps; the mean absolute error, beside that of saying the
mean Dice that the support has when each of its cases is left out ("usual", what one would say without looking); and the
queue: how many of the truly worst quarter are in the first quarter, where by chance it would be a quarter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import pearsonr, spearmanr

from handful.backbones.base import Backbone
from handful.curation.calibration import Calibration, Compared, calibrate
from handful.curation.quality import CaseQuality, estimating_quality
from handful.curation.signals import SIGNALS
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import LabelMap
from handful.evaluation.evaluate import score_case
from handful.methods.base import Segmenter
from reproduction.configurations import build, parse
from reproduction.evidence import FIRST
from reproduction.markdown import count, table
from reproduction.scoring import reference_of
from reproduction.study import Line, Split, Study, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = ("calibrated", "plain mean", *SIGNALS)


def main() -> None:
    parser = STUDY.parser()
    parser.add_argument("--configurations", nargs="+", default=["fate"], metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--shots", nargs="+", type=int, default=[4])
    parser.add_argument("--cases", type=int, default=12, help="unseen cases a split, at most")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class QualityTrial(Trial):
    """One fit, what it predicts, and what is said of that."""

    configuration: str
    shots: int
    split: int
    most_cases: int

    def results(self, backbone: Backbone) -> list[Line]:
        """Fits, predicts, judges, and only then scores."""
        split = Split.of(self.folder, self.shots, self.split, self.most_cases)
        method = build(*parse(self.configuration), self.split)

        def fit(cases: SupportSet) -> Segmenter:
            return method.fit(cases, backbone)

        segmenter = fit(split.support)
        predicted = [(case, segmenter.predict(case.read_image())) for case in split.unseen]
        began = time.monotonic()
        with estimating_quality(segmenter, split.support) as estimator:
            compared = estimator.left_out(split.support, fit)
            calibration = calibrate(compared, split.labels)
            calibrated = time.monotonic()
            judged = [(case, prediction, estimator(case, prediction)) for case, prediction in predicted]
        ended = time.monotonic()
        line = self.key() | {
            "support": [case.name for case in split.drawn],
            "calibration": asdict(calibration) if calibration else None,
            "left_out": [asdict(one) for one in compared],
            "usual": {name: _usual_dice(compared, value) for value, name in split.labels.as_dict().items()},
            "rows": [row for one in judged for row in _rows(*one, calibration)],
            "calibrate_s": round(calibrated - began, 1),
            "judge_s": round((ended - calibrated) / len(split.unseen), 2),
        }
        return [line]


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    for shots in arguments.shots:
        for split in arguments.splits:
            for name in arguments.sets:
                for configuration in arguments.configurations:
                    yield QualityTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        configuration=configuration,
                        shots=shots,
                        split=split,
                        most_cases=arguments.cases,
                    )


def _rows(case: Case, prediction: LabelMap, quality: CaseQuality, calibration: Calibration | None) -> Iterator[Line]:
    """One per label that either map holds."""
    truth = _truth(case, prediction)
    for one in quality.labels:
        if one.label in truth:
            found = "empty" not in one.flags
            said = calibration.dice(one.label, one.signals) if calibration and found else one.predicted_dice
            row = {"case": case.name, "label": one.name, "dice": truth[one.label], "calibrated": said}
            yield row | {"plain mean": one.predicted_dice, "flags": one.flags} | asdict(one.signals)


def _usual_dice(compared: list[Compared], label: int) -> float | None:
    """Mean Dice of a label on the support cases left out; None where it was found in none."""
    found = [one.dice for one in compared if one.label == label]
    return float(np.mean(found)) if found else None


def _truth(case: Case, prediction: LabelMap) -> dict[int, float]:
    """Dice of each label that either map holds."""
    reference = reference_of(case)
    rows = score_case(case.name, prediction, reference, labels=reference.labels)
    return {row.label: row.dice for row in rows if row.status != "absent"}


def _measured_as(line: Line) -> tuple[str, str, int, str, int, str]:
    """Set, configuration, labelled cases, weights, most unseen cases, and how these were chosen."""
    settings = line["set"], line["configuration"], line["shots"], line["digest"], line["most_cases"]
    return (*settings, line.get("unseen", FIRST))


def tables(lines: list[Line]) -> str:
    """A table per set and configuration, with one row per way to predict."""
    parts = []
    for key in dict.fromkeys(map(_measured_as, lines)):
        own = [line for line in lines if _measured_as(line) == key]
        rows = [row for line in own for row in line["rows"]]
        times = ", ".join(f"{np.mean([line[k] for line in own]):.1f} s {what}" for k, what in _TIMES.items())
        name, configuration, shots, digest, _, chosen = key
        title = (
            f"**{name}**, {configuration} fitted on {shots} ({digest}; {count(len(own), 'split')}, {len(rows)} cases "
            f"and labels, unseen cases: {chosen}, "
            f"true Dice {np.mean([row['dice'] for row in rows]):.3f} ± {np.std([row['dice'] for row in rows]):.3f}; "
            f"{times})"
        )
        parts.append(f"{title}\n\n{table(_HEADS, [*[_row(way, own) for way in WAYS], _usual(own)])}")
    return "\n\n".join(parts)


_TIMES = {"calibrate_s": "to calibrate", "judge_s": "to judge a case"}
_HEADS = (
    "predicted by",
    "Pearson",
    "Spearman",
    "Spearman within a label",
    "mean absolute error",
    "worst quarter found",
)


def _row(way: str, lines: list[Line]) -> list[str]:
    rows = [row for line in lines for row in line["rows"] if not np.isnan(row[way])]
    if len(rows) < 3 or np.ptp([row[way] for row in rows]) == 0:
        return [way, *["–"] * 5]
    said, true = (np.array([row[key] for row in rows]) for key in (way, "dice"))
    correlations = (pearsonr(said, true).statistic, spearmanr(said, true).statistic, _within(way, lines))
    found, of = (sum(part) for part in zip(*[_queue(way, line) for line in lines], strict=True))
    error = f"{np.abs(said - true).mean():.3f}" if way in WAYS[:2] else "–"
    return [way, *[f"{one:.2f}" for one in correlations], error, f"{found} of {of} ({found / of:.0%})"]


def _within(way: str, lines: list[Line]) -> float:
    """Mean over splits and labels of the rank correlation over cases."""
    found = []
    for line in lines:
        for label in {row["label"] for row in line["rows"]}:
            rows = [row for row in line["rows"] if row["label"] == label and not np.isnan(row[way])]
            said, true = [row[way] for row in rows], [row["dice"] for row in rows]
            if len(rows) >= 3 and np.ptp(said) > 0 and np.ptp(true) > 0:
                found.append(float(spearmanr(said, true).statistic))
    return float(np.mean(found)) if found else float("nan")


def _queue(way: str, line: Line) -> tuple[int, int]:
    """Of the truly worst quarter of a split's cases and labels how many are in the queue's first quarter; of how many.

    A label without the signal, because it was not found, stands at the head of the queue.
    """
    rows = line["rows"]
    quarter = max(1, round(len(rows) / 4))
    said = np.array([row[way] if not np.isnan(row[way]) else -1.0 for row in rows])
    first = set(np.argsort(said, kind="stable")[:quarter].tolist())
    worst = set(np.argsort([row["dice"] for row in rows], kind="stable")[:quarter].tolist())
    return len(first & worst), quarter


def _usual(lines: list[Line]) -> list[str]:
    """The error of saying of every case what is usual for its label."""
    pairs = [(line["usual"][row["label"]], row["dice"]) for line in lines for row in line["rows"]]
    known = [abs(usual - dice) for usual, dice in pairs if usual is not None]
    error = f"{np.mean(known):.3f}" if known else "–"
    return ["usual Dice of the label", "–", "–", "–", error, "by chance 25%"]


Clouds = dict[str, dict[str, list[tuple[float, float]]]]
"""Predicted and true Dice of each case, by panel and label."""


def numbers(lines: Sequence[Line]) -> Clouds:
    """One panel per set and configuration as measured last."""
    newest = {(line["set"], line["configuration"]): _measured_as(line) for line in lines}
    found: Clouds = {}
    for (name, configuration), key in newest.items():
        panel = found.setdefault(f"{name}, {configuration}", {})
        for line in lines:
            if _measured_as(line) == key:
                for row in line["rows"]:
                    panel.setdefault(row["label"], []).append((row["calibrated"], row["dice"]))
    return found


def draw(found: Clouds) -> Figure:
    """Predicted against true Dice, one colour per label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(found), 4.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for (title, labels), axes in zip(found.items(), panels, strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        for number, (label, points) in enumerate(labels.items()):
            predicted, true = zip(*points, strict=True)
            axes.scatter(predicted, true, s=22, alpha=0.75, color=f"C{number}", linewidths=0, label=label)
        axes.set(title=title, xlabel="predicted Dice", ylabel="true Dice", xlim=(-0.02, 1), ylim=(-0.02, 1))
        axes.set_aspect("equal")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


STUDY = Study(__doc__, "quality", trials, tables)

if __name__ == "__main__":
    main()
