"""Prediction of many cases with a fitted segmenter. Interrupted runs are resumed; files are never half written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from handful.checkpoint.model import SavedModel, open_model
from handful.cohort.case_jobs import (
    WRITTEN_AS,
    Outcome,
    Outcomes,
    carried_out,
    claimed_case,
    label_map_name,
    make_way,
    outputs_of,
    tidying_up,
    write_failures,
)
from handful.cohort.probabilities import probability_files, remove_probabilities, write_probabilities
from handful.cohort.volumes import LabelSizes, missing_labels, write_volumes
from handful.data.cases import Case
from handful.data.dicom.segmentation import Encoding, Maker, SegmentationStyle, require_own_names, write_segmentation
from handful.data.dicom.series import ONLY_SERIES, SeriesChoice
from handful.data.dicom.terms import Term, require_labels
from handful.data.files import stem, write_label_map
from handful.data.inputs import Inputs, is_in_cohort
from handful.data.sequences import SequenceFiles
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import InputError, SettingsError, UnsupportedInput
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers, write_json
from handful.jobs.devices import choose_device
from handful.jobs.digests import digest_of, digest_of_file, digest_of_json
from handful.jobs.executors import Serial
from handful.jobs.files import checked_path
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.progress import Report, silent
from handful.jobs.workers import executor_for, require_workers
from handful.methods.base import Segmenter
from handful.methods.cost import estimate_prediction
from handful.reports.explanation import write_preview

SEGMENTATION = ".dcm"
"""Suffix of DICOM segmentations."""

PROBABILITIES, VOLUMES, WARNINGS, RUN = "probabilities", "volumes.csv", "warnings.json", "run.json"
"""Names in an output folder."""

OutputFormat = Literal["auto", "dicom-seg", "dicom-labelmap"]
"""The format of the scan (NIfTI for DICOM), or a DICOM segmentation as bits per segment or as a label map."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of a prediction; none of them but `expert` changes the labels of the voxels."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Segment all cases again, and replace files that handful did not write."""
    preview: bool = False
    """Also write a picture of each case, with slices and their predicted labels.

    For methods that compare a slice with labelled ones, the picture also shows their confidence and those labelled
    slices, which come from patients of the support set. A case that was segmented without a picture is segmented again.
    """
    probabilities: bool = False
    """Also write the probability of each label, as NIfTI files in the folder probabilities/."""
    cache: str | Path | None = None
    """Folder of stored embeddings; missing ones are added."""
    format: OutputFormat = "auto"
    """The DICOM formats need DICOM scans; other cases fail."""
    terms: Mapping[str, Term] = field(default_factory=dict)
    """Coded terms of labels in DICOM segmentations, by label name; others get a term of the standard."""
    backbone: str | None = None
    """Name of the model's backbone, if it is not where the model's record says; it is downloaded if necessary."""
    expert: str | None = None
    """Name of the expert that segments all scans, for a model with experts. None: the router picks one for each."""
    workers: int = 1
    """Processes that share the cases and the CPU cores. With 1, everything runs in the caller's process; with more, a
    script needs the guard `if __name__ == "__main__"`."""
    scheduler: str | Path | None = None
    """Address of a Dask scheduler, such as tcp://HOST:8786, or path of its JSON file: its workers segment the cases.
    All of them must reach model, scans and output under the same absolute paths."""

    def __post_init__(self) -> None:
        require_workers(self.workers, self.scheduler)


@dataclass(frozen=True)
class ChosenExpert:
    """The expert that segmented a scan."""

    name: str
    by: Literal["router", "name"]
    """Whether the router picked it, or the user named it."""
    margin: float | None = None
    """The score of the router for it, minus that for the best of the others; None if it was named or is the only one.
    It is below 0 if the other one cannot segment the scan, which is then among the warnings."""


@dataclass(frozen=True)
class CohortResult:
    """Names of the cases, by outcome."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    """Segmented before, and unchanged: input, model and output are the same as then."""
    failures: tuple[Failure, ...]
    warnings: tuple[Failure, ...] = ()
    """Properties in which segmented cases are unlike those that the model was fitted on."""
    empty: tuple[str, ...] = ()
    """Names of the cases in which the model found no label."""
    made_for_ct: bool = False
    """Whether the model was fitted on CT."""
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the cases that lack a label which most others have, by name of the label."""
    experts: Mapping[str, ChosenExpert] = field(default_factory=dict)
    """The expert of each case, by the name of the case; empty for a model without experts."""

    @property
    def nothing_found(self) -> bool:
        """Whether the model labelled nothing in any case, which is seldom right for CT or for unlike scans."""
        everywhere = bool(self.empty) and len(self.empty) == len(self.done) + len(self.skipped)
        return everywhere and (self.made_for_ct or bool(self.warnings))


