"""nnU-Net v2 itself, with the labelled and the test cases that the package's methods are measured with.

    python -m reproduction.studies.nnunet --python runs/nnunet/bin/python --data FOLDER --sets msd_hippocampus

The cases of a data set are those of reproduction/plans/cohort.toml, split by split; those of `acdc_ssl4mis` are three
labelled patients and the validation patients. nnU-Net runs in an environment of its own (`pip install nnunetv2`), on
one core, for as many core-minutes of training as are given: reproduction/studies/nnunet_program.py says how its
schedule is shortened. nnU-Net has no use for unlabelled scans and does not get them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from handful.backbones.base import Backbone
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort, read_label_map
from handful.data.nnunet import export_nnunet, import_nnunet
from handful.data.support import SupportSet
from handful.evaluation.evaluate import score_case
from handful.evaluation.results import read_results
from reproduction.markdown import table
from reproduction.parts import RESULTS
from reproduction.scoring import reference_of
from reproduction.studies import first_command, semi_supervised
from reproduction.study import Line, Study, Trial

PROGRAM = Path(__file__).with_name("nnunet_program.py")
BENCHMARK = "acdc_ssl4mis"
NUMBER = 501


def main() -> None:
    parser = STUDY.parser(splits=(0,))
    parser.add_argument("--python", type=Path, help="Python of the environment that has nnunetv2")
    parser.add_argument("--configurations", nargs="+", default=["2d"], choices=["2d", "3d_fullres"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[20.0], help="of one core, for the training")
    STUDY.main(parser)


@dataclass(frozen=True, kw_only=True)
class NnunetTrial(Trial):
    """One training and its scores."""

    unkeyed: ClassVar[tuple[str, ...]] = ("data", "python", "unseen", "digest")

    python: Path
    configuration: str
    minutes: float
    split: int

    def results(self, backbone: Backbone) -> list[Line]:
        support, tests = self.divide()
        found = measured([str(self.python), str(PROGRAM)], support, tests, self.configuration, self.minutes, self.split)
        return [self.key() | found]

    def divide(self) -> tuple[SupportSet, Sequence[Case]]:
        """The labelled and the test cases."""
        if self.set == BENCHMARK:
            return semi_supervised.divide(self.folder, labelled="3", scored="val")
        rows = [row for row in read_results(RESULTS / "cohort.parquet") if row.data_set == self.set]
        labelled, tested = first_command.divide([row for row in rows if row.split == self.split])
        cohort = read_cohort(self.folder)
        assert cohort.labels is not None
        cases = {case.name: case for case in cohort.cases}
        return SupportSet(tuple(cases[name] for name in labelled), cohort.labels), [cases[name] for name in tested]


def measured(
    program: Sequence[str], support: SupportSet, tests: Sequence[Case], configuration: str, minutes: float, seed: int
) -> Line:
    """Trains with the program on the support set, and scores its label maps of the test cases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = Cohort(tuple(tests), support.labels, "cohort")
        dataset = export_nnunet(support, folder / "raw", NUMBER, cohort=others)
        words = (*program, str(folder), str(NUMBER), configuration, str(minutes), str(seed))
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        import_nnunet(folder / "predicted", dataset.folder, folder / "label_maps")
        dice = dict(_dice(tests, support, folder / "label_maps"))
        times: Line = json.loads((folder / "times.json").read_text("utf-8"))
    return {"support": [case.name for case in support.cases], "dice": dice} | times


def _dice(tests: Sequence[Case], support: SupportSet, label_maps: Path) -> Iterator[tuple[str, dict[str, float]]]:
    for case in tests:
        prediction = read_label_map(label_maps / f"{case.name}.nii.gz", support.labels)
        rows = score_case(case.name, prediction, reference_of(case), labels=support.labels)
        yield case.name, {row.name: round(row.dice, 4) for row in rows if row.status != "absent"}


def trials(arguments: argparse.Namespace, digest: str) -> Iterator[Trial]:
    if arguments.python is None:
        raise SystemExit("name the Python of the environment that has nnunetv2, with --python")
    for name in arguments.sets:
        for split in arguments.splits:
            for minutes in arguments.minutes:
                for configuration in arguments.configurations:
                    yield NnunetTrial(
                        data=arguments.data,
                        set=name,
                        digest=digest,
                        python=arguments.python,
                        configuration=configuration,
                        minutes=minutes,
                        split=split,
                    )


def tables(lines: list[Line]) -> str:
    """Mean Dice over test cases and labels, and what the training and a prediction took."""
    header = [
        "data set",
        "nnU-Net",
        "split",
        "test cases",
        "Dice",
        "steps",
        "patches a step",
        "core-min",
        "core-s a prediction",
    ]
    rows = [
        [
            line["set"],
            line["configuration"],
            str(line["split"]),
            str(len(line["dice"])),
            f"{mean_dice(line):.3f}",
            str(line["steps"]),
            str(line["batch"]),
            f"{line['fit_core_s'] / 60:.0f}",
            f"{line['predict_core_s']:.1f}",
        ]
        for line in lines
    ]
    return table(header, rows)


def mean_dice(line: Line) -> float:
    """Over test cases and labels."""
    return fmean(dice for labels in line["dice"].values() for dice in labels.values())


STUDY = Study(about=__doc__ or "", results="nnunet", trials=trials, tables=tables)

if __name__ == "__main__":
    main()
