"""What a user got who typed the first command of an earlier version's README, on scans that are measured with today's.

    python -m reproduction.studies.first_command --before COMMIT --command "fit few-shot-prompts" --data FOLDER

The labelled and the test cases are those of `auto` in the results of reproduction/plans/cohort.toml, of each split.
COMMIT is checked out into a temporary git worktree. Its command line fits and predicts in processes of their own;
today's `handful evaluate` scores the label maps. A stopped run continues with the next split.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from handful.evaluation.results import Result, read_results
from reproduction.parts import RESULTS
from reproduction.study import Line, add_lines, read_lines

HANDFUL = "from handful.cli import main; main()"
AFTER = "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the earlier version")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--command", required=True, help="what its README says to type first, without -i and -o")
    parser.add_argument("--sets", nargs="*", default=[], help="names of data sets; all that were measured by default")
    parser.add_argument("--splits", nargs="*", type=int, default=[], help="all that were measured by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_command.jsonl")
    arguments = parser.parse_args()
    commit = _printed("git", "rev-parse", "--short=7", arguments.before).strip()
    splits: dict[tuple[str, int], list[Result]] = {}
    for row in read_results(RESULTS / "cohort.parquet"):
        if row.configuration == AFTER:
            splits.setdefault((row.data_set, row.split), []).append(row)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _printed("git", "worktree", "add", "--quiet", "--detach", str(source), commit)
        try:
            for (name, split), rows in sorted(splits.items(), key=lambda item: (item[0][1], item[0][0])):
                wanted = name in (arguments.sets or [name]) and split in (arguments.splits or [split])
                key = {"set": name, "command": arguments.command, "commit": commit, "split": split}
                if wanted and not any(key.items() <= line.items() for line in read_lines(arguments.out)):
                    work = Path(folder) / f"{name}_{split}"
                    lines = measured(source, arguments.command, arguments.data / name, *divide(rows), work)
                    add(arguments.out, [key | line for line in lines])
        finally:
            _printed("git", "worktree", "remove", "--force", str(source))


def add(out: Path, lines: Sequence[Line]) -> None:
    """Writes the lines of a split to the file, and prints their mean."""
    add_lines(out, lines)
    print(lines[0]["set"], lines[0]["split"], f"{fmean(line['dice'] for line in lines):.3f}", flush=True)


def divide(rows: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Names of the labelled cases and of the test cases of these results."""
    return json.loads(rows[0].support), sorted({row.case for row in rows})


def measured(source: Path, command: str, data: Path, support: list[str], unseen: list[str], folder: Path) -> list[Line]:
    """A line for each test case and label of the data set in `data`; works in `folder`, which it makes."""
    cohort, scans, model, predictions = (folder / name for name in ("cohort", "scans", "model", "predictions"))
    link(data, cohort, images=support, labels=support)
    link(data, scans, images=unseen, labels=())
    began = _of_children()
    earlier(source, *shlex.split(command), "-i", str(cohort), "-o", str(model))
    fit_core_s = round(_of_children() - began, 1)
    earlier(source, "predict", str(model), "-i", str(scans), "-o", str(predictions))
    scores = folder / "scores.csv"
    today = ["evaluate", "-p", str(predictions), "-r", str(data / "labels"), "--csv", str(scores), "--json"]
    _printed(sys.executable, "-c", HANDFUL, *today, "--cases", ",".join(unseen))
    with scores.open(encoding="utf-8", newline="") as file:
        return [
            {
                "case": one["case"],
                "label": int(one["label"]),
                "dice": 0.0 if one["status"] in {"missed", "false_positive"} else float(one["dice"]),
                "fit_core_s": fit_core_s,
                "support": support,
            }
            for one in csv.DictReader(file)
            if one["status"] != "absent"
        ]


def link(data: Path, folder: Path, *, images: Iterable[str], labels: Iterable[str]) -> None:
    """A cohort of links to the files of the named cases, with the data set's dataset.json."""
    for kind, names in {"images": images, "labels": labels}.items():
        (folder / kind).mkdir(parents=True)
        wanted = set(names)
        for path in sorted((data / kind).iterdir()):
            if path.name.split(".")[0] in wanted:
                (folder / kind / path.name).symlink_to(path.resolve())
    (folder / "dataset.json").symlink_to((data / "dataset.json").resolve())


def earlier(source: Path, *words: str) -> None:
    """Runs the command line of an earlier source tree."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    subprocess.run([sys.executable, "-c", HANDFUL, *words], check=True, stdout=subprocess.DEVNULL, env=environment)


def _of_children() -> float:
    """Core-seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _printed(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
