"""Estimates of segmentation quality without a reference: a predicted Dice, and the signals that it is based on.

There are three signals for each label of a case, each in [0, 1]. *confidence*: the confidence of the model in its
prediction. *consistency*: the agreement of neighbouring slices, compared with the references of the support set.
*reverse*: reverse classification accuracy. With enough labelled cases, the weights of the signals are calibrated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np

from handful.backbones.base import Backbone
from handful.backbones.cached import cached
from handful.curation.calibration import LEAST_CASES, Calibration, Compared, calibrate
from handful.curation.reverse import REVERSE, ScoredSlices, reverse_dice, reverse_method
from handful.curation.signals import ShapeStatistics, Signals, consistency, flags, voxel_size
from handful.data.cases import Case
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import LabelError, SettingsError
from handful.evaluation.metrics import overlap
from handful.jobs.progress import Report, silent
from handful.methods.base import Method, Segmenter
from handful.methods.explained import SliceConfidence

Refit = Callable[[SupportSet], Segmenter]
"""Fits the same method on other cases."""
ESTIMATE = "an estimate of the quality"
UNSURE = 0.5
"""Agreement in training below which a case is flagged."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Options of the quality estimate."""

    reverse: str = "auto"
    """Segmenter of reverse classification accuracy: fate, nearest-slice or none; auto is fate if the backbone has a
    memory, else nearest-slice."""
    confidence: bool = True
    """Use the confidence of the model, which segments each case once more."""
    cache: str | Path | None = None
    """Folder of stored embeddings; missing ones are added. None uses a temporary folder."""

    def __post_init__(self) -> None:
        if self.reverse not in REVERSE:
            raise SettingsError(f"unknown reverse segmenter {self.reverse!r}; choose {', '.join(REVERSE)}")


@dataclass(frozen=True, kw_only=True)
class LabelQuality:
    """The estimated quality of one label of a case."""

    label: int
    name: str
    predicted_dice: float
    """In [0, 1]. For a label that was not predicted: the fraction of support cases without this label."""
    signals: Signals
    size: float
    """In ml if the grid is in mm, else as a fraction of the image."""
    flags: tuple[str, ...]
    """Unusual properties, compared with the references of the support set: empty, several pieces, touches the border,
    too small, too large, uncertain in training."""


@dataclass(frozen=True)
class CaseQuality:
    """The estimated quality of a case."""

    case: str
    labels: tuple[LabelQuality, ...]

    @property
    def worst(self) -> float:
        """The lowest predicted Dice of its labels."""
        return min(label.predicted_dice for label in self.labels)

    def flagged(self, agreement: float | None) -> CaseQuality:
        """The same with a flag at each label, if opinions on the case agreed too little in self-training (0 to 1)."""
        if agreement is None or agreement >= UNSURE:
            return self
        flag = f"uncertain in training (agreement {agreement:.2f})"
        return CaseQuality(self.case, tuple(replace(label, flags=(*label.flags, flag)) for label in self.labels))


def predict_quality(
    segmenter: Segmenter,
    support: SupportSet,
    predicted: Iterable[tuple[Case, LabelMap]],
    refit: Refit | None = None,
    config: QualityConfig = QualityConfig(),
    report: Report = silent,
) -> list[CaseQuality]:
    """Estimate the Dice of each prediction and label, without reading a reference of these cases.

    `support` contains the cases that `segmenter` was fitted on. With those of at least three patients and `refit` (for
    example `lambda cases: method.fit(cases, backbone)`), the estimate is calibrated: the cases of each patient are
    segmented by a model fitted on the others, and compared with their references. Otherwise, the predicted Dice is the
    plain mean of the signals. Results are in the order of `predicted`.

    Cases with scribbles are left out. Raises LabelError if some label is in no other case, or if the labels of a
    prediction or of the support set differ from the segmenter's, GeometryMismatch if a prediction is not on the grid of
    its image.
    """
    pairs = list(predicted)
    with estimating_quality(segmenter, support, config) as estimator:
        if refit is not None:
            estimator = replace(estimator, calibration=estimator.calibrated(support, refit))
        qualities = []
        for number, (case, prediction) in enumerate(pairs, start=1):
            qualities.append(estimator(case, prediction))
            report(number, len(pairs), case.name)
    return qualities