@dataclass(frozen=True)
class FilePrediction:
    """Result of `predict_file`."""

    labels: Labels
    sizes: LabelSizes
    warnings: tuple[str, ...]
    """Properties in which the scan is unlike those that the model was fitted on."""
    expert: ChosenExpert | None = None
    """None for a model without experts."""


Deliver = Callable[[Case, Path], None]
"""Takes the output of a case to another place."""


def predict_cohort(
    model: str | Path,
    cases: Sequence[Case],
    out: str | Path,
    config: PredictConfig | None = None,
    report: Report = silent,
    deliver: Deliver | None = None,
    inputs: Collection[str | Path] = (),
) -> CohortResult:
    """Segment the cases with the segmenter in the folder `model`, and write label maps into `out`.

    A label map has the name of its case and the suffix of its image, except that JPEG becomes PNG, .mhd becomes .mha,
    .nhdr becomes .nrrd and DICOM becomes .nii.gz, or a DICOM segmentation (.dcm) if `config.format` is one. A case that
    fails is listed in `out`/failures.json, and the others are still segmented. The sizes of all labels are written to
    `out`/volumes.csv.

    Each scan is compared with those that the model was fitted on before it is segmented: differences are reported and
    listed in `out`/warnings.json; a colour scan fails if the model was fitted on grey ones, and the other way round.

    A case is skipped if its input, its output and the model are unchanged since it was segmented (compared by SHA-256),
    and for DICOM segmentations format and terms.
    An output that was changed by hand is moved to .handful/changed before its case is segmented again. A file that
    handful did not write is not replaced: its case fails. With `overwrite`, it is moved there, too. Scans and label
    maps of the input are never replaced nor moved: those of `cases`, and `inputs`, such as `Cohort.files`.

    `deliver` is called with each output, also with those of skipped cases. If it fails, its case has failed.

    With `config.workers` or `config.scheduler`, several processes segment the cases, with the same result. A case whose
    process is killed is tried once more (by Dask three times more), then it is a failure.

    Raises BusyError while another process works in `out`, CheckpointError if the model cannot be loaded, ClusterError
    if the scheduler cannot be reached or is lost: then the same call resumes.
    """
    config, out = config or PredictConfig(), Path(out)
    started = datetime.now(UTC)
    saved = open_model(Path(model))
    _require_expert(saved, config)
    _require_storable(saved, config)
    with locked(out / NOTES):
        if config.scheduler is None:  # else workers of an interrupted run may still write
            _remove_leftovers(out, (case.name for case in cases))
        job = _Job(saved, out, config, report)
        result = job.run(cases, Inputs.of(cases, inputs), deliver)
        if result.done or result.failures or not (out / RUN).exists():
            _write_notes(out, saved, result, config, started)
        job.write_tables(result)
    return result


