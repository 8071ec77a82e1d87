"""Scores of segmentations against references: one row per case and label, and their summaries.

A label of a case has one of four states. *absent*: in neither map; Dice 1, no distance, left out of every mean.
*missed*: in the reference only. *false positive*: in the prediction only. *scored*: in both. A missed label and a false
positive have Dice, IoU and surface Dice 0, and the image diagonal as their distances, so that leaving a structure out
never improves a score.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from handful.data.cases import Case
from handful.data.dicom.segments import segmentation_grid
from handful.data.files import SUFFIXES, read_label_map
from handful.data.formats import is_scan, labels_in, read_geometry
from handful.data.inventory import list_label_maps
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.data.voxel_order import in_order_of
from handful.errors import HandfulError, InputError, LabelError, SettingsError, reason_of
from handful.evaluation.metrics import Overlap, overlap, surface_distances
from handful.jobs.files import checked_path
from handful.jobs.plain_text import some

Status = Literal["scored", "absent", "missed", "false_positive"]

RESAMPLES = 2000
"""Number of bootstrap resamples; more would change the third digit of the interval at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One label of one case."""

    case: str
    label: int
    name: str
    status: Status
    unit: Literal["mm", "pixel"]
    """Unit of the distances and of the tolerance."""
    counts: Overlap
    dice: float
    iou: float
    hd95: float
    assd: float
    surface_dice: float
    volume_difference: float
    """Prediction minus reference: in ml if the unit is mm, else as a fraction of the image's labelled voxels."""


METRICS = ("dice", "iou", "hd95", "assd", "surface_dice", "volume_difference")
"""The fields of a Row that are averaged, in reporting order."""


@dataclass(frozen=True)
class Failure:
    """A case that failed, and the reason."""

    case: str
    reason: str

    @classmethod
    def of(cls, case: Case, error: Exception) -> Failure:
        """The failure of a case by an error, without the folders of its files."""
        return cls.with_files(case.name, [p for p in (*case.files, case.reference) if isinstance(p, Path)], error)

    @classmethod
    def with_files(cls, case: str, files: Iterable[Path], error: Exception) -> Failure:
        """The failure of a case by an error. Folders of the files are removed: they may have the name of a patient."""
        text = reason_of(error)
        for file in files:
            text = text.replace(f"{file.parent}{os.sep}", "")
        return cls(case, text)


@dataclass(frozen=True)
class Files:
    """The files of a case's two label maps."""

    prediction: str | None
    """None if there is none."""
    reference: str


@dataclass(frozen=True)
class Estimate:
    """A mean, the standard deviation of what was averaged, and the 95 % interval of the mean.

    With one value, all but the mean are nan; with none, all four are.
    """

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Estimate:
        """The estimate from one value per case of one fit: a percentile bootstrap over the cases.

        The interval is within the values' range. For fits on several splits, see `over_splits`.
        """
        nan = float("nan")
        if not values:
            return cls(nan, nan, nan, nan)
        mean = float(np.mean(values))
        if len(values) == 1:
            return cls(mean, nan, nan, nan)
        if min(values) == max(values):
            return cls(mean, 0.0, mean, mean)
        from scipy.stats import bootstrap  # takes a second to import and is not needed to predict

        rng = np.random.default_rng(seed)
        interval = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng
        ).confidence_interval
        return cls(mean, float(np.std(values, ddof=1)), float(interval.low), float(interval.high))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of one label over all cases, or of all labels together."""

    label: int | None
    """None for all labels together: each case then counts once, with the mean over its labels."""
    name: str
    unit: Literal["mm", "pixel", "mixed"]
    n: int
    """Number of cases averaged: those in which the label is not absent."""
    missed: int
    missed_of: int
    """Number of cases whose reference contains the label. For all labels together, counts are sums over the labels."""
    false_positive: int
    absent: int
    estimates: Mapping[str, Estimate]
    """An estimate for each of METRICS."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an evaluation."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()
    tolerance_mm: float = 1.0
    """Tolerance of the surface Dice."""
    files: Mapping[str, Files] = field(default_factory=dict)
    """By case; empty for predictions that were not read from files."""

    def summary(self, seed: int = 0) -> list[Summary]:
        """One entry per label in ascending order, then one for all together; `seed` is that of the bootstrap."""
        labels = {row.label: row.name for row in sorted(self.rows, key=lambda row: row.label)}
        by_label = [
            _summary([row for row in self.rows if row.label == label], label, name, seed)
            for label, name in labels.items()
        ]
        return [*by_label, _summary(self.rows, None, "mean", seed)]

    def only(self, cases: Collection[str], labels: Collection[int] | None = None) -> Report:
        """The report restricted to these cases, and to these label values if they are given."""
        return replace(
            self,
            rows=tuple(row for row in self.rows if row.case in cases and (labels is None or row.label in labels)),
            failures=tuple(failure for failure in self.failures if failure.case in cases),
            files={case: files for case, files in self.files.items() if case in cases},
        )


