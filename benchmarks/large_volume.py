"""The memory that `handful predict` takes for a volume of 1024 x 1024 x 1000 voxels, step by step.

    python benchmarks/large_volume.py [--slices 1000] [--predicted 20] [--suffix .nii] [--method nearest-slice]

Anonymous memory is what the system cannot write back to a file (RssAnon of /proc). To save time, only the slices
`--predicted` are segmented; all other steps handle the whole volume. Writes its files below TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from handful.data.slicing import SliceView
from handful.jobs.allocator import tune_allocator
from handful.methods.base import Segmenter
from handful.methods.wrappers.base import WrapperSegmenter

SIDE = 1024
LIMIT_MIB = 1024


def anonymous_mib() -> float:
    """Anonymous memory of this process now."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) / 2**10


@contextmanager
def watched(step: str, peaks: dict[str, float]) -> Iterator[None]:
    """Print and note the peak of a step, measured every 10 ms."""
    done = threading.Event()
    peak = anonymous_mib()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        done.set()
        thread.join()
    peaks[step] = max(peak, anonymous_mib())
    print(f"{step:>24}: peak {peaks[step]:6.0f} MiB anonymous, {time.perf_counter() - began:6.1f} s", flush=True)


def write_scan(path: Path, slices: int) -> None:
    """A ball in noise, int16, written slice by slice."""
    import gzip

    import nibabel as nib
    import numpy as np

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((SIDE, SIDE, slices))
    header.set_xyzt_units("mm")
    header.set_sform(np.diag([0.3, 0.3, 0.3, 1.0]), code=1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    noise = np.random.default_rng(0).integers(0, 40, (SIDE, SIDE), dtype=np.int16)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    with gzip.open(path, "wb", compresslevel=1) if path.name.endswith(".gz") else path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for number in range(slices):
            radius = 300**2 - (600 * (number / slices - 0.5)) ** 2
            file.write((noise + 500 * (y * y + x * x < radius).astype(np.int16)).tobytes())


def predict_some(segmenter: Segmenter, slices: int) -> None:
    """Let the method within a segmenter predict the first slices only."""
    while isinstance(segmenter, WrapperSegmenter):
        segmenter = next(iter(segmenter.members.values()))
    whole = segmenter.logits_of

    def some(stack: SliceView) -> Iterator[tuple[Sequence[int], Tensor]]:
        for numbers, logits in whole(stack):
            yield numbers, logits
            if numbers[-1] + 1 >= slices:
                return

    segmenter.logits_of = some


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--predicted", type=int, default=20)
    parser.add_argument("--suffix", choices=(".nii", ".nii.gz"), default=".nii")
    parser.add_argument("--method", choices=("nearest-slice", "few-shot-prompts"), default="nearest-slice")
    arguments = parser.parse_args()
    tune_allocator()  # as the command line does
    from handful.cohort.volumes import LabelSizes
    from handful.data.cases import Case
    from handful.data.files import write_label_map
    from handful.jobs.digests import digest_of
    from handful.methods.catalog import build_method
    from material import support, tiny

    settings = {"train": {"iterations": 1}, "views": 1} if arguments.method == "few-shot-prompts" else {}
    settings |= {"slicer": {"plane": "axial"}, "roi_margin": "none"}
    segmenter = build_method(arguments.method, settings).fit(support(), tiny())
    predict_some(segmenter, arguments.predicted)
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        scan, out = Path(name) / f"scan{arguments.suffix}", Path(name) / f"out{arguments.suffix}"
        write_scan(scan, arguments.slices)
        print(f"{SIDE} x {SIDE} x {arguments.slices}, int16, {arguments.suffix}, {arguments.method}", flush=True)
        with watched("read and hash", peaks):
            volume, _ = Case("large", scan).read_image_and_digest()
        with watched("segment", peaks):
            label_map = segmenter.predict(volume)
        with watched("write", peaks):
            write_label_map(out, label_map)
        with watched("sizes", peaks):
            LabelSizes.of(label_map)
        with watched("digest of voxels", peaks):
            digest_of(volume.array)
    most = max(peaks.values())
    print(json.dumps({"peak MiB": round(most), "limit MiB": LIMIT_MIB, "holds": most <= LIMIT_MIB}))
    return 0 if most <= LIMIT_MIB else 1


if __name__ == "__main__":
    raise SystemExit(main())