def predict_file(
    model: str | Path,
    image: str | Path | SequenceFiles | Volume,
    out: str | Path,
    config: PredictConfig | None = None,
    choice: SeriesChoice = ONLY_SERIES,
) -> FilePrediction:
    """Segment an image, usually a file, or a DICOM folder (its series by `choice`), and write the label map `out`.

    A name that ends in .dcm makes a DICOM segmentation, for which `image` must be DICOM.

    Raises InputError if `out` exists and `overwrite` is not set, and always if it is the image, or an existing scan or
    label map in the folders of a cohort.
    """
    out = checked_path(out)
    config = _for_file(config or PredictConfig(), out)
    Inputs.of([Case(stem(out), image)], ()).require_not_among(out)
    if out.exists() and is_in_cohort(out):
        raise InputError(f"{out} is a scan or a label map of a cohort, which is never replaced; name another file")
    if out.exists() and not config.overwrite:
        raise InputError(f"{out} exists; name another file, or add --overwrite")
    saved = open_model(Path(model))
    _require_expert(saved, config)
    _require_storable(saved, config)
    case = Case(stem(out), image, choice=choice)
    _require_dicom(case, config)
    ready = _Segmenters(saved, config).ready(case, case.read_image())
    volume, segmenter = ready.volume, ready.segmenter()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out.parent, [stem(out)])
    with saved.predicting():
        label_map, reasons = segmenter.predict_explained(volume)
    preview = out.with_name(f"{stem(out)}.preview.png")
    if config.overwrite:  # those of an earlier prediction
        preview.unlink(missing_ok=True)
        remove_probabilities(out.parent / PROBABILITIES, stem(out))
    write_prediction(out, label_map, case, config, saved)
    if config.preview:
        write_preview(preview, volume, label_map, segmenter, reasons, stem(out))
    if config.probabilities:
        files = probability_files(out.parent / PROBABILITIES, stem(out), segmenter.labels)
        write_probabilities(files, volume, segmenter)
    return FilePrediction(label_map.labels, LabelSizes.of(label_map), ready.warnings, ready.expert)


def _require_expert(model: SavedModel, config: PredictConfig) -> None:
    """Raise SettingsError for a named expert that the model does not have."""
    if config.expert is not None:
        model.expert(config.expert)


def _require_storable(model: SavedModel, config: PredictConfig) -> None:
    """Raise SettingsError for terms of unknown labels, LabelError for names that are equal in DICOM."""
    names = model.record.labels.values()
    require_labels(config.terms, names)
    if config.format != "auto":
        require_own_names(names)


def write_prediction(out: Path, label_map: LabelMap, case: Case, config: PredictConfig, model: SavedModel) -> None:
    """Write the predicted label map of a case in the format that `config` states."""
    if config.format == "auto":
        write_label_map(out, label_map)
        return
    assert isinstance(case.image, Path)
    maker = Maker(model.record.method, model.sha256)
    encoding: Encoding = "BINARY" if config.format == "dicom-seg" else "LABELMAP"
    style = SegmentationStyle(encoding, config.terms, maker)
    write_segmentation(out, label_map, case.image, case.choice, style)


def support_among(out: Path) -> set[str]:
    """Names of the cases in an output folder of handful that the model was fitted on."""
    return {name for name, note in Notes(out / NOTES, _Note).items() if note.fitted_on}


@dataclass(frozen=True, kw_only=True)
class _Note:
    """SHA-256 digests that an output depends on; None for predictions of another program."""

    input: str | None = None
    model: str | None = None
    output: str | None
    """None while the output is being written."""
    fitted_on: bool = False
    """Whether the model was fitted on this scan."""
    sizes: LabelSizes | None = None
    """Sizes of the labels; None while the output is being written."""
    warnings: tuple[str, ...] = ()
    """Properties in which the scan is unlike those that the model was fitted on."""
    expert: ChosenExpert | None = None
    """None for a model without experts."""
    style: str | None = None
    """Digest of format and terms of a DICOM segmentation; None for other formats, which have no such options."""


@dataclass(frozen=True)
class _Ready:
    """A scan that was read and compared with those that the model, or its expert, was fitted on."""

    volume: Volume
    warnings: tuple[str, ...]
    segmenter: Callable[[], Segmenter]
    """Loads the segmenter, if it is not loaded yet."""
    expert: ChosenExpert | None
    digest: str = ""
    """SHA-256 of the file of the scan."""


