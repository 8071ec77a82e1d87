"""The memory that `handful predict` takes for a scan of 1024 x 1024 x 300 voxels.

    python benchmarks/large_volume.py [--slices 300] [--first 20] [--suffix .nii] [--method nearest-slice]

Writes a scan of a ball in noise (int16), fits a model on two phantoms, and runs the command in a process of its own.
Anonymous memory (RssAnon of /proc) is what the system cannot write back to a file. With `--first`, methods predict only
so many slices, to save time; all else is done for the whole scan. Ends with status 1 above the limit or if the
command fails. Writes its files below TMPDIR. Linux only.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 1024
LIMIT_MIB = 1024
SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")
HANDFUL = "from handful.cli import main; main()"


def write_scan(path: Path, slices: int) -> None:
    """Something like a ball in noise, int16, written slice by slice."""
    with gzip.open(path, "wb", compresslevel=0) if path.name.endswith(".gz") else path.open("wb") as file:
        file.write(header_of(path.name, slices))
        noise = np.random.default_rng(0).integers(0, 40, (SIDE, SIDE), dtype=np.int16)
        y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
        for height in np.linspace(-1, 1, 10):  # so many different slices
            disc = y * y + x * x < 300**2 * (1 - height**2)
            slice_ = (noise + 500 * disc.astype(np.int16)).tobytes()
            file.writelines([slice_] * (slices // 10))


def header_of(name: str, slices: int) -> bytes:
    """The header of an uncompressed scan in the format that a file name states."""
    if name.endswith(".mha"):
        lines = ("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False")
        lines += ("CompressedData = False", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0")
        lines += ("ElementSpacing = 0.3 0.3 0.3", f"DimSize = {SIDE} {SIDE} {slices}", "ElementType = MET_SHORT")
        return "\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode()
    if name.endswith(".nrrd"):
        lines = ("NRRD0004", "type: int16", "dimension: 3", "space: left-posterior-superior")
        lines += (f"sizes: {SIDE} {SIDE} {slices}", "space directions: (0.3,0,0) (0,0.3,0) (0,0,0.3)")
        lines += ("space origin: (0,0,0)", "endian: little", "encoding: raw")
        return "\n".join([*lines, "\n"]).encode()
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((SIDE, SIDE, slices))
    header.set_xyzt_units("mm")
    header.set_sform(np.diag([0.3, 0.3, 0.3, 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def fit_model(folder: Path, method: str) -> Path:
    """A model of the method, fitted on two phantoms."""
    from handful.cohort.demo import write_phantom_cohort

    labelled, model = folder / "labelled", folder / "model"
    write_phantom_cohort(labelled, cases=2)
    options = ["--set", "train.iterations=1", "--set", "views=1"] if method == "few-shot-prompts" else []
    fit = ["fit", method, "-i", str(labelled), "-o", str(model), "--no-cache", "-q", *options]
    subprocess.run([sys.executable, "-c", HANDFUL, *fit], check=True, stdout=subprocess.DEVNULL)
    return model


def predict(command: list[str], first: int | None) -> dict[str, float]:
    """Run `handful predict` in a process; peaks of memory and of temporary files, and its seconds."""
    child = [sys.executable, __file__, "--child", "--first", str(first or 0), "--", *command]
    began, peak, temporary = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen(child)
    for round_ in itertools.count():
        peak = max(peak, anonymous_mib(process.pid))
        if round_ % 10 == 0:
            temporary = max(temporary, temporary_mib(process.pid))
        if process.poll() is not None:
            break
        time.sleep(0.05)
    usage = os.times()
    return {
        "exit code": process.returncode,
        "peak MiB": round(peak),
        "temporary files MiB": round(temporary),
        "core-s": round(usage.children_user + usage.children_system, 1),
        "wall s": round(time.perf_counter() - began, 1),
    }


def anonymous_mib(pid: int) -> float:
    """Anonymous memory of a process now; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon:")), 0.0)


def temporary_mib(pid: int) -> float:
    """The size of all files without a name that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    ranges = [line.split()[0].split("-") for line in lines if line.endswith("(deleted)")]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges) / 2**20


def run_child(command: list[str], first: int) -> None:
    """The command line, with methods that predict the first slices only."""
    from handful.cli import main as handful
    from handful.methods.base import Segmenter
    from handful.methods.catalog import METHODS

    assert METHODS, "imports all methods"
    kinds = [Segmenter]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if first and "logits_of" in vars(kind):
            kind.logits_of = limited(kind.logits_of, first)  # type: ignore[method-assign]
    sys.argv = ["handful", *command]
    handful()


def limited(whole: Callable[..., Iterator[Any]], first: int) -> Callable[..., Iterator[Any]]:
    """`Segmenter.logits_of` that ends after the first slices."""

    def some(*arguments: Any) -> Iterator[Any]:
        for numbers, logits in whole(*arguments):
            yield numbers, logits
            if numbers[-1] + 1 >= first:
                return

    return some


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--first", type=int)
    parser.add_argument("--suffix", choices=SUFFIXES, default=".nii")
    parser.add_argument("--method", choices=("nearest-slice", "few-shot-prompts"), default="nearest-slice")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.slices % 10:
        parser.error(f"--slices must be a multiple of 10, got {arguments.slices}")
    if arguments.child:
        run_child(arguments.command, arguments.first)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, scans = fit_model(folder, arguments.method), folder / "scans"
        scans.mkdir()
        write_scan(scans / f"large{arguments.suffix}", arguments.slices)
        found = predict(["predict", str(model), "-i", str(scans), "-o", str(folder / "out"), "-q"], arguments.first)
    facts = {"voxels": f"{SIDE} x {SIDE} x {arguments.slices}", "suffix": arguments.suffix, "method": arguments.method}
    facts |= {"predicted": arguments.first or arguments.slices}
    print(json.dumps(facts | found | {"limit MiB": LIMIT_MIB}))
    finished = found["exit code"] in (0, 3)  # 3: nothing was found, as in noise
    return 0 if finished and found["peak MiB"] <= LIMIT_MIB else 1


if __name__ == "__main__":
    raise SystemExit(main())
