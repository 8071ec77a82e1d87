"""Learning from a few labelled hearts and all the others without labels: the benchmark that the literature uses.

    python -m reproduction.studies.semi_supervised --data FOLDER --sets acdc_ssl4mis --labelled 3 --scored left_out

FOLDER/acdc_ssl4mis holds ACDC in the splits of SSL4MIS (Luo, 2020): train/ and val/ with images/ and labels/, and
splits.json with the frames of 1, 3 and 7 labelled patients. All other frames of train/ give their images alone. Scored
are the last weights, each frame in 3D on its own grid, the mean of the three labels: on the patients of val/
("--scored val", once, when everything is chosen), or on those of the seven labelled patients who are not among the
labelled few ("--scored left_out"), whose images are then not learned from; settings are chosen on these.

A configuration is a method, or a method with settings such as "self-training:initial=none,train.iterations=3000". Time
is that of one processor core, `fit_core_s`, in which published recipes took some 70 to 280 hours. With --scratch a fit
that was stopped goes on where it was; its time then counts from the last start.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from handful.backbones.base import Backbone
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.evaluation.evaluate import score_case
from handful.evaluation.statistics import over_splits
from handful.jobs.digests import digest_of_json
from handful.jobs.progress import Run
from handful.methods.base import Segmenter
from reproduction.configurations import build, parse
from reproduction.markdown import interval, table
from reproduction.scoring import reference_of
from reproduction.study import Line, Study, Trial

MOST_LABELLED = "7"


def main() -> None:
    parser = STUDY.parser(splits=(0,))
    parser.add_argument(
        "--configurations", nargs="+", default=["unet", "self-training"], metavar="METHOD[:KEY=VALUE,…]"
    )
    parser.add_argument("--labelled", nargs="+", default=["3"], choices=["1", "3", "7"], help="patients")
    parser.add_argument("--scored", choices=["val", "left_out"], default="left_out")
    parser.add_argument("--scratch", type=Path, help="folder of half-done fits")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedTrial(Trial):
    """One fit and its scores."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "scratch", "unseen")

    configuration: str
    labelled: str
    scored: str
    seed: int
    scratch: Path | None

    def results(self, backbone: Backbone) -> list[Line]:
        support, scored = divide(self.folder, self.labelled, self.scored)
        name, settings = parse(self.configuration)
        method = build(name, {"roi_margin": "auto", "largest_piece": "auto", **settings}, self.seed)
        scratch = self.scratch and self.scratch / digest_of_json(self.key())[:16]
        began = time.process_time()
        segmenter = method.fit(support, backbone, Run(scratch))
        fitted = time.process_time()
        rows = [row for case in scored for row in _rows(segmenter, case)]
        of_labels = {
            label: fmean(row["dice"] for row in rows if row["label"] == label) for label in support.labels.names
        }
        line = self.key() | {
            "dice_mean": [fmean(of_labels.values())],
            "dice_of_labels": {label: round(dice, 4) for label, dice in of_labels.items()},
            "decisions": segmenter.decisions,
            "rows": rows,
            "fit_core_s": round(fitted - began, 1),
            "predict_core_s": round((time.process_time() - fitted) / len(scored), 2),
        }
        return [line]


def divide(folder: Path, labelled: str, scored: str) -> tuple[SupportSet, list[Case]]:
    """The labelled frames with the images of all that are not scored, and the frames to score."""
    splits: dict[str, list[str]] = json.loads((folder / "splits.json").read_text("utf-8"))["labelled"]
    cohort = read_cohort(folder / "train")
    assert cohort.labels is not None
    few = [_with_patient(case) for case in cohort.cases if case.name in splits[labelled]]
    tests = list(read_cohort(folder / "val").cases) if scored == "val" else _left_out(cohort, splits, labelled)
    taken = {case.name for case in [*few, *tests]}
    unlabelled = tuple(case for case in cohort.cases if case.name not in taken)
    return SupportSet(tuple(few), cohort.labels, unlabelled=UnlabelledScans.of(unlabelled)), tests


def _left_out(cohort: Cohort, splits: dict[str, list[str]], labelled: str) -> list[Case]:
    """Frames of the seven labelled patients who are not among the labelled few."""
    names = set(splits[MOST_LABELLED]) - set(splits[labelled])
    return [case for case in cohort.cases if case.name in names]


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    if arguments.scored == "left_out" and MOST_LABELLED in arguments.labelled:
        raise SystemExit(f"of {MOST_LABELLED} labelled patients none is left out; name --scored val")
    for name in arguments.sets:
        for labelled in arguments.labelled:
            for seed in arguments.splits:
                for configuration in arguments.configurations:
                    yield SemiSupervisedTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        configuration=configuration,
                        labelled=labelled,
                        scored=arguments.scored,
                        seed=seed,
                        scratch=arguments.scratch,
                    )


def _with_patient(case: Case) -> Case:
    """The frames of a patient are told by the names of the files."""
    return replace(case, patient=case.name.partition("_")[0])


def _rows(segmenter: Segmenter, case: Case) -> Iterator[Line]:
    prediction = segmenter.predict(case.read_image())
    for row in score_case(case.name, prediction, reference_of(case), labels=segmenter.labels):
        if row.status != "absent":
            yield {"case": case.name, "label": row.name, "dice": round(row.dice, 4), "hd95": round(row.hd95, 2)}


def tables(lines: list[Line]) -> str:
    """Mean Dice of each fit, and that of several seeds with its interval."""
    header = ["configuration", "labelled patients", "scored", "seed", "Dice", "of labels", "core-hours"]
    fits: dict[tuple[str, str, str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["scored"], int(line["labelled"]))):
        fits.setdefault((line["configuration"], line["labelled"], line["scored"], line["digest"]), []).append(line)
    rows = [
        (*what[:3], ", ".join(str(line["seed"]) for line in of_seeds), _dice(of_seeds), *_details(of_seeds))
        for what, found in fits.items()
        for of_seeds in ([[line] for line in found] + [found] * (len(found) > 1))
    ]
    return table(header, rows)


def _dice(of_seeds: Sequence[Line]) -> str:
    """The mean over seeds of the mean over frames, with the interval of `over_splits`."""
    scores: list[dict[str, list[float]]] = []
    for line in of_seeds:
        scores.append({})
        for row in line["rows"]:
            scores[-1].setdefault(row["case"], []).append(row["dice"])
    return interval(over_splits([{case: fmean(dice) for case, dice in one.items()} for one in scores], (0.0, 1.0)))


def _details(of_seeds: Sequence[Line]) -> tuple[str, str]:
    """Mean Dice of each label, and mean core-hours."""
    labels = of_seeds[0]["dice_of_labels"]
    dice = {label: fmean(line["dice_of_labels"][label] for line in of_seeds) for label in labels}
    hours = fmean(line["fit_core_s"] for line in of_seeds) / 3600
    return ", ".join(f"{label} {mean:.3f}" for label, mean in dice.items()), f"{hours:.2f}"


STUDY = Study(about=__doc__ or "", results="semi_supervised", trials=trials, tables=tables, sets=("acdc_ssl4mis",))

if __name__ == "__main__":
    main()