class _Segmenters:
    """The segmenter of a model; for a model with experts, the one for each scan. Loaded when it is first needed."""

    def __init__(self, model: SavedModel, config: PredictConfig) -> None:
        self.model, self.config = model, config

    @cached_property
    def loaded(self) -> Segmenter:
        """The segmenter of the whole model, or of the named expert."""
        config = self.config
        model = self.model if config.expert is None else self.model.expert(config.expert)
        return model.open(config.device, config.cache, config.backbone, only_to_predict=True)

    def load_router(self) -> None:
        """Load the segmenter now if the router must pick an expert."""
        if self.model.record.experts and self.config.expert is None:
            _ = self.loaded

    def ready(self, case: Case, volume: Volume, digest: str = "") -> _Ready:
        """The scan, ready to be segmented. Raises UnsupportedInput if no segmenter can be used for it."""
        model, segmenter, chosen = self.model, lambda: self.loaded, None
        notes: tuple[str, ...] = ()
        if self.config.expert is not None:
            chosen = ChosenExpert(self.config.expert, "name")
        elif self.model.record.experts:
            route = self.loaded.route(volume)
            chosen = ChosenExpert(route.expert, "router", None if route.margin is None else round(route.margin, 4))
            segmenter, notes = lambda: self.loaded.experts[route.expert], route.passed_over
        if chosen is not None:
            model = self.model.expert(chosen.name)
        warnings = (*notes, *model.compared_with(volume, case.modality_evidence(volume)))
        return _Ready(model.arranged(volume), warnings, segmenter, chosen, digest)


@dataclass(frozen=True)
class _Task:
    """A case and the places of its output, its note and its picture."""

    case: Case
    output: Path
    notes: Notes[_Note]
    preview: Path
    probabilities: Mapping[int, Path]
    """Of each label, by its value; empty if they are not to be written."""

    def probabilities_of(self, labels: Collection[int]) -> list[Path]:
        """The files of these labels."""
        return [file for value, file in self.probabilities.items() if value in labels]


class _Job:
    """One run over a cohort."""

    def __init__(self, model: SavedModel, out: Path, config: PredictConfig, report: Report) -> None:
        self.model, self.out, self.config, self.report = model, out, config, report

    def run(self, cases: Sequence[Case], inputs: Inputs, deliver: Deliver | None) -> CohortResult:
        config, name = self.config, str(self.out.absolute())
        executor = executor_for(config.workers, config.scheduler, name, config.device)
        if isinstance(executor, Serial):
            work = _CaseWork(self.model, self.out, config, inputs, deliver, self.report, len(cases))
            return self._result(carried_out(executor, work, cases, self.report))
        if deliver is not None:
            raise SettingsError("deliver needs a single process; leave workers and scheduler out")
        labels = Labels.of(self.model.record.labels)
        config = replace(config, cache=config.cache and Path(config.cache).absolute())
        relevant = inputs.among(outputs_of(cases, lambda case: _task(case, self.out, config, labels)))
        work = _CaseWork(self.model.absolute(), self.out.absolute(), config, relevant)
        with tidying_up(self.out, cases, _remove_leftovers):
            return self._result(carried_out(executor, work, [case.absolute() for case in cases], self.report))

    def _result(self, outcomes: Outcomes) -> CohortResult:
        notes = self._notes_of([*outcomes.done, *outcomes.skipped])
        sizes = {name: note.sizes for name, note in notes.items() if note.sizes is not None}
        return CohortResult(
            outcomes.done,
            outcomes.skipped,
            outcomes.failures,
            tuple(Failure(name, text) for name, note in notes.items() for text in note.warnings),
            tuple(name for name, one in sizes.items() if one.is_empty),
            self.model.for_ct,
            missing_labels(sizes, Labels.of(self.model.record.labels)),
            {name: note.expert for name, note in notes.items() if note.expert is not None},
        )

    def _notes_of(self, names: Iterable[str]) -> dict[str, _Note]:
        notes = Notes(self.out / NOTES, _Note)
        read = {name: notes.read(name) for name in sorted(names)}
        return {name: note for name, note in read.items() if note is not None}

    def write_tables(self, result: CohortResult) -> None:
        """Write volumes.csv, and warnings.json if there are any."""
        notes = self._notes_of([*result.done, *result.skipped])
        sizes = [(name, note.sizes) for name, note in notes.items() if note.sizes is not None]
        write_volumes(self.out / VOLUMES, sizes, Labels.of(self.model.record.labels))
        warnings = self.out / WARNINGS
        if result.warnings:
            write_json(warnings, [{"case": one.case, "warning": one.reason} for one in result.warnings])
        else:
            warnings.unlink(missing_ok=True)


