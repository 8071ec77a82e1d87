"""Review of a folder of predictions: a table ranked by estimated quality, and a page with the worst cases."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

from handful.checkpoint.model import SavedModel, open_model
from handful.checkpoint.record import recorded_scans
from handful.curation.calibration import Calibration
from handful.curation.quality import CaseQuality, QualityConfig, QualityEstimator, Refit, estimating_quality
from handful.data.cases import Case, Cohort
from handful.data.files import read_label_map
from handful.data.inputs import Inputs
from handful.data.inventory import list_label_maps
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.unlabelled import UnlabelledScans
from handful.data.volume import Labels
from handful.errors import InputError, SettingsError
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers
from handful.jobs.digests import digest_of, digest_of_file, digest_of_json
from handful.jobs.executors import Lost, Serial
from handful.jobs.files import checked_path
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.plain_text import counted
from handful.jobs.progress import Report, silent
from handful.jobs.workers import executor_for, require_workers
from handful.methods.base import Segmenter
from handful.reports.overlay import write_overlay
from handful.reports.review_page import PICTURES, ReviewResult, write_review

CASES = "cases"
"""Folder of the stored estimates in the folder of notes."""
FITTED_ON = "not estimated, since the model was fitted on it"


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Options of a review."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    reverse: str = "auto"
    """As in `QualityConfig`."""
    confidence: bool = True
    """As in `QualityConfig`."""
    cache: str | Path | None = None
    """As in `QualityConfig`."""
    calibrate: bool | None = None
    """Refit once per patient of the support set, leaving out the patient's cases, to calibrate the estimate.

    None does so for methods that need no training, where it takes little time. If the method also learned from scans
    without labels, they are needed for it.
    """
    backbone: str | None = None
    """Name of the model's backbone, if it is not where the model's record says; it is downloaded if necessary."""
    worst: int = 12
    """Number of cases with pictures on the page, worst first."""
    workers: int = 1
    """As in `PredictConfig`; the calibration and the pictures are made by one process."""
    scheduler: str | Path | None = None
    """As in `PredictConfig`."""

    def __post_init__(self) -> None:
        require_workers(self.workers, self.scheduler)
        if self.worst < 0:
            raise SettingsError(f"worst must not be negative, got {self.worst}")


def review_folder(
    predictions: str | Path,
    model: str | Path,
    cohort: Cohort,
    out: str | Path,
    labelled: Cohort | None = None,
    config: ReviewConfig = ReviewConfig(),
    report: Report = silent,
) -> ReviewResult:
    """Estimate the quality of the label maps in `predictions`, and write review.csv and review.html into `out`.

    `predictions` are named like the cases of `cohort`, and `model` is the folder of the segmenter that made them. The
    cases that the model was fitted on must be in `labelled` (default: the cohort) with their references. No other
    reference is read. Cases with the voxels of one of them are not estimated, whatever their names; `report` names
    them. A case without a prediction, or with one on another grid, is listed as a failure. If the review is run again,
    only new or changed predictions are estimated.

    Raises InputError if none of the model's labelled cases is found or there is no prediction to estimate, BusyError
    while another process works in `out`, ClusterError if the scheduler cannot be reached or is lost, SettingsError if
    `calibrate` needs scans without labels that are in neither cohort.
    """
    predictions, model, out = Path(predictions), Path(model), Path(out)
    if config.scheduler is not None:
        predictions, model, out = predictions.absolute(), model.absolute(), out.absolute()
        cohort, labelled = cohort.absolute(), (labelled or cohort).absolute()
        config = replace(config, cache=config.cache and Path(config.cache).absolute())
    saved = open_model(model)
    saved.require_single_task("a review")
    files = _label_maps(predictions)
    fitted = _fitted(saved, labelled or cohort)
    cases, left_out = fitted.unseen(cohort)
    if not any(case.name in files for case in cases):
        raise InputError(
            f"{predictions} contains no prediction of a case of {cohort.name!r} that the model was not fitted on; "
            "give the output folder of handful predict, and the scans it was made from"
        )
    inputs = Inputs.of(cohort.cases, [*cohort.files, *files.values()])
    for case in cases:
        inputs.require_not_among(_picture(out, case.name))
    with locked(out / NOTES):
        for folder in (out / NOTES, out / NOTES / CASES, out / PICTURES):
            remove_leftovers(folder)
        segmenter = saved.open(config.device, config.cache, config.backbone)
        refit = _refit(saved, segmenter, config, [*(labelled or cohort).cases, *cohort.cases])
        with _embeddings(out, config.cache) as embeddings:
            quality = QualityConfig(reverse=config.reverse, confidence=config.confidence, cache=embeddings)
            key = _key(saved, fitted.support, config)
            work = _Work(out, files, segmenter.slicer, segmenter.labels, key, saved, fitted, config, quality)
            with estimating_quality(segmenter, fitted.support, quality) as estimator:
                labelled_ones = counted(len(fitted.support.cases), "labelled one")
                report(0, len(cases), f"{counted(len(cases))}, compared with {labelled_ones}")
                if left_out:
                    report(0, len(cases), f"{FITTED_ON}: {', '.join(left_out)}")
                result = _reviewed(work, _calibrated(work, estimator, refit, report), cases, report)
                return replace(result, fitted_on=(*left_out, *result.fitted_on))


@contextmanager
def _embeddings(out: Path, cache: str | Path | None) -> Iterator[str | Path]:
    """The folder of stored embeddings; without one, a folder in `out` for this run, in which the next run cleans up."""
    if cache is not None:
        yield cache
        return
    own = out / NOTES / "embeddings"
    shutil.rmtree(own, ignore_errors=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


@dataclass(frozen=True)
class _Fitted:
    """What the model was fitted on."""

    support: SupportSet
    """The labelled cases that can be read."""
    unread: tuple[Case, ...]
    """Labelled cases that cannot be read. The model may have been fitted on them."""
    failures: tuple[Failure, ...]
    """Why they cannot be read."""
    names: frozenset[str]
    """Names of all these cases."""
    known: frozenset[str]
    """SHA-256 of the voxels of each of its scans."""

    def unseen(self, cohort: Cohort) -> tuple[list[Case], list[str]]:
        """The cases to estimate, and the names of those left out, since the model was fitted on their voxels.

        Only cases with the name of a labelled one are read here. Another case is recognised when its turn comes.
        """
        unseen: list[Case] = []
        left_out: list[str] = []
        for case in cohort.cases:
            if self._has(case):
                left_out.append(case.name)
            elif case not in self.unread:
                unseen.append(case)
        return unseen, left_out

    def _has(self, case: Case) -> bool:
        if case.name not in self.names:
            return False
        try:
            return digest_of(case.read_image().array) in self.known
        except Exception:  # it is listed when its turn comes
            return False


@dataclass(frozen=True)
class _Work:
    """The inputs and outputs of a review."""

    out: Path
    predictions: dict[str, Path]
    slicer: Slicer
    labels: Labels
    key: str
    """Digest of model, support set and settings."""
    model: SavedModel
    fitted: _Fitted
    config: ReviewConfig
    quality: QualityConfig


@dataclass(frozen=True)
class _CalibrationNote:
    """The stored calibration, and the digest of what it depends on."""

    made_of: str
    content: Calibration | None


@dataclass(frozen=True)
class _CaseNote:
    """The stored quality of a prediction, and the digest of what it depends on."""

    made_of: str
    content: CaseQuality


def _reviewed(work: _Work, estimator: QualityEstimator, cases: Sequence[Case], report: Report) -> ReviewResult:
    qualities: list[CaseQuality] = []
    skipped: list[str] = []
    failures: list[Failure] = []
    fitted_on: list[str] = []
    places = {case.name: place for place, case in enumerate(cases)}
    config = work.config
    executor = executor_for(config.workers, config.scheduler, str(work.out), config.device)
    judged = _CaseReview(work, estimator.calibration, estimator if isinstance(executor, Serial) else None)
    with closing(executor.run(judged, cases)) as outcomes:
        for number, (case, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Lost):
                failures.append(Failure(case.name, outcome.reason))
            elif isinstance(outcome, Failure):
                failures.append(outcome)
            elif outcome is None:
                fitted_on.append(case.name)
                report(0, len(cases), f"{FITTED_ON}: {case.name}")
            else:
                quality, is_new = outcome
                qualities.append(quality)
                skipped += [] if is_new else [case.name]
            report(number, len(cases), case.name)
    names = tuple(case.name for case in work.fitted.support.cases)
    skipped.sort(key=places.__getitem__)
    failures = [*work.fitted.failures, *sorted(failures, key=lambda failure: places[failure.case])]
    qualities.sort(key=lambda quality: (quality.worst, quality.case))
    result = ReviewResult(tuple(qualities), tuple(skipped), tuple(failures), names, estimator.calibration)
    pictured, without = _draw(work, cases, qualities[: config.worst])
    result = replace(result, failures=(*result.failures, *without), fitted_on=tuple(fitted_on))
    write_review(work.out, result, pictured)
    return result


class _CaseReview:
    """Estimates the quality of one case per call; outside the process of the review, the model is loaded first."""

    def __init__(self, work: _Work, calibration: Calibration | None, estimator: QualityEstimator | None) -> None:
        self.work, self.calibration, self.own = work, calibration, estimator
        self.until_end = ExitStack()

    def prepare(self) -> None:
        """Load the model and read the labelled cases before the first case."""
        _ = self.estimator

    @cached_property
    def estimator(self) -> QualityEstimator:
        if self.own is not None:
            return self.own
        work, config = self.work, self.work.config
        segmenter = work.model.open(config.device, config.cache, config.backbone)
        context = estimating_quality(segmenter, work.fitted.support, work.quality, self.calibration)
        return self.until_end.enter_context(context)

    def __call__(self, case: Case) -> tuple[CaseQuality, bool] | Failure | None:
        estimator = self.estimator
        try:
            return _quality(self.work, estimator, case)
        except Exception as error:  # any error concerns this case only: it is listed, and the others continue
            return Failure.of(case, error)


def _calibrated(work: _Work, estimator: QualityEstimator, refit: Refit | None, report: Report) -> QualityEstimator:
    """The estimator with the stored calibration, or with a new one."""
    notes = Notes(work.out / NOTES, _CalibrationNote)
    note = notes.find("calibration", made_of=work.key)
    if note is None:
        note = _CalibrationNote(work.key, estimator.calibrated(work.fitted.support, refit, report) if refit else None)
        notes.write("calibration", note)
    return replace(estimator, calibration=note.content)


def _quality(work: _Work, estimator: QualityEstimator, case: Case) -> tuple[CaseQuality, bool] | None:
    """The quality of a case's prediction, and whether it is new (not stored); None if the model was fitted on it."""
    if case.name not in work.predictions:
        raise InputError(f"no prediction of case {case.name!r}; predict it first, or leave it out with --cases")
    path = work.predictions[case.name]
    volume = case.read_image()
    scan = digest_of(volume.array)
    if scan in work.fitted.known:
        return None
    prediction = read_label_map(path, work.labels, grid=volume.geometry)
    key = digest_of(f"{work.key} {scan} {digest_of_file(path)}")
    notes = Notes(work.out / NOTES / CASES, _CaseNote)
    note = notes.find(case.name, made_of=key)
    if note is not None:
        return note.content, False
    quality = estimator(replace(case, image=volume), prediction).flagged(work.model.agreement.get(scan))
    _picture(work.out, case.name).unlink(missing_ok=True)  # of another prediction
    notes.write(case.name, _CaseNote(key, quality))
    return quality, True


