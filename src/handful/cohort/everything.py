"""Masks of all objects in many scans, without labels and without a fit. Interrupted runs are resumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from handful.backbones.base import Backbone
from handful.cohort.case_jobs import (
    FAILURES,
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
from handful.cohort.choice import DEFAULT_BACKBONE, named_backbone
from handful.data.cases import Case
from handful.data.files import stem, write_label_map
from handful.data.inputs import Inputs
from handful.data.slicing import Slicer
from handful.data.volume import LabelMap, Volume
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers, write_atomically, write_json
from handful.jobs.digests import digest_of_file, digest_of_json
from handful.jobs.executors import Serial
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.plain_text import spreadsheet_text
from handful.jobs.progress import Report, silent
from handful.jobs.workers import executor_for, require_workers
from handful.methods.everything import EverythingConfig, NumberedMask, label_everything
from handful.reports.overlay import write_overlay

TABLE, RUN, PREVIEWS = "masks.csv", "run.json", "previews"
"""Names in an output folder."""
COLUMNS = ("case", "label", "plane", "slice", "pixels", "visible", "area", "unit", "predicted_iou", "stability")


@dataclass(frozen=True, kw_only=True)
class FindMasksConfig:
    """Options of `find_masks`."""

    backbone: str = DEFAULT_BACKBONE
    """As in `load_backbone`."""
    masks: EverythingConfig = EverythingConfig()
    """Points, and which masks are kept."""
    slicer: Slicer = Slicer()
    """Plane and window of the slices."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Segment all cases again, and replace files that handful did not write."""
    preview: bool = True
    """Also write a picture of each case, with its masks in colours."""
    workers: int = 1
    """Processes that share the cases and the CPU cores."""
    scheduler: str | Path | None = None
    """Address of a Dask scheduler, or path of its JSON file, whose workers take the cases."""

    def __post_init__(self) -> None:
        require_workers(self.workers, self.scheduler)


