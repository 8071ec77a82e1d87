"""Fit of one trial, and its scores on the test cases."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from handful.backbones.base import Backbone
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort
from handful.data.formats import stem
from handful.data.inventory import SIDECAR
from handful.data.scribbles import WIDTH, scribbled
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import LabelMap, Volume
from handful.errors import HandfulError, InputError
from handful.evaluation.evaluate import Failure, Row, score_case
from handful.evaluation.object_features import object_features
from handful.experiments.plan import Trial
from handful.experiments.simulated_annotators import segmentation_function
from handful.jobs.digests import digest_of, digest_of_file, digest_of_json
from handful.jobs.memory import PeakMemory
from handful.methods.base import Segmenter
from handful.methods.catalog import method_settings
from handful.reports.worst_slice import worst_slice

Outcome = dict[str, Any]
"""The stored result of a trial, as a JSON object: the values that all rows share, the rows, the pictures, and what the
fit decided by itself."""
_IN_TWO_FILES = (".mhd", ".nhdr")


class Fingerprints:
    """Digests of everything that the result of a trial depends on; each file is read once for all trials."""

    def __init__(self) -> None:
        self._cohorts: dict[Path, Cohort] = {}
        self._cases: dict[tuple[Path, str, bool], list[object]] = {}
        self._files: dict[Path, str] = {}

    def of(self, trial: Trial, backbone: Backbone, backbone_sha256: str) -> str:
        """Digest of method, weights, tolerance and the contents of scans and references.

        The names of the configuration and the data set are not part of it.
        """
        cohort = self._cohorts.get(trial.folder) or read_cohort(trial.folder)
        self._cohorts[trial.folder] = cohort
        method, _ = trial.configuration.build(trial.split)
        support, unseen = trial.divide(cohort)
        parts = {
            "method": [trial.configuration.method, method_settings(method.resolved(backbone))],
            "annotator": trial.configuration.annotator
            and [trial.configuration.annotator, trial.configuration.jitter, trial.split],
            "backbone": backbone_sha256,
            "tolerance": trial.tolerance,
            "labels": cohort.labels.as_dict() if cohort.labels else None,
            "support": [self._of_case(trial.folder, case) for case in support],
            "unseen": [self._of_case(trial.folder, case) for case in unseen],
        }
        if trial.configuration.scribbles:
            parts["scribbles"] = f"width {WIDTH}, seed {trial.split}"
        if pool := trial.pool(cohort):
            parts["unlabelled"] = [self._of_case(trial.folder, replace(case, reference=None)) for case in pool]
        return digest_of_json(parts)

    def _of_case(self, folder: Path, case: Case) -> list[object]:
        key = (folder, case.name, case.reference is None)
        if key not in self._cases:
            self._cases[key] = self._read(case)
        return self._cases[key]

    def _read(self, case: Case) -> list[object]:
        own = () if case.is_dicom else case.files
        files = [self._of_file(part) for part in (*own, case.reference) if isinstance(part, Path)]
        if isinstance(case.reference, Path):
            files += self._beside(case, case.reference)
        if case.is_dicom:
            files.append(case.image_digest())
        if any(file.suffix.lower() in _IN_TWO_FILES for file in own):
            files.append(digest_of(case.read_image().array))
        background = [case.background] if case.background else []
        return [case.name, case.patient, case.modality, case.ignore, *background, *files]

    def _beside(self, case: Case, reference: Path) -> Iterator[str]:
        """Digests of what belongs to a label map and is not in its file: voxels of a header file, labelled slices."""
        if reference.suffix.lower() in _IN_TWO_FILES and (label_map := case.read_reference()) is not None:
            yield digest_of(label_map.array)
        if (listed := reference.with_name(f"{stem(reference)}{SIDECAR}")).is_file():
            yield self._of_file(listed)

    def _of_file(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = digest_of_file(path)
        return self._files[path]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted segmenter with its support cases, its time and its peak memory."""

    segmenter: Segmenter
    support: Sequence[Case]
    seconds: float
    peak_mib: float


def fit(trial: Trial, backbone: Backbone) -> Fit:
    """Fit the method of a trial, in this process."""
    cohort = read_cohort(trial.folder)
    if cohort.labels is None:
        raise InputError(f"{trial.folder} has no labelled case; put label maps into its labels/ folder")
    method, _ = trial.configuration.build(trial.split)
    cases, _ = trial.divide(cohort)
    if trial.configuration.scribbles:
        cases = [scribbled(case, trial.split) for case in cases]
    support = SupportSet(tuple(cases), cohort.labels, unlabelled=UnlabelledScans.of(tuple(trial.pool(cohort))))
    memory, began = PeakMemory(backbone.device), time.perf_counter()
    segmenter = method.fit(support, backbone)
    return Fit(segmenter, cases, time.perf_counter() - began, memory.mib())


