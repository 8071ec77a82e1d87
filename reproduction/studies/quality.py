"""How well the quality that is predicted without a reference agrees with the true one, on unseen cases of real scans.

    python -m reproduction.studies.quality --data FOLDER --sets msd_hippocampus acdc chaos_mr_t2 --shots 4 --draws 0 1 2

FOLDER holds one data set a subfolder (images/, labels/, dataset.json). An arm is a method, or a method with settings
such as "fate:window=0". It is fitted on a draw of the labelled cases and predicts up to --cases cases of other
patients; `predict_quality` then judges each prediction from the image, the prediction and the support alone, and only
afterwards the reference is read. The true Dice of a label that neither map holds is left out, as in all means.

A cell (set, arm, shots, draw) is one line in the file, written when it is known; one that is there already is not
computed again, so a stopped run goes on where it was. Cells are spread over processes of one thread each. With --table
nothing is computed; --figure draws predicted against true Dice.

The table, of each set and arm and of each way to predict (calibrated, the plain mean of the signals, each signal by
itself): Pearson and Spearman correlation with the true Dice over all cases and labels, and Spearman within a label and
draw, averaged, which no difference between labels helps; the mean absolute error, beside that of saying the mean Dice
that the support has when each of its cases is left out ("usual", what one would say without looking); and the queue:
how many of the truly worst quarter are in the first quarter, where by chance it would be a quarter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr, spearmanr

from handful.backbones.catalog import load_backbone
from handful.curation.quality import SIGNALS, Compared, calibrate, judging
from handful.data.cases import Case, SupportSet
from handful.data.files import read_cohort
from handful.data.volume import LabelMap
from handful.evaluation.evaluate import score_case
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method, method_settings
from reproduction.study import Line, my_backbone, read_lines, spread

WAYS = ("calibrated", "plain mean", *SIGNALS)


def main() -> None:
    arguments = _arguments()
    if not arguments.table:
        todo = list(cells(arguments))
        spread(todo, measure, told, out=arguments.out, processes=arguments.processes, backbone=arguments.backbone)
    lines = [line for line in read_lines(arguments.out) if not arguments.sets or line["set"] in arguments.sets]
    print(tables(lines))
    if arguments.figure:
        draw(lines, arguments.figure)


@dataclass(frozen=True)
class Cell:
    """One fit, what it predicts, and what is said of that."""

    folder: Path
    arm: str
    shots: int
    draw: int
    most: int
    digest: str

    def key(self) -> Line:
        return {
            "set": self.folder.name,
            "arm": self.arm,
            "shots": self.shots,
            "draw": self.draw,
            "most_cases": self.most,
            "digest": self.digest,
        }


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All cells asked for and not in the file."""
    digest = load_backbone(arguments.backbone).digest()[:12]
    done = read_lines(arguments.out)
    for shots in arguments.shots:
        for seed in arguments.draws:
            for name in arguments.sets:
                for arm in arguments.arms:
                    cell = Cell(arguments.data / name, arm, shots, seed, arguments.cases, digest)
                    if not any({k: line[k] for k in cell.key()} == cell.key() for line in done):
                        yield cell


def told(line: Line) -> str:
    what = f"{line['set']} {line['arm']} {line['shots']} shots, draw {line['draw']}"
    return f"{what}: calibrated in {line['calibrate_s']:.0f} s, {line['judge_s']:.1f} s a case to judge"


def measure(cell: Cell) -> Line:
    """Fits, predicts, judges, and only then scores a cell, in this process."""
    cohort = read_cohort(cell.folder)
    assert cohort.labels is not None
    drawn, rest = cohort.draw(cell.shots, cell.draw)
    unseen = [case for case in rest if case.reference is not None][: cell.most]
    support, method = SupportSet(tuple(drawn), cohort.labels), _method(cell)

    def fit(cases: SupportSet) -> Segmenter:
        return method.fit(cases, my_backbone())

    segmenter = fit(support)
    predicted = [(case, segmenter.predict(case.read_image())) for case in unseen]
    began = time.monotonic()
    with judging(segmenter, support) as judge:
        compared = judge.left_out(support, fit)
        calibration = calibrate(compared, support.labels)
        calibrated = time.monotonic()
        plain = [judge(case, prediction) for case, prediction in predicted]
    judged = time.monotonic()
    rows: list[Line] = []
    for (case, prediction), quality in zip(predicted, plain, strict=True):
        truth = _truth(case, prediction)
        for one in quality.labels:
            if one.label in truth:
                found = "empty" not in one.flags
                said = calibration.dice(one.label, one.signals) if calibration and found else one.predicted_dice
                row = {"case": case.name, "label": one.name, "dice": truth[one.label], "calibrated": said}
                rows.append(row | {"plain mean": one.predicted_dice, "flags": one.flags} | asdict(one.signals))
    return cell.key() | {
        "support": [case.name for case in drawn],
        "calibration": asdict(calibration) if calibration else None,
        "left_out": [asdict(one) for one in compared],
        "usual": {name: _usual_dice(compared, value) for value, name in cohort.labels.as_dict().items()},
        "rows": rows,
        "calibrate_s": round(calibrated - began, 1),
        "judge_s": round((judged - calibrated) / len(unseen), 2),
    }


def _usual_dice(compared: list[Compared], label: int) -> float | None:
    """Mean Dice of a label on the support cases left out; None where it was found in none."""
    found = [one.dice for one in compared if one.label == label]
    return float(np.mean(found)) if found else None


def _truth(case: Case, prediction: LabelMap) -> dict[int, float]:
    """Dice of each label that either map holds."""
    reference = case.read_reference()
    assert reference is not None
    rows = score_case(case.name, prediction, reference, labels=reference.labels)
    return {row.label: row.dice for row in rows if row.status != "absent"}


