"""A prediction of nnU-Net itself and of `unet`, of the same synthetic scans in one run: core-seconds a scan.

    python benchmarks/nnunet.py --python runs/nnunet/bin/python [--configurations 2d 3d_fullres]

nnU-Net v2 is in an environment of its own (`python -m venv runs/nnunet`, `runs/nnunet/bin/pip install nnunetv2`). It
plans for two labelled phantoms of 96 x 88 x 20 voxels and trains one step, since a prediction takes as long with any
weights; it predicts with its mirrored averages. `unet` has its default settings and as few steps. Both read the scans,
segment them, and do not count what they import. One thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from handful.cohort.demo import write_phantom_cohort
from handful.data.files import read_cohort, read_volume
from handful.data.nnunet import export_nnunet
from handful.data.support import SupportSet
from handful.methods.catalog import build_method
from material import tiny
from measure import Section, Table, show

PROGRAM = Path(__file__).resolve().parents[1] / "reproduction" / "studies" / "nnunet_program.py"
NUMBER = 501
LABELLED, SCANS = 2, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of the environment that has nnunetv2")
    parser.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        cohort = write_phantoms(Path(name) / "cohort")
        rows = [("unet", *of_unet(cohort))]
        for configuration in arguments.configurations:
            found = of_nnunet(arguments.python, configuration, cohort, Path(name) / configuration)
            rows.append((f"nnU-Net, {configuration}", *found))
    columns = ("", "core-s a scan", "parameters, millions", "patch")
    return show("nnunet", Section((Table("a prediction of one scan, one thread", columns, tuple(rows)),)))


def write_phantoms(folder: Path) -> Path:
    """Two labelled scans, and others without labels."""
    write_phantom_cohort(folder, LABELLED + SCANS)
    for path in sorted((folder / "labels").iterdir())[LABELLED:]:
        path.unlink()
    return folder


def divided(cohort: Path) -> tuple[SupportSet, list[Path]]:
    """The support set, and the scans without labels."""
    found = read_cohort(cohort)
    assert found.labels is not None
    labelled = tuple(case for case in found.cases if case.reference is not None)
    return SupportSet(labelled, found.labels), [Path(str(case.image)) for case in found.cases if case not in labelled]


def of_unet(cohort: Path) -> tuple[float, float, str]:
    """Core-seconds a scan, millions of parameters, and the size of a slice."""
    support, scans = divided(cohort)
    segmenter = build_method("unet", {"train.iterations": 2}).fit(support, tiny())
    began = time.process_time()
    for scan in scans:
        segmenter.predict(read_volume(scan))
    spent = (time.process_time() - began) / len(scans)
    return spent, sum(one.numel() for one in segmenter.parameters()) / 1e6, "whole slices"


def of_nnunet(python: str, configuration: str, cohort: Path, folder: Path) -> tuple[float, float, str]:
    """The same of nnU-Net, and its patch."""
    support, _ = divided(cohort)
    export_nnunet(support, folder / "raw", NUMBER, cohort=read_cohort(cohort))
    words = [python, str(PROGRAM), str(folder), str(NUMBER), configuration, "0", "0"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    times = json.loads((folder / "times.json").read_text("utf-8"))
    return times["predict_core_s"], times["parameters"] / 1e6, " x ".join(map(str, times["patch"]))


if __name__ == "__main__":
    sys.exit(main())