@dataclass(frozen=True)
class FindMasksResult:
    """Names of the cases, by outcome."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    """Segmented before, and unchanged: input, backbone, settings and output are the same as then."""
    failures: tuple[Failure, ...]
    masks: dict[str, int]
    """Number of masks of each case that is done or was skipped."""

    @property
    def empty(self) -> tuple[str, ...]:
        """Names of the cases without a mask."""
        return tuple(name for name, count in self.masks.items() if count == 0)


def find_masks(
    cases: Sequence[Case],
    out: Path,
    config: FindMasksConfig | None = None,
    report: Report = silent,
    inputs: Collection[str | Path] = (),
) -> FindMasksResult:
    """Find the masks of all objects in the slices of the cases, and write them into `out`.

    Each case becomes a label map with a number per mask, sorted by area, under its own name and in the format that
    `predict_cohort` would write. `out`/masks.csv has a row per mask, and `out`/previews/CASE.png shows the masks in
    colours. Cases that fail are listed in `out`/failures.json, and the others are still segmented. A case is skipped if
    input, backbone, settings and output are unchanged since it was segmented. Files of the input (those of `cases`, and
    `inputs`, such as `Cohort.files`) are never replaced.

    Raises BusyError while another process works in `out`, and errors of loading the backbone.
    """
    config = config or FindMasksConfig()
    with locked(out / NOTES):
        if config.scheduler is None:  # else workers of an interrupted run may still write
            _remove_leftovers(out, (case.name for case in cases))
        outcomes = _run(cases, out, config, Inputs.of(cases, inputs), report)
        notes = Notes(out / NOTES, _Note)
        read = {name: note for name in (*outcomes.done, *outcomes.skipped) if (note := notes.read(name)) is not None}
        result = FindMasksResult(
            outcomes.done,
            outcomes.skipped,
            outcomes.failures,
            {name: len(note.masks) for name, note in sorted(read.items())},
        )
        write_atomically(out / TABLE, _table(read).encode("utf-8", "backslashreplace"))
        _write_records(out, config, result)
        return result


@dataclass(frozen=True, kw_only=True)
class _Note:
    """SHA-256 digests that an output depends on, and its masks."""

    input: str
    made_with: str
    """Digest of backbone and settings."""
    output: str | None
    """None while the output is being written."""
    plane: str = ""
    masks: tuple[NumberedMask, ...] = ()


@dataclass(frozen=True)
class _Task:
    """A case and the places of its output, its picture and its note."""

    case: Case
    output: Path
    preview: Path
    notes: Notes[_Note]

    @classmethod
    def of(cls, case: Case, out: Path) -> _Task:
        """Raises InputError if the name of the case cannot be a file name."""
        name = label_map_name(case)
        return cls(case, out / name, out / PREVIEWS / f"{case.name}.png", Notes(out / NOTES, _Note))


def _run(cases: Sequence[Case], out: Path, config: FindMasksConfig, inputs: Inputs, report: Report) -> Outcomes:
    executor = executor_for(config.workers, config.scheduler, str(out.absolute()), config.device)
    if isinstance(executor, Serial):
        return carried_out(executor, _CaseWork(out, config, inputs), cases, report)
    relevant = inputs.among(outputs_of(cases, lambda case: _Task.of(case, out)))
    work = _CaseWork(out.absolute(), config, relevant)
    with tidying_up(out, cases, _remove_leftovers):
        return carried_out(executor, work, [case.absolute() for case in cases], report)


class _CaseWork:
    """Finds the masks of one case per call. The backbone is loaded when the first case needs it."""

    def __init__(self, out: Path, config: FindMasksConfig, inputs: Inputs) -> None:
        self.out, self.config, self.inputs = out, config, inputs

    def __call__(self, case: Case) -> Outcome:
        """Segment a case, unless it was done before. Raises errors of loading the backbone, which concern all cases."""
        made_with = self.made_with
        try:
            task = _Task.of(case, self.out)
            with claimed_case(task, task.notes.folder, self.config.scheduler):
                return self._found(task, made_with)
        except Exception as error:  # any error concerns this case only: it is listed, and the run continues
            return Outcome("failed", Failure.of(case, error).reason)

    def prepare(self) -> None:
        """Load the backbone before the first case."""
        _ = self.backbone

    @cached_property
    def backbone(self) -> Backbone:
        return named_backbone(self.config.backbone, self.config.device)

    @cached_property
    def made_with(self) -> str:
        """Digest of everything but the scan that an output depends on."""
        masks = asdict(self.config.masks) | {"thresholds": self.config.masks.thresholds(self.backbone)}
        return digest_of_json([self.backbone.digest(), masks, asdict(self.config.slicer)])

    def _found(self, task: _Task, made_with: str) -> Outcome:
        if not self.config.overwrite and self._is_done(task, made_with):
            return Outcome("skipped")
        note = task.notes.read(task.case.name)
        make_way(task, note, task.notes.folder, self.inputs, self.config.overwrite)
        volume, digest = task.case.read_image_and_digest()
        label_map, masks = label_everything(volume, self.backbone, self.config.slicer, self.config.masks)
        if note is not None:
            task.preview.unlink(missing_ok=True)  # of an earlier run
        self._write(task, volume, label_map, _Note(input=digest, made_with=made_with, output=None), masks)
        return Outcome("done")

    def _is_done(self, task: _Task, made_with: str) -> bool:
        note = task.notes.find(task.case.name, made_with=made_with)
        files = [task.output, *([task.preview] if self.config.preview else [])]
        if note is None or not all(file.exists() for file in files):
            return False
        return note.output == digest_of_file(task.output) and note.input == task.case.image_digest()

    def _write(
        self, task: _Task, volume: Volume, label_map: LabelMap, note: _Note, masks: tuple[NumberedMask, ...]
    ) -> None:
        task.notes.write(task.case.name, note)  # from now on the output counts as written by handful
        write_label_map(task.output, label_map)
        slicer = self.config.slicer
        if self.config.preview:
            write_overlay(task.preview, volume, label_map, slicer=slicer, case=task.case.name, legend=False)
        plane = slicer.grid(volume.geometry).plane
        done = replace(note, output=digest_of_file(task.output), plane=plane, masks=masks)
        task.notes.write(task.case.name, done)


def _table(notes: dict[str, _Note]) -> str:
    """One line per mask."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for case, note in sorted(notes.items()):
        for mask in note.masks:
            entries = {"case": spreadsheet_text(case), "plane": note.plane, **asdict(mask)}
            table.writerow([entries[name] for name in COLUMNS])
    return text.getvalue()


def _write_records(out: Path, config: FindMasksConfig, result: FindMasksResult) -> None:
    """Write run.json (facts about the run, without paths or names) and failures.json (failed cases with reasons)."""
    write_failures(out, result.failures)
    if result.done or result.failures or not (out / RUN).exists():
        counts = {"done": len(result.done), "skipped": len(result.skipped), "failed": len(result.failures)}
        settings = asdict(config.masks)
        write_json(out / RUN, {"handful": version("handful"), "settings": settings, "cases": counts})


def _remove_leftovers(out: Path, names: Iterable[str]) -> None:
    """Remove temporary files of killed runs on these cases."""
    stems = {stem(name) for name in (TABLE, RUN, FAILURES)} | set(names)
    for folder in (out, out / NOTES, out / PREVIEWS):
        remove_leftovers(folder, lambda name: stem(name) in stems)
