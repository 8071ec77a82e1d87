"""A fitted segmenter over many cases: each on its own, resumed by content, nothing half written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from handful.checkpoint import RECORD, open_segmenter
from handful.data.cases import Case
from handful.data.files import read_volume, stem, write_label_map
from handful.data.volume import Volume
from handful.errors import CheckpointError, InputError, UnsupportedInput
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers, write_json
from handful.jobs.devices import choose_device
from handful.jobs.digests import digest_of, digest_of_file
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES, Notes
from handful.jobs.progress import Report, silent
from handful.methods.base import Segmenter
from handful.methods.cost import estimate
from handful.reports.explanation import write_preview

WRITTEN_AS = {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}
"""Suffixes that label maps cannot have (lossy, or two files), and what they get instead."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How to segment; nothing here changes what comes out."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Do everything anew, and replace files that handful did not write."""
    preview: bool = False
    """Draw a picture of each case, too: slices with what was found in them; where the method answers from labelled
    slices, also how sure it was and which it was shown, so that the picture holds slices of the support's patients.
    A case that was done without one is done again."""
    cache: Path | None = None
    """Folder of embeddings to use and to fill."""


@dataclass(frozen=True)
class CohortResult:
    """The names of the cases, by what became of them."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    """Done before: input, model and output are the same as then."""
    failures: tuple[Failure, ...]


def predict_cohort(
    model: Path, cases: Sequence[Case], out: Path, config: PredictConfig | None = None, report: Report = silent
) -> CohortResult:
    """Segments the cases with the segmenter in folder `model` and writes label maps into `out`, under the cases' names.

    Outputs keep the suffix of their image; JPEG becomes PNG, .mhd .mha, .nhdr .nrrd. A case that fails is listed in
    `out`/failures.json and the others go on. A case is passed over only when the digests of its input, of its output
    and of the model are those noted when it was done. An output that somebody changed since is put aside into
    .handful/changed before it is done anew; a file that handful did not write is not touched: its case fails.
    Raises BusyError while another process works in `out`, CheckpointError where the model cannot be loaded.
    """
    config = config or PredictConfig()
    started = datetime.now(UTC)
    digest = _model_digest(model)
    with locked(out / NOTES):
        _remove_leftovers(out, (case.name for case in cases))
        tasks, skipped, failures = _plan(cases, out, digest, config)
        done, failed = _segment(model, tasks, config, report) if tasks else ([], [])
        result = CohortResult(tuple(done), tuple(skipped), (*failures, *failed))
        if tasks or failures:
            _write_notes(out, model, digest, result, config, started)
    return result


def predict_file(model: Path, image: Path, out: Path, config: PredictConfig | None = None) -> None:
    """Segments one file into one file; InputError where `out` exists, unless told to overwrite."""
    config = config or PredictConfig()
    suffix = out.name[len(stem(out)) :]
    if instead := WRITTEN_AS.get(suffix.lower()):
        raise UnsupportedInput(f"{out}: a label map cannot be kept in {suffix}; name it {stem(out)}{instead}")
    if out.exists() and not config.overwrite:
        raise InputError(f"{out} exists; name another file, or say --overwrite")
    _model_digest(model)
    volume = read_volume(image)
    segmenter = open_segmenter(model, config.device, config.cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out.parent, [stem(out)])
    label_map, reasons = segmenter.predict_explained(volume)
    preview = out.with_name(f"{stem(out)}.preview.png")
    if config.overwrite:
        preview.unlink(missing_ok=True)  # of an earlier answer
    write_label_map(out, label_map)
    if config.preview:
        write_preview(preview, volume, label_map, segmenter, reasons, stem(out))


def support_among(out: Path) -> set[str]:
    """Names of the cases in an output folder that the model had been fitted on, as far as handful wrote it."""
    return {name for name, note in Notes(out / NOTES, _Note).items() if note.fitted_on}


@dataclass(frozen=True, kw_only=True)
class _Note:
    """What an output was made of; nothing of a case that another program predicted."""

    input: str | None = None
    model: str | None = None
    output: str | None
    """Digest of the output; None while it is being written."""
    fitted_on: bool = False
    """Whether the model was fitted on this scan."""


@dataclass(frozen=True)
class _Task:
    """A case to do: where its output and its note go, and what the note will say."""

    case: Case
    output: Path
    notes: Notes[_Note]
    preview: Path
    note: _Note


def _plan(
    cases: Iterable[Case], out: Path, model: str, config: PredictConfig
) -> tuple[list[_Task], list[str], list[Failure]]:
    tasks: list[_Task] = []
    skipped: list[str] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            task = _task(case, out, model)
            if not config.overwrite and _is_done(task, config):
                skipped.append(case.name)
            else:
                _make_way(task, config)
                tasks.append(task)
        except Exception as error:  # as above: one bad case never ends a cohort
            failures.append(Failure(case.name, _reason(error, case)))
    return tasks, skipped, failures


def _task(case: Case, out: Path, model: str) -> _Task:
    if case.name in (".", "..") or any(mark in case.name for mark in "/\\\0"):
        raise InputError(f"case {case.name!r} cannot name a file; rename it")
    suffix = case.image.name[len(stem(case.image)) :] if isinstance(case.image, Path) else ".nii.gz"
    output = out / f"{case.name}{WRITTEN_AS.get(suffix.lower(), suffix)}"
    note = _Note(input=_input_digest(case), model=model, output=None)
    return _Task(case, output, Notes(out / NOTES, _Note), out / "previews" / f"{case.name}.png", note)


def _is_done(task: _Task, config: PredictConfig) -> bool:
    if not task.output.exists() or (config.preview and not task.preview.exists()):
        return False
    made_of = {"input": task.note.input, "model": task.note.model}
    return task.notes.find(task.case.name, **made_of, output=digest_of_file(task.output)) is not None


def _make_way(task: _Task, config: PredictConfig) -> None:
    """Refuses to replace a foreign file; keeps an output that was changed by hand after it was written."""
    if not task.output.exists() or config.overwrite:
        return
    note = task.notes.read(task.case.name)
    if note is None:
        raise InputError(f"{task.output.name} exists and handful did not write it; name another folder or --overwrite")
    if note.output is not None and note.output != (now := digest_of_file(task.output)):
        aside = task.notes.folder / "changed" / f"{now[:12]}.{task.output.name}"
        aside.parent.mkdir(exist_ok=True)
        os.replace(task.output, aside)


def _carry_out(task: _Task, segmenter: Segmenter, support: Set[str], config: PredictConfig) -> None:
    volume = task.case.read_image()
    label_map, reasons = segmenter.predict_explained(volume)
    if task.notes.path(task.case.name).exists():
        task.preview.unlink(missing_ok=True)  # of an earlier answer
    task.notes.write(task.case.name, task.note)  # from here on the output is known to be handful's own
    write_label_map(task.output, label_map)
    if config.preview:
        write_preview(task.preview, volume, label_map, segmenter, reasons, task.case.name)
    fitted_on = digest_of(volume.array) in support
    note = replace(task.note, output=digest_of_file(task.output), fitted_on=fitted_on)
    task.notes.write(task.case.name, note)


def _segment(
    model: Path, tasks: Sequence[_Task], config: PredictConfig, report: Report
) -> tuple[list[str], list[Failure]]:
    segmenter = open_segmenter(model, config.device, config.cache)
    support = _support(model)
    cost = estimate(segmenter.backbone, (task.case for task in tasks), segmenter.slicer)
    report(0, len(tasks), str(cost or ""))
    done: list[str] = []
    failures: list[Failure] = []
    for number, task in enumerate(tasks, start=1):
        try:
            _carry_out(task, segmenter, support, config)
            done.append(task.case.name)
        except Exception as error:  # whatever it is, it is this case's: listed, and the next one goes on
            failures.append(Failure(task.case.name, _reason(error, task.case)))
        report(number, len(tasks), task.case.name)
    return done, failures


def _input_digest(case: Case) -> str:
    """Of the file's bytes; of voxels and grid where they are in memory or in a second file beside the header."""
    if isinstance(case.image, Path) and case.image.suffix.lower() not in (".mhd", ".nhdr"):
        return digest_of_file(case.image)
    volume: Volume = case.read_image()
    grid = f"{volume.array.dtype}{volume.array.shape}{volume.geometry.affine.tolist()}"
    return digest_of(volume.array, grid)


