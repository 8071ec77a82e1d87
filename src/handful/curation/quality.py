"""How good a segmentation is where nobody drew a reference: a predicted Dice, and the signals that it rests on.

Three signals of a label in a case, each in [0, 1]. *Confidence*: what the model says of its own answer. *Consistency*:
how much neighbouring slices agree, against what the support's references show. *Reverse*: reverse classification
accuracy after Valindria et al., "Reverse classification accuracy: predicting segmentation performance in the absence
of ground truth" (IEEE TMI 2017): the prediction is taken for the truth, a segmenter that trains nothing learns from it
alone, and is scored on the support, whose truth is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Integer
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import lsq_linear
from torch import Tensor

from handful.backbones.base import Backbone, MemoryBackbone
from handful.backbones.cached import CachedBackbone, cached
from handful.data.cases import Case, SupportSet
from handful.data.slicing import Slicer, SliceView
from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
from handful.errors import LabelError, SettingsError
from handful.evaluation.metrics import overlap
from handful.jobs.progress import Report, silent
from handful.methods.base import CHUNK, Method, Segmenter, to_classes
from handful.methods.catalog import build_method
from handful.methods.explained import SliceConfidence

MOST_SLICES = 24
"""Slices of a case that the reverse segmenter learns from or is scored on, at most: what bounds its cost."""
LEAST_CASES = 3
"""Labelled cases from which a calibration is learnt."""
PIECE = 0.05
"""Share of a label's voxels from which a connected part of it counts as a piece."""
FAR = 2.0
"""A volume is far off when it is so many times larger than the largest of the support, or smaller than the smallest."""
DOUBT_OF_WEIGHTS, DOUBT_OF_LABELS = 0.15, 1.0
"""How strongly a calibration holds to equal weights, and to one offset for all labels: the variance of a Dice that
signals do not explain (0.1 squared) over what weights (0.26) and offsets (0.1) were thought to vary by beforehand."""

Refit = Callable[[SupportSet], Segmenter]
"""Fits the same method to other cases."""
REVERSE = ("auto", "fate", "nearest-slice", "none")


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
class Signals:
    """What speaks for a label of a case, in [0, 1]; nan where there is no saying."""

    confidence: float
    """The model's own: for fate the Dice that follows from the IoU it predicts of a slice, times the probability that
    the label is in the slice at all, else by how much the label's probability exceeds the next best class's; averaged
    over the voxels that bear the label. nan for methods whose slices do not pass through `forward` one by one."""
    consistency: float
    """Mean Dice between the label's masks on adjacent slices, over the same mean of the references, 1 at most."""
    reverse: float
    """Highest Dice that the reverse segmenter reaches on a support case that holds the label."""


SIGNALS = tuple(field.name for field in fields(Signals))


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
    """What looks odd: empty, several pieces, touches the border, too small, too large; each in the light of what the
    support's references show."""


@dataclass(frozen=True)
class CaseQuality:
    """What is to be expected of a case."""

    case: str
    labels: tuple[LabelQuality, ...]

    @property
    def worst(self) -> float:
        """The lowest predicted Dice of its labels."""
        return min(one.predicted_dice for one in self.labels)


@dataclass(frozen=True)
class Compared:
    """A label of a labelled case that was left out: its signals and its true Dice."""

    case: str
    label: int
    signals: Signals
    dice: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Predicted Dice as a line in the signals that falls in none of them, with an offset for each label."""

    weights: dict[str, float]
    """By the names of the signals; one that the support does not have is missing."""
    usual: dict[str, float]
    """What each signal is on average; stands for one that a case lacks."""
    offsets: dict[int, float]
    """By label value: Dice of a case whose signals are the usual ones."""
    cases: int
    """Labelled cases that it was learnt from."""
    error: float
    """Mean absolute error of the predicted Dice on a labelled case that neither model nor calibration had seen."""

    def dice(self, label: int, signals: Signals) -> float:
        """The predicted Dice of a label."""
        found = self.offsets[label]
        for name, weight in self.weights.items():
            value = getattr(signals, name)
            found += weight * ((self.usual[name] if np.isnan(value) else value) - self.usual[name])
        return float(np.clip(found, 0, 1))


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
    `lambda cases: Fate().fit(cases, backbone)`, each is segmented by a model of the others, and what the signals were
    worth there becomes the calibration; else the predicted Dice is the plain mean of the signals. Raises LabelError
    where a prediction or the support knows other labels than the segmenter, GeometryMismatch where a prediction does
    not lie on its image's grid.
    """
    pairs = list(predicted)
    with judging(segmenter, support, config) as judge:
        if refit is not None:
            judge = replace(judge, calibration=judge.calibrated(support, refit))
        found = []
        for number, (case, prediction) in enumerate(pairs, start=1):
            found.append(judge(case, prediction))
            report(number, len(pairs), case.name)
    return found


