"""A folder of predictions put in the order in which a reader should look at them: a table, and a page of the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from handful.backbones.catalog import load_backbone
from handful.checkpoint import SavedModel, open_model
from handful.curation.calibration import Calibration
from handful.curation.quality import CaseQuality, QualityConfig, QualityEstimator, Refit, estimating_quality
from handful.data.cases import Case, Cohort
from handful.data.files import read_label_map, stem
from handful.data.formats import is_scan
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import HandfulError, InputError, SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.digests import digest_of, digest_of_file, digest_of_json
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.progress import Report, silent
from handful.methods.base import Segmenter
from handful.reports.overlay import write_overlay
from handful.reports.review_page import PICTURES, ReviewResult, write_review


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """How to estimator, and how many cases are drawn."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    reverse: str = "auto"
    """As in QualityConfig, and the two below."""
    confidence: bool = True
    cache: Path | None = None
    calibrate: bool | None = None
    """Fit the method anew without each support case, to learn what the signals are worth; None does so for methods that
    train nothing, where it takes little time."""
    worst: int = 12
    """Cases that the page shows, the worst first."""

    def __post_init__(self) -> None:
        if self.worst < 0:
            raise SettingsError(f"worst must not be negative, got {self.worst}")


def review_folder(
    predictions: Path,
    model: Path,
    cohort: Cohort,
    out: Path,
    labelled: Cohort | None = None,
    config: ReviewConfig = ReviewConfig(),
    report: Report = silent,
) -> ReviewResult:
    """Judges the label maps in `predictions`, named as the cohort's cases, and writes review.csv and review.html.

    `model` is the folder of the segmenter that made them. The cases that it was fitted on, which are not judged, must
    be in `labelled`, or else in the cohort, with their references; no other reference is read. A case without a
    prediction, or one on another grid, is listed as a failure and the others go on. Run again, only what has changed is
    judged. Raises InputError where none of the labelled cases are there or nothing is to be judged, BusyError while
    another process works in `out`.
    """
    saved = open_model(model)
    found = _label_maps(predictions)
    support, known = _support(saved, labelled or cohort)
    wanted = [case for case in cohort.cases if case.name not in known]
    if not any(case.name in found for case in wanted):
        raise InputError(
            f"{predictions} holds no prediction of a case of {cohort.name!r} that the model was not fitted on; "
            "give the folder that handful predict wrote, and the scans it was made from"
        )
    with locked(out / NOTES):
        segmenter = saved.open(config.device, config.cache)
        key, refit = _key(saved, support, config), _refit(saved, segmenter, config)
        work = _Work(out, found, segmenter.slicer, segmenter.labels, key, refit)
        quality = QualityConfig(reverse=config.reverse, confidence=config.confidence, cache=config.cache)
        with estimating_quality(segmenter, support, quality) as estimator:
            return _reviewed(work, estimator, support, wanted, config, report)


@dataclass(frozen=True)
class _Work:
    """Where things are and where they go."""

    out: Path
    predictions: dict[str, Path]
    slicer: Slicer
    labels: Labels
    key: str
    """Of model, support and settings."""
    refit: Refit | None


@dataclass(frozen=True)
class _CalibrationNote:
    """The calibration, and the key of what it was learnt from."""

    made_of: str
    content: Calibration | None


@dataclass(frozen=True)
class _CaseNote:
    """The quality of a case's prediction, and the key of what it was judged by."""

    made_of: str
    content: CaseQuality


def _reviewed(
    work: _Work,
    estimator: QualityEstimator,
    support: SupportSet,
    wanted: Sequence[Case],
    config: ReviewConfig,
    report: Report,
) -> ReviewResult:
    names = tuple(case.name for case in support.cases)
    report(0, len(wanted), f"{len(wanted)} cases by {len(names)} labelled ones")
    estimator = _calibrated(work, estimator, support, report)
    judged: list[CaseQuality] = []
    skipped: list[str] = []
    failures: list[Failure] = []
    for number, case in enumerate(wanted, start=1):
        try:
            quality, anew = _judged(work, estimator, case)
            judged.append(quality)
            if not anew:
                skipped.append(case.name)
        except HandfulError as error:
            failures.append(Failure(case.name, str(error)))
        report(number, len(wanted), case.name)
    judged.sort(key=lambda one: (one.worst, one.case))
    result = ReviewResult(tuple(judged), tuple(skipped), tuple(failures), names, estimator.calibration)
    shown = judged[: config.worst]
    _draw(work, wanted, shown)
    write_review(work.out, result, shown)
    return result