def _model_digest(model: Path) -> str:
    """Of the record, which names the digests of all weights."""
    if not (model / RECORD).is_file():
        raise CheckpointError(f"{model} holds no {RECORD}: not a fitted model; make one with handful fit")
    return digest_of_file(model / RECORD)


def _support(model: Path) -> set[str]:
    """Digests of the images that the model was fitted on."""
    provenance = json.loads((model / RECORD).read_text("utf-8"))["provenance"]
    return {case["image_sha256"] for case in provenance.get("support", [])}


def _write_notes(
    out: Path, model: Path, digest: str, result: CohortResult, config: PredictConfig, started: datetime
) -> None:
    """run.json: what happened, without paths or names; failures.json: which cases failed, and why."""
    failures = out / "failures.json"
    if result.failures:
        write_json(failures, [{"case": one.case, "reason": one.reason} for one in result.failures])
    else:
        failures.unlink(missing_ok=True)
    record = json.loads((model / RECORD).read_text("utf-8"))
    write_json(
        out / "run.json",
        {
            "handful": version("handful"),
            "model_sha256": digest,
            "backbone_sha256": record["backbone_sha256"],
            "method": record["method"],
            "seed": record["settings"].get("train", record["settings"]).get("seed"),
            "device": choose_device(config.device).type,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
            "cases": {
                "done": len(result.done),
                "skipped": len(result.skipped),
                "failed": len(result.failures),
            },
        },
    )


def _remove_leftovers(out: Path, names: Iterable[str]) -> None:
    """Temporary files that a killed run of these cases left behind."""
    own = {"run", "failures", *names}
    for folder in (out, out / NOTES, out / "previews"):
        remove_leftovers(folder, lambda name: stem(name) in own)


def _reason(error: Exception, case: Case) -> str:
    """The message without the folder of the input, which may name a patient; the kind where it is no error of ours."""
    text = str(error) if type(error).__module__ == "handful.errors" else f"{type(error).__name__}: {error}"
    return text.replace(f"{case.image.parent}{os.sep}", "") if isinstance(case.image, Path) else text
