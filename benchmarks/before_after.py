"""The speed and memory of two versions, measured in turn: a commit before, and this working tree.

    python benchmarks/before_after.py --before COMMIT [--rounds 3] [--only commands pieces memory] [--out FILE]

The commit is checked out into a temporary git worktree. Each round measures both versions, one after the other, and
starts with the other version than the round before. Both run the same commands and the same calls, in processes of
their own, on the same synthetic scans; what is timed exists in both versions. Figures are core-seconds (user and system
time of all threads) but for memory. Ratios are of the two versions in the same round.

* commands: `import torch` alone, `import handful`, help, and `handful predict` of one scan of 96 x 88 x 20 voxels with
  handful-tiny. The floor of a command is an empty Python for help and import, and `import torch` for predict.
* pieces: an encode of handful-tiny, one volume of FATE, and training steps of few-shot prompts, AutoSAM and the U-Net
  in their default configuration (one view, float32, no crop). A step is the difference of two fits of different length,
  so what is done once does not count. The floor is the number of floating-point operations of this version, divided by
  the rate of a matrix product (2048 x 2048, float32) in the same process.
* memory: the peak of anonymous memory of `handful predict` with nearest-slice for a scan of 1024 x 1024 x 150 voxels
  (300 MiB, .nii), one run of each. The floor is the anonymous memory of a process that only imports torch. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from measure import Cell, Section, Spread, Table, show

ROOT = Path(__file__).resolve().parent.parent
HANDFUL = "from handful.cli import main; main()"
IMPORT_TORCH, EMPTY = "import torch", "python -c pass"
SQUARE = 2048
SLICES = 8
LARGE_SLICES = 150
METHODS = ("nearest-slice", "few-shot-prompts", "fate")
"""Methods that `handful predict` is timed with."""
SHORT, LONG = 3, 12
"""Iterations of the two fits whose difference is timed."""
PLAIN = {"roi_margin": "none", "largest_piece": "none"}
TRAINED: dict[str, dict[str, object]] = {
    "few-shot-prompts": {"views": 1},
    "auto-sam": {"views": 1},
    "unet": {"train.precision": "float32"},
}
MATRIX, ENCODE, VOLUME = f"matrix product, {SQUARE}", f"encode of {SLICES} slices", "fate, a volume"
REPEATS = {MATRIX: 5, ENCODE: 3}
PARTS = ("commands", "pieces", "memory")

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Version:
    """A source tree, and its models of the benchmark."""

    name: str
    tree: Path
    folder: Path

    def run(self, *command: str) -> float:
        """Core-seconds of a Python process that imports this version."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=self.environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.tree / "src"), "OMP_WAIT_POLICY": "passive"}

    def answer(self, part: str, *arguments: str) -> Figures:
        """What this script prints as a child, with this version."""
        command = [sys.executable, __file__, "--child", part, str(self.tree), *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=self.environment).stdout
        found: Figures = json.loads(output.splitlines()[-1])
        return found

    def fit(self, method: str, cohort: Path) -> Path:
        model = self.folder / method
        settings = ["--set", "train.iterations=1", "--set", "views=1"] if method == "few-shot-prompts" else []
        fit = ["fit", method, "-i", str(cohort), "-o", str(model), "--no-cache", "-q", *settings]
        self.run("-c", HANDFUL, *fit)
        return model


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A temporary git worktree of the commit."""
    tree = folder / "tree"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(tree), commit], check=True)
    try:
        yield tree
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def measured(arguments: argparse.Namespace, versions: tuple[Version, Version], folder: Path) -> list[Section]:
    """A section for each part."""
    cohort = folder / "cohort"
    command = [sys.executable, __file__, "--child", "cohort", str(ROOT), str(cohort)]
    subprocess.run(command, check=True, env=versions[1].environment)
    measures: dict[str, Callable[[Version], Figures]] = {
        "commands": lambda version: commands(version, cohort),
        "pieces": lambda version: version.answer("pieces", str(cohort)),
        "memory": lambda version: memory(version, cohort, folder / "large"),
    }
    sections = []
    for part in arguments.only:
        floors = operations(versions[1], cohort) if part == "pieces" else {}
        found: dict[str, list[Figures]] = defaultdict(list)
        for turn in range(1 if part == "memory" else arguments.rounds):
            for version in versions if turn % 2 == 0 else versions[::-1]:
                print(f"{part}, round {turn + 1}, {version.name}", file=sys.stderr, flush=True)
                found[version.name].append(measures[part](version))
        sections.append(compared(part, *(found[version.name] for version in versions), floors))
        show(part, sections[-1])
    return sections


def compared(part: str, before: list[Figures], after: list[Figures], flop: Mapping[str, float]) -> Section:
    """A row for each figure, with its ratio in each round and its floor."""
    unit = "MiB" if part == "memory" else "core-s"
    rows: list[tuple[Cell, ...]] = []
    for name in after[0]:
        old, new = ([one[name] for one in figures] for figures in (before, after))
        floor = [floor_of(name, one, flop) for one in after]
        times = Spread.of([a / f for a, f in zip(new, floor, strict=True)]) if None not in floor else "–"
        ratio = Spread.of([a / b for a, b in zip(new, old, strict=True)])
        least = Spread.of(floor).median if None not in floor else "–"
        rows.append((name, Spread.of(old), Spread.of(new), ratio, least, times))
    columns = ("", f"before, {unit}", f"after, {unit}", "after / before", f"floor, {unit}", "after / floor")
    return Section((Table(f"{part}, median and range of {len(after)}", columns, tuple(rows)),))


def floor_of(name: str, figures: Figures, flop: Mapping[str, float]) -> float | None:
    if name in flop:
        return flop[name] * figures[MATRIX] / (2 * SQUARE**3)
    if name.startswith("predict"):
        return figures[IMPORT_TORCH]
    return figures[EMPTY] if EMPTY in figures and name not in (EMPTY, IMPORT_TORCH) else None


# Commands.


def commands(version: Version, cohort: Path) -> Figures:
    found = {
        EMPTY: version.run("-c", "pass"),
        IMPORT_TORCH: version.run("-c", "import torch"),
        "import handful": version.run("-c", "import handful"),
        "handful --help": version.run("-c", HANDFUL, "--help"),
    }
    scan = sorted((cohort / "images").iterdir())[-1]
    for method in METHODS:
        model = version.folder / method
        if not model.exists():
            version.fit(method, cohort)
        with tempfile.TemporaryDirectory() as out:
            command = ["predict", str(model), "-i", str(scan), "-o", f"{out}/predicted", "-q"]
            found[f"predict, {method}"] = version.run("-c", HANDFUL, *command)
    return found


# Pieces, in a child process. It imports only what both versions have.


def pieces(cohort: Path) -> Figures:
    import torch

    work, unit = calls(cohort)
    matrix = torch.rand(SQUARE, SQUARE)
    work = {MATRIX: lambda: matrix @ matrix} | work
    found: Figures = {}
    for name, call in work.items():
        if name in (MATRIX, ENCODE):
            call()
        began = time.process_time()
        for _ in range(REPEATS.get(name, 1)):
            call()
        found[name] = (time.process_time() - began) / REPEATS.get(name, 1)
    return per_step(found, unit)


def calls(cohort: Path) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed by name, and by how many steps the fits of each method differ."""
    import torch

    from handful.backbones.catalog import load_backbone
    from handful.data.files import read_cohort
    from handful.data.support import SupportSet
    from handful.jobs.allocator import tune_allocator
    from handful.methods.catalog import build_method

    tune_allocator()
    backbone, read = load_backbone("handful-tiny"), read_cohort(cohort)
    assert read.labels is not None
    labelled, query = SupportSet(tuple(read.cases[:2]), read.labels), read.cases[2].read_image()
    slices = torch.rand(SLICES, 1, backbone.side, backbone.side, generator=torch.Generator().manual_seed(0))
    fate = build_method("fate", PLAIN).fit(labelled, backbone)

    @torch.inference_mode()
    def encode() -> object:
        return backbone.encode(slices)

    work: dict[str, Callable[[], object]] = {ENCODE: encode, VOLUME: lambda: fate.predict(query)}
    for name, settings in TRAINED.items():
        for steps in (SHORT, LONG):
            method = build_method(name, PLAIN | settings | {"train.iterations": steps})
            work[f"{name}, {steps} steps"] = lambda method=method: method.fit(labelled, backbone)
    return work, dict.fromkeys(TRAINED, LONG - SHORT)


