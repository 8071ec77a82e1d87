"""What is measured for the claims: the parts, their commands, and how they are run."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from handful.errors import InputError, SettingsError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "reproduction" / "results"
SOME_FAILED = 3
"""Exit code of an experiment of which some fits failed or some files of a data set were not read; its table has the
others."""
ROW = ("data_set", "configuration", "shots", "split", "case", "label")
"""Columns that say what a row of a table is of."""


@dataclass(frozen=True)
class Part:
    """Commands that make a result file; {data} is the folder of data sets.

    Plans and studies continue where they were stopped; a benchmark that only takes times starts again.
    """

    commands: tuple[str, ...]
    needs: str = ""
    """What is not available everywhere; such a part runs only when it is named."""
    times: str = ""
    """File of times: once it exists, such a part runs only when it is named."""

    @property
    def is_usual(self) -> bool:
        """Whether it runs without being named."""
        return not self.needs and not (self.times and (ROOT / self.times).exists())


def plan(name: str, needs: str = "", circumstances: str = "--cache runs/embeddings") -> Part:
    """A plan in reproduction/plans; its table is copied to the results, which spare the next run what they hold."""
    table = _table_of(name)
    run = f"{_run_of(name)} {circumstances}"
    if (ROOT / table).exists():
        run += f" --known {table}"
    return Part((run, _copy_of(name)), needs)


def timed_plan(name: str) -> Part:
    """A plan whose times count: one fit after the other, and nothing taken from a cache or an earlier run."""
    return Part((f"{_run_of(name)} --workers 1", _copy_of(name)), times=_table_of(name))


def study(result: str, *commands: str, needs: str = "") -> Part:
    """Studies that add lines to a file."""
    start, out = "python -m reproduction.studies.", f"--out reproduction/results/{result}.jsonl"
    return Part(tuple(f"{start}{command} {out}" for command in commands), needs)


def benchmark(name: str) -> Part:
    """A benchmark that replaces its file."""
    out = f"reproduction/results/{name}.jsonl"
    return Part((f"python benchmarks/{name}.py --out {out}",), times=out)


def _run_of(plan: str) -> str:
    return f"handful experiment run reproduction/plans/{plan}.toml -o runs/{plan} --data {{data}}"


def _copy_of(plan: str) -> str:
    return f"cp runs/{plan}/results.parquet {_table_of(plan)}"


def _table_of(plan: str) -> str:
    return f"reproduction/results/{plan}.parquet"


_JUDGED = "window=0 window=6 pointers=false top_k=1 top_k=3 shuffled=1 foreground_only=true similarity=l1"
"""Settings of FATE that claims speak of."""
_SETTINGS = (
    "top_k=9 allow_empty=true diverse=true fuse=true second_sweep=true largest_piece=auto start=best "
    "absent_below=-2 absent_below=-4 roi_margin=1.2 roi_margin=1.4 roi_margin=1.7 roi_margin=1.4,absent_below=-2"
)
_OF_SMALL = "msd_hippocampus acdc chaos_mr_t2 busi camus cxr_covid drishti_gs kvasir_seg dsb2018"
_FEW = "--data {data} --shots 4 --splits 0 --cases 6 --slices 4 --people 1"

PARTS: dict[str, Part] = {
    "acdc": plan("acdc"),
    "hippocampus": plan("hippocampus"),
    "sets": plan("sets"),
    "time": timed_plan("time"),
    "fate": plan("fate"),
    "cohort": plan("cohort", circumstances="--workers 1"),
    "planes": plan("planes", circumstances="--workers 1"),
    "scribbles": plan("scribbles", circumstances="--workers 1"),
    "volume-adapter": plan("volume_adapter", "days of two processor cores"),
    "how-many": plan("how_many", circumstances="--workers 1 --known reproduction/results/cohort.parquet"),
    "first-command": study(
        "first_command", "first_command --data {data} --before 878ff8a --command 'fit few-shot-prompts'"
    ),
    "zero-shot": plan("zero_shot"),
    "fate-settings": study(
        "label_efficiency",
        "fate_settings --data {data} --sets acdc msd_hippocampus --configurations fate "
        + " ".join(f"fate:{setting}" for setting in _JUDGED.split()),
        "fate_settings --data {data} --sets acdc msd_hippocampus --splits 0 --configurations "
        + " ".join(f"fate:{setting}" for setting in _SETTINGS.split()),
        "fate_settings --data {data} --sets msd_hippocampus --configurations fate:planes=axial,coronal,sagittal",
        "fate_settings --data {data} --sets openkbp --cases 6 "
        "--configurations nearest-slice fate fate:roi_margin=1.4 fate:roi_margin=1.4,absent_below=-2",
    ),
    "controls": study("few_shot_prompts", "controls --data {data} --controls --splits 0", "controls --data {data}"),
    "clicks": study("interactive", f"interactive clicks {_FEW} --sets acdc chaos_mr_t2 openkbp"),
    "generalise": study("interactive", f"interactive generalise {_FEW} --fitted-on acdc --sets chaos_mr_t2"),
    "pruning": study(
        "interactive",
        "interactive pruning --data {data} --shots 4 --sets chaos_mr_t2 --seeds 0 1 2 --iterations 200",
    ),
    "foundation-small": study(
        "foundation_small",
        *(
            "foundation --data {data} --sets " + _OF_SMALL + " --splits 0 --cases 6 --parts prompts memory "
            f"--backbone {backbone}"
            for backbone in ("handful-small", "handful-tiny")
        ),
    ),
    "synthetic": study("handful_small_validation", "synthetic --backbone handful-tiny"),
    "auto-sam-speed": benchmark("auto_sam_speed"),
    "suggest": study(
        "suggest",
        "suggest --data {data} --sets acdc chaos_mr_t2 msd_hippocampus --method fate --budgets 4 16 "
        "--splits 0 1 2 --cases 8 --cache runs/embeddings",
    ),
    "quality": study(
        "quality", "quality --data {data} --sets msd_hippocampus acdc chaos_mr_t2 --shots 4 --splits 0 1 2 --cases 12"
    ),
    "retrieval": study(
        "retrieval",
        "retrieval --data {data} --sets busi kvasir_seg drishti_gs dsb2018 camus cxr_covid acdc msd_hippocampus "
        "chaos_mr_t2 --features pixels handful-tiny imagenet-16 imagenet-32",
    ),
    "boxes": study("boxes", "boxes --data {data} --sets kvasir_seg busi"),
    "windows": study("windows", "windows --data {data} --sets acdc drishti_gs openkbp"),
    "semi-supervised": study(
        "semi_supervised",
        "semi_supervised --data {data} --sets acdc_ssl4mis --labelled 3 --scored left_out "
        "--configurations unet:train.iterations=4000,side=128 "
        "self-training:initial=none,side=128,train.iterations=4500",
        "semi_supervised --data {data} --sets acdc_ssl4mis --labelled 3 --scored val --seeds 0 1 2 "
        "--configurations self-training:initial=none,side=128,train.iterations=10500",
        "semi_supervised --data {data} --sets acdc_ssl4mis --labelled 1 7 --scored val "
        "--configurations self-training:initial=none,side=128,train.iterations=10500",
        "semi_supervised --data {data} --sets acdc_ssl4mis --labelled 3 --scored val "
        "--configurations unet:train.iterations=10000,side=128",
    ),
    "nnunet": study(
        "nnunet",
        "nnunet --python runs/nnunet/bin/python --data {data} --sets msd_hippocampus --configurations 3d_fullres",
        needs="nnU-Net v2 in runs/nnunet: python -m venv runs/nnunet, and runs/nnunet/bin/pip install nnunetv2",
    ),
    "multi-region": benchmark("multi_region"),
    "what-trains": benchmark("what_trains"),
    "intervals": Part(("python -m reproduction.studies.intervals",)),
    "encoder-size": plan("encoder_size", "the weights of SAM ViT-B, ViT-L and ViT-H, and a GPU"),
    "btcv": plan("btcv", "BTCV's scans in FOLDER/btcv, and the weights of SAM ViT-B and SAM 2.1 Hiera-tiny"),
}


def usual_parts() -> list[str]:
    """Those that run without being named."""
    return [name for name, part in PARTS.items() if part.is_usual]


def measure(parts: Iterable[str], data: Path | None) -> None:
    """Runs the commands of each part, one after the other, from the repository's root; some need no data."""
    for name in parts:
        for command in PARTS[name].commands:
            if data is None and "{data}" in command:
                raise SettingsError(f"part {name!r} measures scans; name their folder, with --data or DATA=")
            _carry_out(name, [word.format(data=data) for word in shlex.split(command)])


def _carry_out(part: str, words: list[str]) -> None:
    print("$", shlex.join(words), flush=True)
    if words[0] == "cp":
        replace_table(ROOT / words[1], ROOT / words[2])
        return
    program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
    ended = subprocess.run([program, *words[1:]], cwd=ROOT)
    if words[0] == "handful" and ended.returncode == SOME_FAILED:
        print(
            f"part {part!r}: some fits failed, which handful experiment status lists, or some files of a data set were "
            "not read, which the lines above name; the table lacks them"
        )
    else:
        ended.check_returncode()


def replace_table(new: Path, old: Path) -> None:
    """Copy a table over an earlier one. Raises InputError if it lacks rows that the earlier one has."""
    lost = sorted(_rows(old) - _rows(new)) if old.exists() else []
    if lost:
        raise InputError(
            f"{new} lacks rows of {old} ({len(lost)}, such as {lost[0]}); run the part again with all files of the "
            "data sets, or remove the earlier table"
        )
    shutil.copyfile(new, old)


def _rows(path: Path) -> set[tuple[str, ...]]:
    """What each row of a table is of."""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path, columns=list(ROW)).to_pydict()
    return {tuple(map(str, row)) for row in zip(*[columns[name] for name in ROW], strict=True)}