class _CaseWork:
    """Segments cases, one per call. The segmenter is loaded when the first case needs it."""

    def __init__(
        self,
        model: SavedModel,
        out: Path,
        config: PredictConfig,
        inputs: Inputs,
        deliver: Deliver | None = None,
        report: Report = silent,
        count: int = 0,
    ) -> None:
        self.model, self.out, self.config = model, out, config
        self.inputs, self.deliver, self.report = inputs, deliver, report
        self.count = self.left = count
        self.segmenters, self._is_estimated = _Segmenters(model, config), False

    def __call__(self, case: Case) -> Outcome:
        """Segment a case, unless it was done before. Raises errors of loading the model, which concern all cases."""
        try:
            task = _task(case, self.out, self.config, Labels.of(self.model.record.labels))
        except Exception as error:  # a name that cannot be a file name, or another kind of scan
            return Outcome("failed", Failure.of(case, error).reason)
        finally:
            self.left -= 1
        with claimed_case(task, task.notes.folder, self.config.scheduler):
            return self._segmented(task)

    def _segmented(self, task: _Task) -> Outcome:
        try:
            if not self.config.overwrite and self._is_done(task):
                self._deliver(task)
                return Outcome("skipped")
            note = task.notes.read(task.case.name)
            make_way(task, note, task.notes.folder, self.inputs, self.config.overwrite)
            volume, digest = task.case.read_image_and_digest()
        except Exception as error:  # any error concerns this case only: it is listed, and the run continues
            return Outcome("failed", Failure.of(task.case, error).reason)
        self.segmenters.load_router()
        try:
            ready = self.segmenters.ready(task.case, volume, digest)
        except Exception as error:  # as above
            return Outcome("failed", Failure.of(task.case, error).reason)
        self._load(ready)
        try:
            self._carry_out(task, ready)
            self._deliver(task)
            return Outcome("done", notes=ready.warnings)
        except Exception as error:  # as above
            return Outcome("failed", Failure.of(task.case, error).reason, notes=ready.warnings)

    def _deliver(self, task: _Task) -> None:
        if self.deliver is not None:
            self.deliver(task.case, task.output)

    def prepare(self) -> None:
        """Load the segmenter before the first case."""
        _ = self.segmenters.loaded

    def _load(self, first: _Ready) -> None:
        """Load the segmenter, and report the expected time, assuming that all scans left are as large as the first.

        A silent job is not estimated.
        """
        if self._is_estimated:
            return
        self._is_estimated = True
        segmenter = first.segmenter()
        if self.count and self.report is not silent:
            self.report(0, self.count, str(estimate_prediction(segmenter, first.volume, self.left + 1) or ""))

    def _is_done(self, task: _Task) -> bool:
        note = task.notes.find(task.case.name, model=self.model.sha256, style=_style_of(self.config))
        if note is None or note.sizes is None or not self._is_by_the_same(note.expert):
            return False
        preview = [task.preview] if self.config.preview else []
        if not all(file.exists() for file in [task.output, *preview, *task.probabilities_of(note.sizes.voxels)]):
            return False
        return note.output == digest_of_file(task.output) and note.input == task.case.image_digest()

    def _is_by_the_same(self, expert: ChosenExpert | None) -> bool:
        """Whether an expert is the one that would segment a scan now, as far as that is known without the scan."""
        if self.config.expert is None or expert is None:
            return expert is None or expert.by == "router"
        return expert.name == self.config.expert

    def _carry_out(self, task: _Task, ready: _Ready) -> None:
        volume, segmenter = ready.volume, ready.segmenter()
        with self.model.predicting():
            label_map, reasons = segmenter.predict_explained(volume)
        if task.notes.path(task.case.name).exists():  # those of an earlier prediction
            task.preview.unlink(missing_ok=True)
            remove_probabilities(self.out / PROBABILITIES, task.case.name)
        style = _style_of(self.config)
        note = _Note(input=ready.digest, model=self.model.sha256, output=None, style=style)
        task.notes.write(task.case.name, note)  # from now on the output counts as written by handful
        write_prediction(task.output, label_map, task.case, self.config, self.model)
        if self.config.preview:
            write_preview(task.preview, volume, label_map, segmenter, reasons, task.case.name)
        if task.probabilities:
            write_probabilities(task.probabilities_of(segmenter.labels.values), volume, segmenter)
        done = replace(
            note,
            output=digest_of_file(task.output),
            fitted_on=digest_of(volume.array) in self.model.fitted_on.values(),
            sizes=LabelSizes.of(label_map),
            warnings=ready.warnings,
            expert=ready.expert,
        )
        task.notes.write(task.case.name, done)


