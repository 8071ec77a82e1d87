"""Results of experiments as one tidy table: a row a data set, configuration, number of shots, split, case and label."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_type_hints

from handful.errors import DamagedFile, UnsupportedInput
from handful.evaluation.evaluate import Status
from handful.jobs.atomic import write_atomically
from handful.jobs.json_values import json_value


@dataclass(frozen=True, kw_only=True)
class Result:
    """One label of one unseen case, as one configuration segmented it after one fit; and where all that comes from."""

    experiment: str
    data_set: str
    configuration: str
    shots: int
    """Labelled cases that were learned from."""
    split: int
    """Which random split of them; also the seed, where `seed` says so."""
    case: str
    label: int
    name: str
    status: Status
    dice: float
    """0 where the label was missed or a false positive, as the other overlaps."""
    iou: float
    hd95: float
    """In `unit`; an image diagonal where the label was missed or a false positive, nan where it is absent. So is
    `assd`."""
    assd: float
    surface_dice: float
    reference_volume: float
    """In ml where `unit` is mm, else a share of the image. So is `predicted_volume`."""
    predicted_volume: float
    unit: Literal["mm", "pixel"]
    tolerance: float
    """Of the surface Dice, in `unit`."""
    failure: str
    """Why the case could not be segmented; its labels then count as missed. Empty where it could."""
    predict_s: float
    """Seconds for the whole case, reading included."""
    fit_s: float
    """Seconds of the fit, the same in all rows of it."""
    peak_mib: float
    """Most memory that the fit and its predictions held, the program itself included; on CUDA that of the device."""
    method: str
    settings: str
    """All settings of the method, as JSON."""
    annotator: str
    """Who gave the prompts: empty for an automatic configuration, else a simulated annotator who looks at the truth."""
    backbone: str
    backbone_sha256: str
    seed: int | None
    """None where the method splits nothing at random."""
    support: str
    """Names of the labelled cases, as JSON."""
    device: str
    handful: str
    """Version."""
    trial: str
    """Digest of all that decides the fit and its scores; by it a later run knows what need not be measured again."""


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))
_KINDS = get_type_hints(Result)
MEASURES = ("dice", "iou", "hd95", "assd", "surface_dice")
"""The columns that curves, tables and tests can be of."""
LARGER_IS_BETTER = ("dice", "iou", "surface_dice")
TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD", "surface_dice": "surface Dice"}


def write_results(results: Sequence[Result], path: Path) -> None:
    """A .csv file, or a .parquet file where pyarrow is installed; an undefined number is an empty cell."""
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


def read_results(path: Path) -> tuple[Result, ...]:
    """The rows of a table that `write_results` wrote; DamagedFile where it is another one."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(file)]
    else:
        _require_parquet(path)
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    try:
        return tuple(Result(**{name: _value(name, row[name]) for name in COLUMNS}) for row in rows)
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"{path} is no table of results ({error!r}); gather it again") from error


def has_parquet() -> bool:
    """Whether Parquet files can be written here."""
    return find_spec("pyarrow") is not None


def case_scores(results: Iterable[Result], measure: str) -> dict[str, float]:
    """{case: mean over its labels}; absent labels are kept out, missed and false positive ones count."""
    by_case: dict[str, list[float]] = {}
    for result in results:
        if result.status != "absent":
            by_case.setdefault(result.case, []).append(getattr(result, measure))
    return {case: math.fsum(values) / len(values) for case, values in by_case.items()}


def _require_parquet(path: Path) -> None:
    if path.suffix != ".parquet":
        raise UnsupportedInput(f"{path}: results are kept as .csv or .parquet")
    if not has_parquet():
        raise UnsupportedInput(f"{path}: Parquet needs pyarrow (pip install pyarrow); or take .csv")


def _text(value: object) -> object:
    defined = json_value(value)
    return "" if defined is None else repr(defined) if isinstance(defined, float) else defined


def _arrow(name: str) -> Any:
    import pyarrow

    kind = _KINDS[name]
    kinds = {int: pyarrow.int64(), int | None: pyarrow.int64(), float: pyarrow.float64()}
    return kinds.get(kind, pyarrow.string())


def _value(name: str, cell: Any) -> Any:
    kind = _KINDS[name]
    if kind is float:
        return math.nan if cell in ("", None) else float(cell)
    if kind is int:
        return int(cell)
    if kind == int | None:
        return None if cell in ("", None) else int(cell)
    return "" if cell is None else str(cell)