def _method(cell: Cell) -> Method:
    name, _, text = cell.arm.partition(":")
    settings: dict[str, object] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        settings[key] = value
    if "train" in method_settings(build_method(name, {})):
        settings["train.seed"] = cell.draw
    return build_method(name, settings)


def tables(lines: list[Line]) -> str:
    """A Markdown table a set and arm, a row a way to predict."""
    parts = []
    for key in dict.fromkeys((line["set"], line["arm"], line["shots"], line["digest"]) for line in lines):
        own = [line for line in lines if (line["set"], line["arm"], line["shots"], line["digest"]) == key]
        rows = [row for line in own for row in line["rows"]]
        times = ", ".join(f"{np.mean([line[k] for line in own]):.1f} s {what}" for k, what in _TIMES.items())
        name, arm, shots, digest = key
        draws = "1 draw" if len(own) == 1 else f"{len(own)} draws"
        parts.append(
            f"**{name}**, {arm} fitted on {shots} ({digest}; {draws}, {len(rows)} cases and labels, "
            f"true Dice {np.mean([row['dice'] for row in rows]):.3f} ± {np.std([row['dice'] for row in rows]):.3f}; "
            f"{times})\n\n{_HEAD}\n" + "\n".join(_row(way, own) for way in WAYS) + f"\n{_usual(own)}"
        )
    return "\n\n".join(parts)


_TIMES = {"calibrate_s": "to calibrate", "judge_s": "to judge a case"}
_HEAD = (
    "| predicted by | Pearson | Spearman | Spearman within a label | mean absolute error | worst quarter found |\n"
    "|---|---|---|---|---|---|"
)


def _row(way: str, lines: list[Line]) -> str:
    rows = [row for line in lines for row in line["rows"] if not np.isnan(row[way])]
    if len(rows) < 3 or np.ptp([row[way] for row in rows]) == 0:
        return f"| {way} | – | – | – | – | – |"
    said, true = (np.array([row[key] for row in rows]) for key in (way, "dice"))
    within = _within(way, lines)
    found, of = (sum(part) for part in zip(*[_queue(way, line) for line in lines], strict=True))
    error = f"{np.abs(said - true).mean():.3f}" if way in WAYS[:2] else "–"
    cells = [f"{pearsonr(said, true).statistic:.2f}", f"{spearmanr(said, true).statistic:.2f}"]
    return f"| {' | '.join([way, *cells, f'{within:.2f}', error, f'{found} of {of} ({found / of:.0%})'])} |"


def _within(way: str, lines: list[Line]) -> float:
    """Mean over draws and labels of the rank correlation over cases."""
    found = []
    for line in lines:
        for label in {row["label"] for row in line["rows"]}:
            rows = [row for row in line["rows"] if row["label"] == label and not np.isnan(row[way])]
            said, true = [row[way] for row in rows], [row["dice"] for row in rows]
            if len(rows) >= 3 and np.ptp(said) > 0 and np.ptp(true) > 0:
                found.append(float(spearmanr(said, true).statistic))
    return float(np.mean(found)) if found else float("nan")


def _queue(way: str, line: Line) -> tuple[int, int]:
    """Of the truly worst quarter of a draw's cases and labels how many are in the queue's first quarter; of how many.

    A label without the signal, because it was not found, stands at the head of the queue.
    """
    rows = line["rows"]
    quarter = max(1, round(len(rows) / 4))
    said = np.array([row[way] if not np.isnan(row[way]) else -1.0 for row in rows])
    first = set(np.argsort(said, kind="stable")[:quarter].tolist())
    worst = set(np.argsort([row["dice"] for row in rows], kind="stable")[:quarter].tolist())
    return len(first & worst), quarter


def _usual(lines: list[Line]) -> str:
    """The error of saying of every case what is usual for its label."""
    pairs = [(line["usual"][row["label"]], row["dice"]) for line in lines for row in line["rows"]]
    known = [abs(usual - dice) for usual, dice in pairs if usual is not None]
    error = f"{np.mean(known):.3f}" if known else "–"
    return f"| usual, without looking | – | – | – | {error} | by chance 25% |"


def draw(lines: list[Line], path: Path) -> None:
    """Predicted against true Dice, a panel a set and arm, a colour a label."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys((line["set"], line["arm"]) for line in lines))
    figure = Figure(figsize=(4.4 * len(keys), 4.6), layout="constrained")
    for (name, arm), axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        rows = [row for line in lines if (line["set"], line["arm"]) == (name, arm) for row in line["rows"]]
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        for number, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
            own = [row for row in rows if row["label"] == label]
            said, true = [row["calibrated"] for row in own], [row["dice"] for row in own]
            axes.scatter(said, true, s=22, alpha=0.75, color=f"C{number}", linewidths=0, label=label)
        axes.set(title=f"{name}, {arm}", xlabel="predicted Dice", ylabel="true Dice", xlim=(-0.02, 1), ylim=(-0.02, 1))
        axes.set_aspect("equal")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=130)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("reproduction/results/quality.jsonl"))
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--arms", nargs="+", default=["fate"], metavar="METHOD[:KEY=VALUE,…]")
    parser.add_argument("--shots", nargs="+", type=int, default=[4])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", type=int, default=12, help="unseen cases a draw, at most")
    parser.add_argument("--backbone", default="handful-tiny")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, compute nothing")
    parser.add_argument("--figure", type=Path, help="picture to draw")
    found = parser.parse_args()
    if not found.table and not (found.data and found.sets):
        parser.error("give --data and --sets, or --table")
    return found


if __name__ == "__main__":
    main()