def _label_maps(folder: Path) -> dict[str, Path]:
    if not checked_path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; give the output folder of handful predict")
    return list_label_maps(folder, folder).scans


def _fitted(model: SavedModel, cohort: Cohort) -> _Fitted:
    """The labelled cases in the cohort that the model was fitted on."""
    labelled = [case for case in cohort.cases if case.reference is not None]
    recorded, anonymous = model.fitted_on, model.record.anonymous
    fitted, unread = _without_names(model, labelled) if anonymous else (recorded, [])
    support = [case for case in labelled if case.name in fitted] if recorded else labelled
    if not support:
        named = f"{counted(len(recorded), 'scan')}, not named" if anonymous else ", ".join(sorted(recorded)[:5])
        names = f"fitted on {named}" if recorded else "its support cases are not recorded"
        raise InputError(
            f"cohort {cohort.name!r} has none of the labelled cases of the model {model.folder.name!r} ({names}), "
            "which the estimate needs; name the folder that has them with --support"
        )
    support_set, errors = SupportSet.of_readable(support, Labels.of(model.record.labels))
    for facts in support_set.facts:
        name = facts.case.name
        if facts.image_sha256 != fitted.get(name, facts.image_sha256):
            raise InputError(
                f"case {name!r} of cohort {cohort.name!r} differs from the scan of that name that the model was "
                "fitted on; name the folder that has the right one with --support"
            )
    unread += [Failure.of(case, errors[case.name]) for case in support if case.name in errors]
    listed = {failure.case for failure in unread}
    return _Fitted(
        support_set,
        tuple(case for case in labelled if case.name in listed),
        tuple(unread),
        frozenset({*recorded, *listed, *(case.name for case in support)}),
        frozenset(recorded.values() or (facts.image_sha256 for facts in support_set.facts)),
    )