def measure(trial: Trial, fitted: Fit) -> Outcome:
    """Score a trial on its test cases. The labels of a case that cannot be segmented count as missed."""
    _, unseen = trial.divide(read_cohort(trial.folder))
    written, seed = trial.configuration.build(trial.split)
    backbone = fitted.segmenter.backbone
    memory = PeakMemory(backbone.device)
    segment = segmentation_function(fitted.segmenter, trial.configuration, trial.split)
    prompted = fitted.segmenter.slicer if trial.configuration.annotator else None
    rows: list[dict[str, Any]] = []
    worst: list[_ScoredCase] = []  # those with pictures; the label maps of others need not stay in memory
    for case in unseen:
        scored = _score(segment, case, trial.tolerance, prompted)
        rows += scored.rows
        if not scored.failure:
            worst = sorted([*worst, scored], key=lambda one: one.dice)[: trial.pictures]
    peak = max(fitted.peak_mib, memory.mib())
    shared = {
        "shots": trial.shots,
        "split": trial.split,
        "tolerance": trial.tolerance,
        "fit_s": round(fitted.seconds, 3),
        "peak_mib": round(peak, 1),
        "method": trial.configuration.method,
        "settings": json.dumps(method_settings(written.resolved(backbone))),
        "annotator": _annotator(trial),
        "backbone": trial.backbone,
        "backbone_sha256": backbone.digest(),
        "seed": seed,
        "support": json.dumps([case.name for case in fitted.support]),
        "device": backbone.device.type,
        "handful": version("handful"),
        "decisions": json.dumps(fitted.segmenter.decisions, ensure_ascii=False) if fitted.segmenter.decisions else "",
    }
    return {"shared": shared, "rows": rows, "pictures": _pictures(worst, fitted.segmenter)}


@dataclass(frozen=True, eq=False)
class _ScoredCase:
    """A case with its prediction and its scores."""

    case: Case
    prediction: LabelMap
    reference: LabelMap
    dice: float
    failure: str
    """Why it could not be segmented; "" if it was."""
    rows: list[dict[str, Any]]


def _score(segment: Callable[[Case], LabelMap], case: Case, tolerance: float, prompted: Slicer | None) -> _ScoredCase:
    """Segment and score a case; `prompted` is the slicer of an annotator, whose objects are described."""
    reference = case.read_reference()
    if reference is None:
        raise InputError(f"case {case.name!r} has no reference; leave it out")
    failure, began = "", time.perf_counter()
    try:
        prediction = segment(case)
    except HandfulError as error:
        failure = Failure.of(case, error).reason
        prediction = LabelMap(np.zeros_like(reference.array), reference.geometry, reference.labels)
    seconds = time.perf_counter() - began
    scored = score_case(case.name, prediction, reference, tolerance, reference.labels)
    about = {"failure": failure, "predict_s": round(seconds, 4)}
    described = {} if prompted is None or failure else _features(case, reference, prompted)
    present = [row.dice for row in scored if row.status != "absent"]
    rows = [_row(row, reference) | about | described.get(row.label, {}) for row in scored]
    return _ScoredCase(case, prediction, reference, float(np.mean(present)) if present else 1.0, failure, rows)


def _features(case: Case, reference: LabelMap, slicer: Slicer) -> dict[int, dict[str, float | None]]:
    """The properties of each label of a case; None for an absent one, which has none."""
    stack = slicer.view(case.read_image())
    found = {value: asdict(object_features(stack, reference.array == value)) for value in reference.labels.values}
    return {
        value: {name: None if np.isnan(one) else round(one, 6) for name, one in features.items()}
        for value, features in found.items()
    }


def _row(row: Row, reference: LabelMap) -> dict[str, Any]:
    """The columns of `Result` that come from a `Row`; nan becomes None."""
    measures = {name: getattr(row, name) for name in ("dice", "iou", "hd95", "assd", "surface_dice")}
    if row.unit == "mm":
        unit_of_volume = abs(float(np.linalg.det(reference.geometry.affine[:3, :3]))) / 1000
    else:
        unit_of_volume = 1 / max(row.counts.tp + row.counts.fp + row.counts.fn + row.counts.tn, 1)
    return {
        "case": row.case,
        "label": row.label,
        "name": row.name,
        "status": row.status,
        "unit": row.unit,
        **{name: None if np.isnan(value) else round(float(value), 6) for name, value in measures.items()},
        "reference_volume": float(f"{row.counts.n_ref * unit_of_volume:.6g}"),
        "predicted_volume": float(f"{row.counts.n_pred * unit_of_volume:.6g}"),
    }


def _annotator(trial: Trial) -> str:
    if trial.configuration.annotator is None:
        return ""
    return (
        f"{trial.configuration.annotator}, jitter {trial.configuration.jitter:g}"
        if trial.configuration.annotator in ("box", "boxes")
        else trial.configuration.annotator
    )


def _pictures(cases: Sequence[_ScoredCase], segmenter: Segmenter) -> list[dict[str, Any]]:
    return [
        {
            "case": case.case.name,
            "dice": round(case.dice, 6),
            "webp": base64.b64encode(_picture(case, segmenter)).decode(),
        }
        for case in cases
    ]


def _picture(scored: _ScoredCase, segmenter: Segmenter) -> bytes:
    volume: Volume = scored.case.read_image()
    return worst_slice(volume, scored.prediction, scored.reference, segmenter.slicer)