def _calibrated(work: _Work, estimator: QualityEstimator, support: SupportSet, report: Report) -> QualityEstimator:
    """The estimator with the calibration learnt before, or learnt now."""
    notes = Notes(work.out / NOTES, _CalibrationNote)
    note = notes.find("calibration", made_of=work.key)
    if note is None:
        note = _CalibrationNote(work.key, estimator.calibrated(support, work.refit, report) if work.refit else None)
        notes.write("calibration", note)
    return replace(estimator, calibration=note.content)


def _judged(work: _Work, estimator: QualityEstimator, case: Case) -> tuple[CaseQuality, bool]:
    """The quality of a case's prediction, and whether that had to be found out."""
    if case.name not in work.predictions:
        raise InputError(f"no prediction of case {case.name!r}; predict it first, or name the cases that are")
    path = work.predictions[case.name]
    prediction = read_label_map(path, work.labels)
    volume = case.read_image()
    key = digest_of(f"{work.key} {digest_of(volume.array)} {digest_of_file(path)}")
    notes = Notes(work.out / NOTES / "cases", _CaseNote)
    note = notes.find(case.name, made_of=key)
    if note is not None:
        return note.content, False
    quality = estimator(replace(case, image=volume), prediction)
    _picture(work.out, case.name).unlink(missing_ok=True)  # of another prediction
    notes.write(case.name, _CaseNote(key, quality))
    return quality, True


def _label_maps(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that handful predict wrote")
    return {stem(path): path for path in sorted(folder.iterdir()) if is_scan(path)}


def _support(model: SavedModel, cohort: Cohort) -> tuple[SupportSet, set[str]]:
    """The labelled cases that the model was fitted on, as far as they are there, and the names of all of them."""
    fitted = model.fitted_on
    labelled = [case for case in cohort.cases if case.reference is not None]
    support = [case for case in labelled if case.name in fitted] if fitted else labelled
    if not support:
        names = f"fitted on {', '.join(sorted(fitted)[:5])}" if fitted else "of which no support is recorded"
        raise InputError(
            f"cohort {cohort.name!r} has no labelled case of the model {model.folder.name!r} ({names}), "
            "and nothing can be judged without one; name the folder that has them by --support"
        )
    found = SupportSet(tuple(support), Labels.of(model.record.labels))
    for facts in found.facts:
        name = facts.case.name
        if facts.image_sha256 != fitted.get(name, facts.image_sha256):
            raise InputError(
                f"case {name!r} of cohort {cohort.name!r} is not the scan of that name that the model was fitted "
                "on; name the folder that has it by --support"
            )
    return found, {*fitted, *(case.name for case in support)}


def _refit(model: SavedModel, segmenter: Segmenter, config: ReviewConfig) -> Refit | None:
    """Fits the model's method to other cases, on the backbone as it was before; None where nothing is calibrated."""
    method = model.method()
    if config.calibrate is False or (config.calibrate is None and method.trains):
        return None
    if not method.trains:
        return lambda cases: method.fit(cases, segmenter.backbone)
    backbone = load_backbone(model.record.backbone).to(segmenter.backbone.device)
    return lambda cases: method.fit(cases, backbone)


def _key(model: SavedModel, support: SupportSet, config: ReviewConfig) -> str:
    """What a judgement depends on, beside the case."""
    references = [(facts.case.name, facts.labels_sha256) for facts in support.facts]
    settings = (config.reverse, config.confidence, config.calibrate)
    return digest_of_json([version("handful"), model.sha256, references, settings])


def _draw(work: _Work, cases: Sequence[Case], shown: Sequence[CaseQuality]) -> None:
    """The contact sheets of the cases shown that are not there from before; those of other cases go."""
    names = [one.case for one in shown]
    for case in cases:
        path = _picture(work.out, case.name)
        if case.name not in names:
            path.unlink(missing_ok=True)
        elif not path.exists():
            prediction = read_label_map(work.predictions[case.name], work.labels)
            write_overlay(path, case.read_image(), prediction, slicer=work.slicer, case=case.name)


def _picture(out: Path, case: str) -> Path:
    return out / PICTURES / f"{case}.png"