def per_step(found: Figures, unit: Mapping[str, int]) -> Figures:
    """Fits of two lengths as one step."""
    steps = {
        f"{name}, a step": (found.pop(f"{name}, {LONG} steps") - found.pop(f"{name}, {SHORT} steps")) / count
        for name, count in unit.items()
    }
    return found | steps


def operations(version: Version, cohort: Path) -> Figures:
    return version.answer("operations", str(cohort))


def operations_of(cohort: Path) -> Figures:
    """Floating-point operations of each piece, attention counted, two for each multiply-add."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    work, unit = calls(cohort)
    found: Figures = {}
    for name, call in work.items():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            call()
        found[name] = float(counter.get_total_flops())
    return per_step(found, unit)


# Memory.


def memory(version: Version, cohort: Path, folder: Path) -> Figures:
    from large_volume import write_scan

    scan = folder / "scans" / "large.nii"
    if not scan.exists():
        scan.parent.mkdir(parents=True)
        write_scan(scan, LARGE_SLICES)
    model = version.folder / "nearest-slice"
    if not model.exists():
        version.fit("nearest-slice", cohort)
    name = f"predict, nearest-slice, 1024 x 1024 x {LARGE_SLICES}"
    torch = peak_of(version, ["-c", "import torch, time; time.sleep(0.5)"])
    out = folder / f"predicted {version.name}"
    return {
        IMPORT_TORCH: torch,
        name: peak_of(version, ["-c", HANDFUL, "predict", str(model), "-i", str(scan), "-o", str(out), "-q"]),
    }


def peak_of(version: Version, command: list[str]) -> float:
    """The peak of anonymous memory of a process in MiB, sampled 20 times a second."""
    from large_volume import anonymous_mib

    process, peak = subprocess.Popen([sys.executable, *command], env=version.environment), 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mib(process.pid))
        time.sleep(0.05)
    if process.returncode not in (0, 3):  # 3: nothing was found, as in noise
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return peak


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        _child(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with checked_out(arguments.before, folder) as tree:
            versions = (Version("before", tree, folder / "before"), Version("after", ROOT, folder / "after"))
            print(f"before: {arguments.before}, cores: {len(os.sched_getaffinity(0))}, load: {os.getloadavg()[0]:.1f}")
            sections = measured(arguments, versions, folder)
    if arguments.out:
        arguments.out.write_text("".join(lines_of(sections, arguments.before)), encoding="utf-8")


def lines_of(sections: Sequence[Section], commit: str) -> Iterator[str]:
    """A line of JSON for each row of the tables; figures are [median, least, most]."""
    for section in sections:
        for table in section.tables:
            for row in table.rows:
                cells = dict(zip(("what", *table.columns[1:]), row, strict=True))
                found = {key: dataclasses.astuple(c) if isinstance(c, Spread) else c for key, c in cells.items()}
                yield json.dumps({"commit": commit, "table": table.title} | found) + "\n"


def _child(part: str, tree: str, cohort: str) -> None:
    import handful

    assert Path(handful.__file__).is_relative_to(Path(tree) / "src"), f"{handful.__file__} is not of {tree}"
    if part == "cohort":
        from handful.cohort.demo import write_phantom_cohort

        write_phantom_cohort(Path(cohort), cases=3)
        return
    print(json.dumps({"pieces": pieces, "operations": operations_of}[part](Path(cohort))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="the version to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="file of JSON lines, written anew")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child and not arguments.before:
        parser.error("--before is missing; name a commit")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    return arguments


if __name__ == "__main__":
    main()
