"""How good a segmentation is where there is no reference: a predicted Dice, and the signals that it rests on.

Three signals of a label in a case, each in [0, 1]. *Confidence*: the model's own, of its prediction. *Consistency*:
how much neighbouring slices agree, compared with the support's references. *Reverse*: reverse classification accuracy.
Where there are labelled cases enough, a calibration says what the signals are worth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
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
"""Fits the same method to other cases."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Which signals are asked for."""

    reverse: str = "auto"
    """The reverse segmenter: fate, nearest-slice or none; auto takes fate where the backbone has a memory, else
    nearest-slice."""
    confidence: bool = True
    """Ask the model how sure it is, which segments each case once more."""
    cache: Path | None = None
    """Folder of embeddings to use and to fill; None keeps them in a temporary one, for as long as the work lasts."""

    def __post_init__(self) -> None:
        if self.reverse not in REVERSE:
            raise SettingsError(f"reverse segmenter {self.reverse!r}; choose {', '.join(REVERSE)}")


@dataclass(frozen=True, kw_only=True)
class LabelQuality:
    """What is to be expected of one label of a case."""

    label: int
    name: str
    predicted_dice: float
    """In [0, 1]. Of a label that was not found: the share of support cases that lack it, too."""
    signals: Signals
    size: float
    """ml where the grid is in mm, else a fraction of the image."""
    flags: tuple[str, ...]
    """What is unusual compared with the support's references: empty, several pieces, touches the border, too small, too
    large."""


@dataclass(frozen=True)
class CaseQuality:
    """What is to be expected of a case."""

    case: str
    labels: tuple[LabelQuality, ...]

    @property
    def worst(self) -> float:
        """The lowest predicted Dice of its labels."""
        return min(one.predicted_dice for one in self.labels)


def predict_quality(
    segmenter: Segmenter,
    support: SupportSet,
    predicted: Iterable[tuple[Case, LabelMap]],
    refit: Refit | None = None,
    config: QualityConfig = QualityConfig(),
    report: Report = silent,
) -> list[CaseQuality]:
    """The Dice to be expected of each prediction, label by label, in the order given; no reference of these is read.

    `support` are the cases that `segmenter` was fitted on. With at least three of them and `refit`, such as
    `lambda cases: method.fit(cases, backbone)`, each is segmented by a model of the others, and what the signals were
    worth there becomes the calibration; else the predicted Dice is the plain mean of the signals. Raises LabelError
    where a prediction or the support knows other labels than the segmenter, GeometryMismatch where a prediction does
    not lie on its image's grid.
    """
    pairs = list(predicted)
    with estimating_quality(segmenter, support, config) as estimator:
        if refit is not None:
            estimator = replace(estimator, calibration=estimator.calibrated(support, refit))
        found = []
        for number, (case, prediction) in enumerate(pairs, start=1):
            found.append(estimator(case, prediction))
            report(number, len(pairs), case.name)
    return found


@contextmanager
def estimating_quality(
    segmenter: Segmenter,
    support: SupportSet,
    config: QualityConfig = QualityConfig(),
    calibration: Calibration | None = None,
) -> Iterator[QualityEstimator]:
    """An estimator of this segmenter's predictions; embeddings are kept until the context ends."""
    if segmenter.labels.values != support.labels.values:
        raise LabelError(
            f"the model knows the labels {segmenter.labels.as_dict()}, the labelled cases {support.labels.as_dict()}; "
            "give the cases that it was fitted on"
        )
    slicer = support.resolve(segmenter.slicer)
    references = tuple(_Reference.of(case, support.labels, slicer) for case in support.cases)
    with _kept(segmenter.backbone, config.cache) as backbone:
        reverse = reverse_method(config.reverse, backbone, slicer)
        yield QualityEstimator(segmenter, references, slicer, reverse, backbone, config, calibration)


@contextmanager
def _kept(backbone: Backbone, cache: Path | None) -> Iterator[Backbone]:
    """The backbone with its embeddings kept, where its encoder does not train."""
    if backbone.plain is not backbone or any(p.requires_grad for p in backbone.image_encoder.parameters()):
        yield backbone
    elif cache is not None:
        yield cached(backbone, cache)
    else:
        with tempfile.TemporaryDirectory(prefix="handful-") as folder:
            yield cached(backbone, Path(folder))