@contextmanager
def estimating_quality(
    segmenter: Segmenter,
    support: SupportSet,
    config: QualityConfig = QualityConfig(),
    calibration: Calibration | None = None,
) -> Iterator[QualityEstimator]:
    """An estimator for predictions of this segmenter; a temporary cache of embeddings exists until the context ends."""
    if segmenter.labels.values != support.labels.values:
        raise LabelError(
            f"the model has the labels {segmenter.labels.as_dict()}, but the labelled cases have "
            f"{support.labels.as_dict()}; give the cases that it was fitted on"
        )
    support = support.with_whole_masks(ESTIMATE)
    slicer = support.resolve(segmenter.slicer)
    references = tuple(_Reference.of(case, support.labels, slicer) for case in support.cases)
    with _caching(segmenter.backbone, config.cache) as backbone:
        reverse = reverse_method(config.reverse, backbone, slicer)
        yield QualityEstimator(segmenter, references, slicer, reverse, backbone, config, calibration)


@contextmanager
def _caching(backbone: Backbone, cache: str | Path | None) -> Iterator[Backbone]:
    """The backbone with a cache of its embeddings, unless its encoder is trained."""
    if backbone.plain is not backbone or any(p.requires_grad for p in backbone.image_encoder.parameters()):
        yield backbone
    elif cache is not None:
        yield cached(backbone, cache)
    else:
        with tempfile.TemporaryDirectory(prefix="handful-") as folder:
            yield cached(backbone, Path(folder))


@dataclass(frozen=True, eq=False)
class QualityEstimator:
    """Estimates the quality of predictions of one segmenter, from the cases that it was fitted on."""

    segmenter: Segmenter
    references: tuple[_Reference, ...]
    """One per support case."""
    slicer: Slicer
    reverse: Method | None
    """Method of reverse classification accuracy."""
    backbone: Backbone
    """Backbone of the reverse segmenter."""
    config: QualityConfig
    calibration: Calibration | None = None

    def __call__(self, case: Case, prediction: LabelMap) -> CaseQuality:
        """The estimated quality of the prediction for a case; the case's reference is not read."""
        volume = case.read_image()
        volume.geometry.require_same(prediction.geometry, f"case {case.name!r}, image and prediction")
        _require_known(case.name, prediction, self.segmenter.labels)
        shapes = self._shapes(volume, prediction)
        signals = self._signals(volume, prediction, shapes)
        labels = [
            LabelQuality(
                label=value,
                name=name,
                predicted_dice=self._dice(value, shapes[value], signals[value]),
                signals=signals[value],
                size=shapes[value].size,
                flags=tuple(flags(shapes[value], self._references(value))),
            )
            for value, name in self.segmenter.labels.as_dict().items()
        ]
        return CaseQuality(case.name, tuple(labels))

    def calibrated(self, support: SupportSet, refit: Refit, report: Report = silent) -> Calibration | None:
        """The calibration from leaving out each patient of the support set in turn; None for fewer than three.

        Its error includes labels that the refits did not find, with the estimate that such labels get.
        """
        patients = {case.name: case.patient_key for case in support.with_whole_masks(ESTIMATE).cases}
        if len(set(patients.values())) < LEAST_CASES:
            return None
        rows = list(self._left_out(support, refit, report))
        found = [row for row, estimate in rows if estimate is None]
        # the cases of a patient are also left out together for the error of the calibration
        by_patient = [replace(row, case=patients[row.case]) for row in found]
        calibration = calibrate(by_patient, self.segmenter.labels)
        if calibration is None:
            return None
        missed = [abs(estimate - row.dice) for row, estimate in rows if estimate is not None]
        error = (calibration.error * len(found) + sum(missed)) / len(rows)
        return replace(calibration, cases=len({row.case for row in found}), error=error)

    def left_out(self, support: SupportSet, refit: Refit, report: Report = silent) -> list[Compared]:
        """The signals and the true Dice of each label that is predicted in a support case without its patient.

        A patient is passed over if no other one has some label.
        """
        return [row for row, estimate in self._left_out(support, refit, report) if estimate is None]

    def _left_out(self, support: SupportSet, refit: Refit, report: Report) -> Iterator[tuple[Compared, float | None]]:
        """As `left_out`, but for all labels, each with its predicted Dice if it was not predicted, else with None."""
        support = support.with_whole_masks(ESTIMATE)
        cases, done = support.cases, 0
        for patient in dict.fromkeys(case.patient_key for case in cases):
            other = [case.patient_key != patient for case in cases]
            references = tuple(compress(self.references, other))
            values = self.segmenter.labels.values
            own = [case for case in cases if case.patient_key == patient]
            if all(any(value in reference.shapes for reference in references) for value in values):
                facts = tuple(compress(support.facts, other))
                others = replace(support, cases=tuple(compress(cases, other)), known_facts=facts)
                estimator = replace(self, segmenter=refit(others), references=references)
                for case in own:
                    yield from estimator._compared(case)
            done += len(own)
            report(done, len(cases), f"calibrating on {own[-1].name}")

    def _compared(self, case: Case) -> Iterator[tuple[Compared, float | None]]:
        """The signals and the true Dice of each label of a case, as in `_left_out`."""
        volume, reference = case.read_image(), case.read_reference()
        assert reference is not None, "a support set has references"
        prediction, reasons = self.segmenter.predict_explained(volume)
        shapes = self._shapes(volume, prediction)
        signals = self._signals(volume, prediction, shapes, reasons)
        valid_mask = reference.array != IGNORE
        for value in self.segmenter.labels.values:
            truth = overlap(prediction.array == value, reference.array == value, valid_mask)
            estimate = None if shapes[value].voxels else self._empty_dice(value)
            yield Compared(case.name, value, signals[value], truth.dice), estimate

    def _shapes(self, volume: Volume, prediction: LabelMap) -> dict[int, ShapeStatistics]:
        classes, size = self.slicer.view(volume).of(prediction.array), voxel_size(volume.geometry)
        valid_mask = classes != IGNORE
        return {value: ShapeStatistics.of(classes == value, valid_mask, size) for value in self.segmenter.labels.values}

    def _signals(
        self,
        volume: Volume,
        prediction: LabelMap,
        shapes: Mapping[int, ShapeStatistics],
        reasons: SliceConfidence | None = None,
    ) -> dict[int, Signals]:
        present = {value: name for value, name in self.segmenter.labels.as_dict().items() if shapes[value].voxels}
        none = Signals(confidence=np.nan, consistency=np.nan, reverse=np.nan)
        if not present:
            return dict.fromkeys(shapes, none)
        confidence = self.segmenter.confidence(volume, prediction, reasons) if self.config.confidence else {}
        reverse = self._reverse_dice(volume, prediction, Labels.of(present))
        return {
            value: Signals(
                confidence=confidence.get(value, np.nan),
                consistency=consistency(shape, self._references(value)),
                reverse=reverse.get(value, np.nan),
            )
            if shape.voxels
            else none
            for value, shape in shapes.items()
        }

    def _reverse_dice(self, volume: Volume, prediction: LabelMap, present: Labels) -> dict[int, float]:
        if self.reverse is None:
            return {}
        scored = (reference.scored for reference in self.references if reference.scored is not None)
        return reverse_dice(self.reverse, self.backbone, volume, prediction, present, scored)

    def _references(self, value: int) -> list[ShapeStatistics]:
        """The shapes of a label in the references of the support cases that contain it."""
        return [reference.shapes[value] for reference in self.references if value in reference.shapes]

    def _dice(self, value: int, shape: ShapeStatistics, signals: Signals) -> float:
        if not shape.voxels:
            return self._empty_dice(value)
        if self.calibration is not None and value in self.calibration.offsets:
            return self.calibration.dice(value, signals)
        measured = [signal for signal in astuple(signals) if not np.isnan(signal)]
        return float(np.mean(measured)) if measured else 0.5

    def _empty_dice(self, value: int) -> float:
        """The predicted Dice of a label that is in no voxel of a prediction: the fraction of cases without it."""
        return 1 - len(self._references(value)) / len(self.references)


