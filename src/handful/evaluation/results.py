"""Results of experiments as one table: one row per data set, configuration, number of shots, split, case and label."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_type_hints

from handful.errors import DamagedFile, InputError, UnsupportedInput
from handful.evaluation.evaluate import Status
from handful.jobs.atomic import write_atomically
from handful.jobs.files import open_file
from handful.jobs.json_values import json_value
from handful.jobs.plain_text import from_spreadsheet_text, spreadsheet_text


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one label of one test case after one fit of one configuration, with their provenance."""

    experiment: str
    data_set: str
    configuration: str
    shots: int
    """Number of labelled cases."""
    split: int
    """Number of the random split; also the random seed of the method, unless its settings name one (see `seed`)."""
    case: str
    label: int
    name: str
    status: Status
    dice: float
    """0 for a missed label or a false positive, 1 for an absent label; see `handful.evaluation.evaluate`."""
    iou: float
    hd95: float
    """In `unit`; the image diagonal for a missed label or a false positive, nan for an absent label."""
    assd: float
    """In `unit`, as `hd95`."""
    surface_dice: float
    reference_volume: float
    """In ml if `unit` is mm, else as a fraction of the image."""
    predicted_volume: float
    """As `reference_volume`."""
    unit: Literal["mm", "pixel"]
    tolerance: float
    """Tolerance of the surface Dice, in `unit`."""
    failure: str
    """Why the case could not be segmented; its labels then count as missed. Empty if it was segmented."""
    predict_s: float
    """Seconds for the whole case, including reading."""
    fit_s: float
    """Seconds of the fit; equal in all its rows."""
    peak_mib: float
    """Peak memory in MiB of the fit and its predictions: of the process on a CPU, of the device on CUDA."""
    method: str
    settings: str
    """All settings of the method, as JSON."""
    annotator: str
    """The simulated annotator whose prompts come from the reference; empty for automatic configurations."""
    backbone: str
    backbone_sha256: str
    seed: int | None
    """Random seed of the method; None if it uses no random numbers."""
    support: str
    """Names of the labelled cases, as JSON."""
    device: str
    handful: str
    """Version of handful."""
    trial: str
    """Digest of everything that the fit and its scores depend on; later runs use it to skip finished fits."""
    size_share: float = math.nan
    """Of the object in the reference, as `handful.evaluation.object_features` defines it; known where a simulated
    annotator prompted it, else nan."""
    complexity: float = math.nan
    """As `size_share`: of its boundary."""
    contrast: float = math.nan
    """As `size_share`."""
    decisions: str = ""
    """What the fit decided by itself, as a JSON list of sentences; empty if it decided nothing or that is unknown."""

    @property
    def decided(self) -> tuple[str, ...]:
        """The sentences of `decisions`."""
        return tuple(map(str, json.loads(self.decisions))) if self.decisions else ()


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))
_KINDS = get_type_hints(Result)
FEATURES = ("size_share", "complexity", "contrast")
"""The columns that describe the object."""
_YOUNGER = (*FEATURES, "decisions")
"""Columns that tables of earlier versions lack."""
MEASURES = ("dice", "iou", "hd95", "assd", "surface_dice")
"""The columns that reports can show and test."""
LARGER_IS_BETTER = ("dice", "iou", "surface_dice")
BOUNDS = {measure: (0.0, 1.0 if measure in LARGER_IS_BETTER else math.inf) for measure in MEASURES}
"""The smallest and the largest value of each measure."""
TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD", "surface_dice": "surface Dice"}


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write a .csv file, or a .parquet file if pyarrow is installed. An undefined number becomes an empty cell."""
    if path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(getattr(result, name)) for name in COLUMNS] for result in results)
        write_atomically(path, buffer.getvalue().encode())
        return
    _require_parquet(path)
    import pyarrow
    import pyarrow.parquet

    columns = {name: [json_value(getattr(result, name)) for result in results] for name in COLUMNS}
    buffer_of_bytes = io.BytesIO()
    table = pyarrow.table(columns, schema=pyarrow.schema([(name, _arrow(name)) for name in COLUMNS]))
    pyarrow.parquet.write_table(table, buffer_of_bytes, compression="zstd")
    write_atomically(path, buffer_of_bytes.getvalue())


def read_results(path: str | Path) -> tuple[Result, ...]:
    """The rows of a table that `write_results` has written.

    Raises DamagedFile for any other table, InputError if there is no such file or it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".csv":
        read = _read_csv
    else:
        _require_parquet(path)
        read = _read_parquet
    try:
        return tuple(
            Result(**{name: _value(name, row[name]) for name in COLUMNS if name in row or name not in _YOUNGER})
            for row in read(path)
        )
    except InputError:
        raise
    except Exception as error:  # the libraries raise errors of any class for broken tables
        raise DamagedFile(
            f"{path} is not a table of results ({error!r}); write it again with handful experiment report"
        ) from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with open_file(path) as file:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        return [{name: from_spreadsheet_text(cell) for name, cell in row.items()} for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    with open_file(path) as file:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


def has_parquet() -> bool:
    """Whether pyarrow is installed, which Parquet files need."""
    return find_spec("pyarrow") is not None


def case_scores(results: Iterable[Result], measure: str) -> dict[str, float]:
    """{case: mean over its labels}, without absent labels; missed labels and false positives count."""
    by_case: dict[str, list[float]] = {}
    for result in results:
        if result.status != "absent":
            by_case.setdefault(result.case, []).append(getattr(result, measure))
    return {case: math.fsum(values) / len(values) for case, values in by_case.items()}


def _require_parquet(path: Path) -> None:
    if path.suffix != ".parquet":
        raise UnsupportedInput(f"{path}: not a table of results; give a .csv or .parquet file")
    if not has_parquet():
        raise UnsupportedInput(f"{path}: Parquet files need pyarrow; run pip install pyarrow, or use .csv")


def _text(value: object) -> object:
    defined = json_value(value)
    return "" if defined is None else repr(defined) if isinstance(defined, float) else spreadsheet_text(defined)


def _arrow(name: str) -> Any:
    import pyarrow

    kind = _KINDS[name]
    kinds = {int: pyarrow.int64(), int | None: pyarrow.int64(), float: pyarrow.float64()}
    return kinds.get(kind, pyarrow.string())


def _value(name: str, cell: Any) -> Any:
    kind = _KINDS[name]
    if name == "decisions" and cell and not isinstance(json.loads(cell), list):
        raise ValueError(f"decisions must be a list, got {cell}")
    if kind is float:
        return math.nan if cell in ("", None) else float(cell)
    if kind is int:
        return int(cell)
    if kind == int | None:
        return None if cell in ("", None) else int(cell)
    return "" if cell is None else str(cell)