def evaluate(
    segment: Callable[[Volume], LabelMap],
    cases: Iterable[Case],
    tolerance_mm: float = 1.0,
    labels: Labels | None = None,
) -> Report:
    """Segment every case with `segment` (for example `segmenter.predict`), and score it against its reference.

    A case that cannot be segmented is listed as a failure, and its labels count as missed. A case without a readable
    reference is listed as a failure and has no rows. `labels` as in `score_case`.
    """
    return evaluate_cases(lambda case: segment(case.read_image()), cases, tolerance_mm, labels)


def evaluate_cases(
    segment: Callable[[Case], LabelMap],
    cases: Iterable[Case],
    tolerance_mm: float = 1.0,
    labels: Labels | None = None,
) -> Report:
    """As `evaluate`, but `segment` gets the whole case. For simulated annotators, who need its reference."""
    pairs = [
        _Pair(case.name, partial(_reference, case), partial(segment, case), partial(Failure.of, case)) for case in cases
    ]
    return _report(pairs, {}, tolerance_mm, labels)


def evaluate_folders(
    predictions: str | Path,
    references: str | Path | Mapping[str, str | Path],
    tolerance_mm: float = 1.0,
    labels: Labels | None = None,
    ignore: int | None = None,
    background: int = 0,
) -> Report:
    """Score every label map in `references` against the one of the same stem in `predictions`.

    `references` is a folder, or the files by the names of the predictions.

    A prediction that is missing, unreadable or on another grid is listed as a failure, and the labels of its reference
    count as missed. An unreadable reference is listed as a failure and has no rows. Without `labels`, every value in
    any reference is a label. `ignore` is the value of unlabelled voxels in the reference files, `background` that of
    voxels labelled as background in all files; in predictions, 0 is background, too. Raises InputError if no prediction
    has the name of a reference.
    """
    predictions = Path(predictions)
    if isinstance(references, Mapping):
        truth = {name: Path(file) for name, file in references.items()}
    else:
        truth = _by_name(Path(references))
    predicted = _by_name(predictions)
    if not truth:
        raise InputError(f"{references} contains no label map; references are files ending in {', '.join(SUFFIXES)}")
    if truth.keys().isdisjoint(predicted):
        there = f"its label maps are {some(sorted(predicted))}" if predicted else "it contains no label map"
        raise InputError(
            f"{predictions} has no prediction of any reference: {there}, and the references are {some(sorted(truth))}; "
            "files belong together by their names"
        )
    labels = labels or _labels_in(truth.values(), ignore)
    pairs = [
        _Pair(
            case,
            partial(_read_reference, path, predicted.get(case), labels, ignore, background),
            partial(_read_prediction, case, predicted, path, labels, background),
            partial(Failure.with_files, case, [path, predicted.get(case, path)]),
        )
        for case, path in truth.items()
    ]
    files = {
        case: Files(str(predicted[case]) if case in predicted else None, str(path)) for case, path in truth.items()
    }
    return _report(pairs, files, tolerance_mm, labels)


def score_case(
    name: str,
    prediction: LabelMap,
    reference: LabelMap,
    tolerance_mm: float = 1.0,
    labels: Labels | None = None,
) -> list[Row]:
    """One row for each of `labels` (default: the labels of either map).

    The tolerance of the surface Dice is in the geometry's unit: mm, or pixels for pictures. Voxels that are IGNORE in
    the reference count as background in both maps. Raises GeometryMismatch if the grids differ.
    """
    reference.geometry.require_same(prediction.geometry, f"case {name!r}, reference and prediction")
    valid_mask = reference.array != IGNORE
    names = (labels or _union(reference.labels, prediction.labels)).as_dict()
    return [_score_label(name, value, names[value], prediction, reference, valid_mask, tolerance_mm) for value in names]


def _score_label(
    case: str,
    value: int,
    name: str,
    prediction: LabelMap,
    reference: LabelMap,
    valid_mask: NDArray[np.bool_],
    tolerance_mm: float,
) -> Row:
    predicted, truth = (prediction.array == value) & valid_mask, reference.array == value
    counts = overlap(predicted, truth, valid_mask)
    distances = surface_distances(predicted, truth, reference.geometry.spacing)
    return Row(
        case=case,
        label=value,
        name=name,
        status=_status(counts),
        unit=reference.geometry.unit,
        counts=counts,
        dice=counts.dice,
        iou=counts.iou,
        hd95=distances.hausdorff95,
        assd=distances.assd,
        surface_dice=distances.surface_dice(tolerance_mm),
        volume_difference=_volume_difference(counts, reference),
    )