def _without_names(model: SavedModel, labelled: Sequence[Case]) -> tuple[dict[str, str], list[Failure]]:
    """{name: SHA-256 of its voxels} of the labelled cases that an anonymous model was fitted on; reads every case.

    Those that cannot be read are listed: the model may have been fitted on them.
    """
    known, found, unread = set(model.fitted_on.values()), {}, []
    for case in labelled:
        try:
            digest = digest_of(case.read_image().array)
        except Exception as error:  # any error concerns this case only
            unread.append(Failure.of(case, error))
            continue
        if digest in known:
            found[case.name] = digest
    return found, unread


def _unlabelled(model: SavedModel, cases: Iterable[Case]) -> UnlabelledScans:
    """Those of the cases from which the model learned without labels.

    Raises SettingsError if some are missing, or if the labels that were made for them are not known.
    """
    recorded = recorded_scans(model.record.provenance, "unlabelled")
    if not recorded or not model.method().uses_unlabelled:
        return UnlabelledScans()
    if "labels_from_boxes_sha256" in model.record.provenance:
        raise SettingsError(
            f"calibrate refits the model {model.folder.name!r}, which also learned from boxes; their masks are not in "
            "the model, so it cannot be fitted in the same way. Use --no-calibrate"
        )
    names = {scan["case"] for scan in recorded}
    wanted = Counter(scan["image_sha256"] for scan in recorded)
    found: list[Case] = []
    for case in dict.fromkeys(cases):
        if wanted.total() and (model.record.anonymous or case.name in names):
            with suppress(Exception):  # it is missing, then
                digest = digest_of(case.read_image().array)
                if wanted[digest] > 0:
                    wanted[digest] -= 1
                    found.append(case)
    if wanted.total():
        raise SettingsError(
            f"calibrate refits the model {model.folder.name!r}, which also learned from "
            f"{counted(len(recorded), 'scan')} without labels, but {wanted.total()} of {len(recorded)} cannot be read "
            "from the given folders; name the folder with all its scans with --support, or use --no-calibrate"
        )
    return UnlabelledScans.of(tuple(found))