def _for_file(config: PredictConfig, out: Path) -> PredictConfig:
    """The options with the format that the name of the output file states. Raises UnsupportedInput if they differ."""
    suffix = out.name[len(stem(out)) :].lower()
    if suffix == SEGMENTATION:
        return replace(config, format="dicom-seg") if config.format == "auto" else config
    if config.format != "auto":
        raise UnsupportedInput(
            f"{out}: {config.format} has the suffix {SEGMENTATION}; name it {stem(out)}{SEGMENTATION}"
        )
    if instead := WRITTEN_AS.get(suffix):
        raise UnsupportedInput(f"{out}: {suffix} cannot store a label map; name it {stem(out)}{instead}")
    return config


def _style_of(config: PredictConfig) -> str | None:
    """Identifies how a label map is written as DICOM; None for other formats."""
    if config.format == "auto":
        return None
    return digest_of_json([config.format, {name: asdict(term) for name, term in config.terms.items()}])


def _require_dicom(case: Case, config: PredictConfig) -> None:
    if config.format != "auto" and not case.is_dicom:
        raise UnsupportedInput(
            f"case {case.name!r}: a DICOM segmentation must refer to DICOM images, but this scan is none; "
            "write another format, such as .nii.gz"
        )


def _task(case: Case, out: Path, config: PredictConfig, labels: Labels) -> _Task:
    name = label_map_name(case)
    _require_dicom(case, config)
    output = out / (name if config.format == "auto" else f"{case.name}{SEGMENTATION}")
    files = probability_files(out / PROBABILITIES, case.name, labels) if config.probabilities else []
    probabilities = dict(zip(labels.values, files, strict=False))
    return _Task(case, output, Notes(out / NOTES, _Note), out / "previews" / f"{case.name}.png", probabilities)


def _write_notes(out: Path, model: SavedModel, result: CohortResult, config: PredictConfig, started: datetime) -> None:
    """Write run.json (facts about the run, without paths) and failures.json (failed cases with reasons).

    Only for a model with experts, run.json names the cases, each with its expert.
    """
    write_failures(out, result.failures)
    record = model.record
    write_json(
        out / RUN,
        {
            "handful": version("handful"),
            "model_sha256": model.sha256,
            "backbone_sha256": record.backbone_sha256,
            "method": record.method,
            "seed": record.settings.get("train", record.settings).get("seed"),
            "device": choose_device(config.device).type,
            "started": started.isoformat(timespec="seconds"),
            "seconds": max(0.0, round((datetime.now(UTC) - started).total_seconds(), 1)),
            "cases": {
                "done": len(result.done),
                "skipped": len(result.skipped),
                "failed": len(result.failures),
            },
            **({"experts": {name: vars(one) for name, one in result.experts.items()}} if result.experts else {}),
        },
    )


def _remove_leftovers(out: Path, names: Iterable[str]) -> None:
    """Remove temporary files of killed runs on these cases."""
    stems = {"run", "failures", "volumes", "warnings", *names}
    for folder in (out, out / NOTES, out / "previews"):
        remove_leftovers(folder, lambda name: stem(name) in stems)
    remove_leftovers(out / PROBABILITIES, lambda name: stem(name).rpartition("_label")[0] in stems)