@dataclass(frozen=True, eq=False)
class _Reference:
    """The shapes of the labels of a support case, and the slices that a reverse segmenter is scored on."""

    shapes: dict[int, ShapeStatistics]
    """By label value, for the labels in the case."""
    scored: ScoredSlices | None
    """None for a case without any label."""

    @classmethod
    def of(cls, case: Case, labels: Labels, slicer: Slicer) -> _Reference:
        volume, reference = case.read_image(), case.read_reference()
        assert reference is not None, "a support set has references"
        view, size = slicer.view(volume), voxel_size(volume.geometry)
        classes = view.of(reference.array)
        valid_mask, present = classes != IGNORE, [value for value in labels.values if (classes == value).any()]
        shapes = {value: ShapeStatistics.of(classes == value, valid_mask, size) for value in present}
        return cls(shapes, ScoredSlices.of(view, classes, labels) if present else None)


def _require_known(case: str, prediction: LabelMap, labels: Labels) -> None:
    unknown = sorted(set(np.unique(prediction.array).tolist()) - {0, IGNORE, *labels.values})
    if unknown:
        raise LabelError(
            f"the prediction of case {case!r} contains the values {', '.join(map(str, unknown))}, which are not labels "
            f"of the model ({labels.as_dict()}); give predictions of this model"
        )