def _refit(model: SavedModel, segmenter: Segmenter, config: ReviewConfig, cases: Sequence[Case]) -> Refit | None:
    """A function that fits the model's method on other labelled cases, starting from the original backbone.

    `cases` include the scans without labels that the model learned from. None if the review does not calibrate.
    """
    method = model.method()
    if config.calibrate is False or (config.calibrate is None and method.trains):
        return None
    backbone = model.backbone(config.backbone).to(segmenter.backbone.device) if method.trains else segmenter.backbone
    unlabelled = cache(lambda: _unlabelled(model, cases))
    return lambda support: method.fit(replace(support, unlabelled=unlabelled()), backbone)


def _key(model: SavedModel, support: SupportSet, config: ReviewConfig) -> str:
    """Digest of everything that an estimate depends on, except the case."""
    references = [(facts.case.name, facts.case.patient_key, facts.labels_sha256) for facts in support.facts]
    settings = (config.reverse, config.confidence, config.calibrate)
    return digest_of_json([version("handful"), model.sha256, references, settings])


def _draw(work: _Work, cases: Sequence[Case], wanted: Sequence[CaseQuality]) -> tuple[list[CaseQuality], list[Failure]]:
    """Write the missing pictures of the cases `wanted`, and remove those of other cases.

    Returns the cases that have a picture, and those whose picture failed.
    """
    names = {quality.case for quality in wanted}
    failures: list[Failure] = []
    for case in cases:
        path = _picture(work.out, case.name)
        if case.name not in names:
            path.unlink(missing_ok=True)
        elif not path.exists():
            try:
                volume = case.read_image()
                prediction = read_label_map(work.predictions[case.name], work.labels, grid=volume.geometry)
                write_overlay(path, volume, prediction, slicer=work.slicer, case=case.name)
            except Exception as error:  # the estimate of the case remains
                failures.append(Failure(case.name, f"no picture: {Failure.of(case, error).reason}"))
    failed = {failure.case for failure in failures}
    return [quality for quality in wanted if quality.case not in failed], failures


def _picture(out: Path, case: str) -> Path:
    return out / PICTURES / f"{case}.png"