@dataclass(frozen=True, eq=False)
class QualityEstimator:
    """Estimates how good the predictions of one segmenter are, with the help of its support."""

    segmenter: Segmenter
    references: tuple[_Reference, ...]
    """One per support case."""
    slicer: Slicer
    reverse: Method | None
    backbone: Backbone
    """Of the reverse segmenter."""
    config: QualityConfig
    calibration: Calibration | None = None

    def __call__(self, case: Case, prediction: LabelMap) -> CaseQuality:
        """The quality of a prediction for a case, of which only the image is read."""
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
        """What the signals are worth, found by leaving out each support case in turn; None with too few of them."""
        if len(support.cases) < LEAST_CASES:
            return None
        return calibrate(self.left_out(support, refit, report), self.segmenter.labels)

    def left_out(self, support: SupportSet, refit: Refit, report: Report = silent) -> list[Compared]:
        """The signals and true Dice of each support case, from a model and a support without it.

        A case is left alone that is the only one with some label, as the others cannot do without it.
        """
        compared: list[Compared] = []
        for number, case in enumerate(support.cases):
            others = tuple(one for one in support.cases if one is not case)
            references = tuple(one for place, one in enumerate(self.references) if place != number)
            if all(any(value in one.shapes for one in references) for value in self.segmenter.labels.values):
                judge = replace(self, segmenter=refit(SupportSet(others, support.labels)), references=references)
                compared += judge._compared(case)
            report(number + 1, len(support.cases), f"calibrating on {case.name}")
        return compared

    def _compared(self, case: Case) -> Iterator[Compared]:
        """The signals and the true Dice of a case, for the labels that were found in it."""
        volume, reference = case.read_image(), case.read_reference()
        assert reference is not None  # a support set has made sure
        prediction, reasons = self.segmenter.predict_explained(volume)
        shapes = self._shapes(volume, prediction)
        signals = self._signals(volume, prediction, shapes, reasons)
        valid_mask = reference.array != IGNORE
        for value in self.segmenter.labels.values:
            if shapes[value].voxels:
                truth = overlap(prediction.array == value, reference.array == value, valid_mask)
                yield Compared(case.name, value, signals[value], truth.dice)

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
        held = {value: name for value, name in self.segmenter.labels.as_dict().items() if shapes[value].voxels}
        nothing = Signals(confidence=np.nan, consistency=np.nan, reverse=np.nan)
        if not held:
            return dict.fromkeys(shapes, nothing)
        sure = self.segmenter.confidence(volume, prediction, reasons) if self.config.confidence else {}
        back = self._reversed(volume, prediction, Labels.of(held))
        return {
            value: Signals(
                confidence=sure.get(value, np.nan),
                consistency=consistency(shape, self._references(value)),
                reverse=back.get(value, np.nan),
            )
            if shape.voxels
            else nothing
            for value, shape in shapes.items()
        }

    def _reversed(self, volume: Volume, prediction: LabelMap, held: Labels) -> dict[int, float]:
        if self.reverse is None:
            return {}
        scored = (one.scored for one in self.references)
        return reverse_dice(self.reverse, self.backbone, volume, prediction, held, scored)

    def _references(self, value: int) -> list[ShapeStatistics]:
        """The label in the references, one for each support case that holds it."""
        return [one.shapes[value] for one in self.references if value in one.shapes]

    def _dice(self, value: int, shape: ShapeStatistics, signals: Signals) -> float:
        if not shape.voxels:
            return 1 - len(self._references(value)) / len(self.references)
        if self.calibration is not None and value in self.calibration.offsets:
            return self.calibration.dice(value, signals)
        measured = [one for one in astuple(signals) if not np.isnan(one)]
        return float(np.mean(measured)) if measured else 0.5


@dataclass(frozen=True, eq=False)
class _Reference:
    """A support case: the shapes of its labels, and the slices that a reverse segmenter is scored on."""

    shapes: dict[int, ShapeStatistics]
    """Of the labels that it holds."""
    scored: ScoredSlices

    @classmethod
    def of(cls, case: Case, labels: Labels, slicer: Slicer) -> _Reference:
        volume, reference = case.read_image(), case.read_reference()
        assert reference is not None  # a support set has made sure
        view, size = slicer.view(volume), voxel_size(volume.geometry)
        classes = view.of(reference.array)
        valid_mask, held = classes != IGNORE, [value for value in labels.values if (classes == value).any()]
        shapes = {value: ShapeStatistics.of(classes == value, valid_mask, size) for value in held}
        return cls(shapes, ScoredSlices.of(view, classes, labels))


def _require_known(case: str, prediction: LabelMap, labels: Labels) -> None:
    unknown = sorted(set(np.unique(prediction.array).tolist()) - {0, IGNORE, *labels.values})
    if unknown:
        raise LabelError(
            f"prediction of case {case!r} holds {', '.join(map(str, unknown))}, which the model does not know "
            f"({labels.as_dict()}); give predictions of this model"
        )