@contextmanager
def judging(
    segmenter: Segmenter,
    support: SupportSet,
    config: QualityConfig = QualityConfig(),
    calibration: Calibration | None = None,
) -> Iterator[Judge]:
    """A judge of what this segmenter predicts, with its embeddings kept for as long."""
    if segmenter.labels.values != support.labels.values:
        raise LabelError(
            f"the model knows the labels {segmenter.labels.as_dict()}, the labelled cases {support.labels.as_dict()}; "
            "give the cases that it was fitted on"
        )
    slicer = segmenter.slicer.resolve(support.images())
    shown = tuple(_shown(case, support.labels, slicer) for case in support.cases)
    with _kept(segmenter.backbone, config.cache) as backbone:
        yield Judge(segmenter, shown, slicer, _reverse_method(config, backbone, slicer), backbone, config, calibration)


@dataclass(frozen=True, eq=False)
class Judge:
    """Says how good a prediction of one segmenter is, by what its support shows."""

    segmenter: Segmenter
    shown: tuple[_Shown, ...]
    """A support case each."""
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
        looks = self._looks(volume, prediction)
        signals = self._signals(volume, prediction, looks)
        labels = [
            LabelQuality(
                label=value,
                name=name,
                predicted_dice=self._dice(value, looks[value], signals[value]),
                signals=signals[value],
                size=looks[value].size,
                flags=tuple(_flags(looks[value], self._references(value))),
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
        """What is seen of each support case by a model and a support of the others.

        A case is passed over that alone holds some label, for the others cannot do without it.
        """
        seen: list[Compared] = []
        for number, case in enumerate(support.cases):
            others = tuple(one for one in support.cases if one is not case)
            shown = tuple(one for place, one in enumerate(self.shown) if place != number)
            if all(any(value in one.looks for one in shown) for value in self.segmenter.labels.values):
                judge = replace(self, segmenter=refit(SupportSet(others, support.labels)), shown=shown)
                seen += judge._compared(case)
            report(number + 1, len(support.cases), f"calibrating on {case.name}")
        return seen

    def _compared(self, case: Case) -> Iterator[Compared]:
        """The signals of a case beside its true Dice, for the labels that were found in it."""
        volume, reference = case.read_image(), case.read_reference()
        assert reference is not None  # a support set has made sure
        prediction, reasons = self.segmenter.predict_explained(volume)
        looks = self._looks(volume, prediction)
        signals = self._signals(volume, prediction, looks, reasons)
        known = reference.array != IGNORE
        for value in self.segmenter.labels.values:
            if looks[value].voxels:
                truth = overlap(prediction.array == value, reference.array == value, known)
                yield Compared(case.name, value, signals[value], truth.dice)

    def _looks(self, volume: Volume, prediction: LabelMap) -> dict[int, _Look]:
        classes = self.slicer.view(volume).of(prediction.array)
        voxel = _voxel(volume.geometry)
        return {value: _look(classes == value, classes != IGNORE, voxel) for value in self.segmenter.labels.values}

    def _signals(
        self, volume: Volume, prediction: LabelMap, looks: Mapping[int, _Look], reasons: SliceConfidence | None = None
    ) -> dict[int, Signals]:
        held = {value: name for value, name in self.segmenter.labels.as_dict().items() if looks[value].voxels}
        nothing = Signals(confidence=np.nan, consistency=np.nan, reverse=np.nan)
        if not held:
            return dict.fromkeys(looks, nothing)
        sure = self.segmenter.confidence(volume, prediction, reasons) if self.config.confidence else {}
        back = self._reversed(volume, prediction, Labels.of(held)) if self.reverse else {}
        return {
            value: Signals(
                confidence=sure.get(value, np.nan),
                consistency=_consistency(look, self._references(value)),
                reverse=back.get(value, np.nan),
            )
            if look.voxels
            else nothing
            for value, look in looks.items()
        }

    @torch.inference_mode()
    def _reversed(self, volume: Volume, prediction: LabelMap, found: Labels) -> dict[int, float]:
        """The best Dice on the support of what learned from this prediction alone."""
        assert self.reverse is not None
        learned = _thinned(self.slicer.view(volume), prediction, found)
        case = Case("prediction", volume, learned, found)
        segmenter = self.reverse.fit(SupportSet((case,), found), self.backbone).eval()
        best: dict[int, float] = {}
        for shown in self.shown:
            chunks = torch.split(shown.slices.to(self.backbone.device), CHUNK)
            classes = torch.cat([to_classes(segmenter(chunk)) for chunk in chunks]).cpu().numpy()
            for index, value in enumerate(found.values, start=1):
                truth = shown.classes == value
                if truth.any():
                    dice = overlap(classes == index, truth, shown.classes != IGNORE).dice
                    best[value] = max(best.get(value, 0.0), dice)
        return best

    def _references(self, value: int) -> list[_Look]:
        """The label in the references, one a support case that holds it."""
        return [shown.looks[value] for shown in self.shown if value in shown.looks]

    def _dice(self, value: int, look: _Look, signals: Signals) -> float:
        if not look.voxels:
            return 1 - len(self._references(value)) / len(self.shown)
        if self.calibration is not None and value in self.calibration.offsets:
            return self.calibration.dice(value, signals)
        said = [one for one in astuple(signals) if not np.isnan(one)]
        return float(np.mean(said)) if said else 0.5


def calibrate(seen: Sequence[Compared], labels: Labels) -> Calibration | None:
    """Least squares, drawn towards equal weights of all signals and one offset of all labels; no weight is negative.

    None from fewer than three cases.
    """
    names = [name for name in SIGNALS if any(not np.isnan(getattr(one.signals, name)) for one in seen)]
    cases = list(dict.fromkeys(one.case for one in seen))
    if len(cases) < LEAST_CASES:
        return None
    errors = []
    for case in cases:
        rest = [one for one in seen if one.case != case]
        found = _fitted(rest, names, labels, len(cases), 0.0)
        errors += [abs(found.dice(one.label, one.signals) - one.dice) for one in seen if one.case == case]
    return _fitted(seen, names, labels, len(cases), float(np.mean(errors)))


def _fitted(seen: Sequence[Compared], names: Sequence[str], labels: Labels, cases: int, error: float) -> Calibration:
    values = np.array([[getattr(one.signals, name) for name in names] for one in seen]).reshape(len(seen), len(names))
    known = ~np.isnan(values)
    usual = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - usual, 0)
    member = np.array([[float(one.label == value) for value in labels.values] for one in seen])
    s, k = len(names), len(labels)
    drawn = np.diag([DOUBT_OF_WEIGHTS**0.5] * s + [DOUBT_OF_LABELS**0.5] * k + [0.0])[: s + k]
    system = np.vstack([np.hstack([centred, member, np.ones((len(seen), 1))]), drawn])
    wanted = np.concatenate([[one.dice for one in seen], np.full(s, DOUBT_OF_WEIGHTS**0.5 / max(s, 1)), np.zeros(k)])
    bounds = (np.array([0.0] * s + [-np.inf] * (k + 1)), np.full(s + k + 1, np.inf))
    found = lsq_linear(system, wanted, bounds).x
    return Calibration(
        weights=dict(zip(names, found[:s].tolist(), strict=True)),
        usual=dict(zip(names, usual.tolist(), strict=True)),
        offsets=dict(zip(labels.values, (found[s : s + k] + found[-1]).tolist(), strict=True)),
        cases=cases,
        error=error,
    )


@dataclass(frozen=True)
class _Look:
    """What can be seen of a label by itself."""

    voxels: int
    size: float
    """As in LabelQuality; nan where slices are unlabelled, and with it the three below."""
    consistency: float
    """Mean Dice of adjacent slices; nan where only one slice holds the label."""
    pieces: int
    at_border: bool


@dataclass(frozen=True, eq=False)
class _Shown:
    """A support case: its labels looked at, and the slices that a reverse segmenter is scored on."""

    looks: dict[int, _Look]
    """Of the labels that it holds."""
    slices: Tensor
    classes: Integer[np.ndarray[Any, Any], "n h w"]
    """Label values."""


def _shown(case: Case, labels: Labels, slicer: Slicer) -> _Shown:
    volume, reference = case.read_image(), case.read_reference()
    assert reference is not None  # a support set has made sure
    view = slicer.view(volume)
    classes = view.of(reference.array)
    known, voxel = classes != IGNORE, _voxel(volume.geometry)
    looks = {value: _look(classes == value, known, voxel) for value in labels.values if (classes == value).any()}
    chosen = _spread(classes, labels)
    return _Shown(looks, view.take(chosen), np.ascontiguousarray(classes[chosen]))


def _look(mask: Bool[np.ndarray, "n h w"], known: Bool[np.ndarray, "n h w"], voxel: float) -> _Look:
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    if not held.size:
        return _Look(0, 0.0, float("nan"), 0, False)
    voxels = int(mask.sum())
    inside = range(int(held[0]), int(held[-1]))
    labelled: NDArray[np.bool_] = np.any(known, axis=(1, 2))
    steps = [overlap(mask[i : i + 1], mask[i + 1 : i + 2]).dice for i in inside if labelled[i] and labelled[i + 1]]
    edges = (mask[:, [0, -1]].any(), mask[:, :, [0, -1]].any(), len(mask) > 1 and mask[[0, -1]].any())
    whole = bool(labelled.all())
    return _Look(
        voxels=voxels,
        size=voxels * voxel if whole else float("nan"),
        consistency=float(np.mean(steps)) if steps else float("nan"),
        pieces=_pieces(mask, voxels),
        at_border=any(bool(edge) for edge in edges),
    )


def _pieces(mask: Bool[np.ndarray, "n h w"], voxels: int) -> int:
    """Connected parts that hold a fair share of the mask; those that share a corner are one."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    pieces, _ = ndimage.label(mask[box], np.ones((3, 3, 3)))
    return int((np.bincount(pieces.ravel())[1:] >= PIECE * voxels).sum())


def _consistency(look: _Look, references: Sequence[_Look]) -> float:
    usual = [one.consistency for one in references if not np.isnan(one.consistency)]
    if not usual:
        return float("nan")
    if np.isnan(look.consistency):  # one slice, where references reach over several
        return 0.0
    return min(1.0, look.consistency / max(float(np.mean(usual)), 1e-6))


def _flags(look: _Look, references: Sequence[_Look]) -> Iterator[str]:
    if not look.voxels:
        yield "empty"
        return
    whole = [one for one in references if not np.isnan(one.size)]
    if not whole:
        return
    if look.pieces > max(one.pieces for one in whole):
        yield "several pieces"
    if look.at_border and not any(one.at_border for one in whole):
        yield "touches the border"
    if look.size * FAR < min(one.size for one in whole):
        yield "too small"
    if look.size > FAR * max(one.size for one in whole):
        yield "too large"


def _voxel(geometry: Geometry) -> float:
    """What one voxel adds to a size."""
    if geometry.unit == "mm":
        return abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000
    return 1 / float(np.prod(geometry.shape))


def _spread(classes: NDArray[np.integer], labels: Labels) -> list[int]:
    """At most MOST_SLICES labelled slices, evenly from a little before the first that holds a label to a little after
    the last; the slice on which a label is largest is always among them."""
    known = np.flatnonzero((classes != IGNORE).any(axis=(1, 2)))
    areas = np.stack([(classes[known] == value).sum(axis=(1, 2)) for value in labels.values])
    largest = {int(known[row]) for row in areas.argmax(axis=1)[areas.max(axis=1) > 0]}
    held = np.flatnonzero(areas.any(axis=0))
    rim = max(1, len(held) // 8)
    low, high = max(int(held[0]) - rim, 0), min(int(held[-1]) + rim, len(known) - 1)
    most = max(MOST_SLICES - len(largest), 1)
    evenly = np.linspace(low, high, min(most, high - low + 1)).round().astype(int)
    return sorted(largest | set(known[evenly].tolist()))


def _thinned(view: SliceView, prediction: LabelMap, labels: Labels) -> LabelMap:
    """The prediction on the slices that the reverse segmenter learns from, all others unlabelled."""
    array = np.full(prediction.array.shape, IGNORE, dtype=np.int32)
    given, kept = view.of(prediction.array), view.of(array)
    chosen = _spread(given, labels)
    kept[chosen] = given[chosen]
    return LabelMap(array, view.volume.geometry, labels)


def _reverse_method(config: QualityConfig, backbone: Backbone, slicer: Slicer) -> Method | None:
    if config.reverse == "none":
        return None
    has_memory = isinstance(backbone, MemoryBackbone)
    if config.reverse == "nearest-slice" or (config.reverse == "auto" and not has_memory):
        return build_method("nearest-slice", {}).with_slicer(slicer)
    return build_method("fate", {"window": 0}).with_slicer(slicer)


@contextmanager
def _kept(backbone: Backbone, cache: Path | None) -> Iterator[Backbone]:
    """The backbone with its embeddings kept, where its encoder does not train."""
    if isinstance(backbone, CachedBackbone) or any(p.requires_grad for p in backbone.image_encoder.parameters()):
        yield backbone
    elif cache is not None:
        yield cached(backbone, cache)
    else:
        with tempfile.TemporaryDirectory(prefix="handful-") as folder:
            yield cached(backbone, Path(folder))


def _require_known(case: str, prediction: LabelMap, labels: Labels) -> None:
    unknown = sorted(set(np.unique(prediction.array).tolist()) - {0, IGNORE, *labels.values})
    if unknown:
        raise LabelError(
            f"prediction of case {case!r} holds {', '.join(map(str, unknown))}, which the model does not know "
            f"({labels.as_dict()}); give predictions of this model"
        )