def _status(counts: Overlap) -> Status:
    if counts.n_pred and counts.n_ref:
        return "scored"
    if counts.n_ref:
        return "missed"
    return "false_positive" if counts.n_pred else "absent"


def _volume_difference(counts: Overlap, reference: LabelMap) -> float:
    difference = counts.n_pred - counts.n_ref
    if reference.geometry.unit == "mm":
        return difference * abs(float(np.linalg.det(reference.geometry.affine[:3, :3]))) / 1000
    return difference / max(counts.tp + counts.fp + counts.fn + counts.tn, 1)


@dataclass(frozen=True)
class _Pair:
    case: str
    reference: Callable[[], LabelMap]
    prediction: Callable[[], LabelMap]
    failure: Callable[[Exception], Failure]


def _report(pairs: Iterable[_Pair], files: Mapping[str, Files], tolerance_mm: float, labels: Labels | None) -> Report:
    if not 0 <= tolerance_mm < math.inf:
        raise SettingsError(f"tolerance_mm must be a number from 0 on, got {tolerance_mm}")
    rows: list[Row] = []
    failures: list[Failure] = []
    for pair in pairs:
        try:
            reference = pair.reference()
        except HandfulError as error:
            failures.append(pair.failure(error))
            continue
        try:
            prediction = in_order_of(pair.prediction(), reference.geometry)
            rows += score_case(pair.case, prediction, reference, tolerance_mm, labels)
        except HandfulError as error:
            failures.append(pair.failure(error))
            nothing = LabelMap(np.zeros_like(reference.array), reference.geometry, reference.labels)
            rows += score_case(pair.case, nothing, reference, tolerance_mm, labels)
    return Report(rows=tuple(rows), failures=tuple(failures), tolerance_mm=tolerance_mm, files=files)


def _reference(case: Case) -> LabelMap:
    reference = case.read_reference()
    if reference is None:
        raise InputError(f"case {case.name!r} has no reference; leave it out or add its label map")
    return reference


def _read_reference(
    path: Path, prediction: Path | None, labels: Labels, ignore: int | None, background: int
) -> LabelMap:
    try:
        grid = _common_grid(path, prediction)
    except HandfulError:  # then the prediction fails when it is read
        grid = None
    return read_label_map(path, labels, ignore, background, grid=grid)


def _read_prediction(
    case: str, files: Mapping[str, Path], reference: Path, labels: Labels, background: int
) -> LabelMap:
    if case not in files:
        raise InputError(f"no prediction of case {case!r}; its labels count as missed")
    return read_label_map(files[case], labels, None, background, grid=_common_grid(reference, files[case]))


def _union(reference: Labels, prediction: Labels) -> Labels:
    """The labels of both, named as in the reference, since predictions often have no names."""
    return Labels.of(prediction.as_dict() | reference.as_dict())


def _by_name(folder: Path) -> dict[str, Path]:
    """The label maps in a folder, by name. Raises InputError if two files have the same name."""
    if not checked_path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of label maps")
    return list_label_maps(folder, folder).scans


def _labels_in(paths: Collection[Path], ignore: int | None) -> Labels:
    """The values in label maps. A map that cannot be read is passed over here, and becomes a failure when scored."""
    labels, _ = labels_in(paths, ignore)
    if labels is None:
        folder = next(iter(paths)).parent
        raise LabelError(f"no label map in {folder} contains a label, and no label names are given; name the labels")
    return labels


def _common_grid(reference: Path, prediction: Path | None) -> Geometry | None:
    """The grid on which a DICOM segmentation among the two is read, since it holds only slices with a label."""
    segmentations = [path for path in (reference, prediction) if path is not None and not is_scan(path)]
    others = [path for path in (reference, prediction) if path is not None and is_scan(path)]
    if not segmentations:
        return None
    return read_geometry(others[0]) if others else segmentation_grid(*segmentations)


def _summary(rows: Sequence[Row], label: int | None, name: str, seed: int) -> Summary:
    status = [row.status for row in rows]
    units = {row.unit for row in rows}
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        if row.status != "absent":
            by_case.setdefault(row.case, []).append(row)
    return Summary(
        label=label,
        name=name,
        unit="mixed" if len(units) > 1 else min(units, default="mm"),
        n=len(by_case),
        missed=status.count("missed"),
        missed_of=status.count("missed") + status.count("scored"),
        false_positive=status.count("false_positive"),
        absent=status.count("absent"),
        estimates={m: Estimate.of([_mean(m, of_case) for of_case in by_case.values()], seed) for m in METRICS},
    )


def _mean(metric: str, rows: Sequence[Row]) -> float:
    return float(np.mean([getattr(row, metric) for row in rows]))
