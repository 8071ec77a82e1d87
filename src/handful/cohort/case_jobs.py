"""What all jobs over the cases of a cohort share: outcomes in the order of the cases, and outputs that make way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from handful.data.cases import Case
from handful.data.dicom.sources import DICOM_SUFFIXES
from handful.data.files import SUFFIXES, stem
from handful.data.inputs import Inputs
from handful.errors import HandfulError, InputError
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import write_json
from handful.jobs.digests import digest_of_file
from handful.jobs.executors import Executor, Lost
from handful.jobs.lock import claimed
from handful.jobs.notes import NOTES
from handful.jobs.progress import Report

FAILURES = "failures.json"
"""Name in an output folder."""
CLAIMS = "claims"
"""Folder of locks in the folder of notes, one per case that a worker of a cluster works on."""


WRITTEN_AS = {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"} | dict.fromkeys(
    DICOM_SUFFIXES, ".nii.gz"
)
"""Suffixes that label maps cannot have (lossy formats, formats of two files, DICOM), and their replacements."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Of a failure."""
    notes: tuple[str, ...] = ()
    """What its user should know of the case."""


@dataclass(frozen=True)
class Outcomes:
    """Names of the cases, by outcome."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failures: tuple[Failure, ...]


def carried_out(executor: Executor, work: Callable[[Case], Outcome], cases: Sequence[Case], report: Report) -> Outcomes:
    """Let the executor work on all cases; a case whose process was killed each time has failed."""
    found: dict[str, Outcome] = {}
    with closing(executor.run(work, cases)) as outcomes:
        for case, outcome in outcomes:
            if isinstance(outcome, Lost):
                outcome = Outcome("failed", outcome.reason)
            for text in outcome.notes:
                report(0, 1, f"{case.name}: {text}")
            found[case.name] = outcome
            report(len(found), len(cases), case.name)
    names = [case.name for case in cases if case.name in found]
    return Outcomes(
        tuple(name for name in names if found[name].kind == "done"),
        tuple(name for name in names if found[name].kind == "skipped"),
        tuple(Failure(name, found[name].reason) for name in names if found[name].kind == "failed"),
    )


def write_failures(out: Path, failures: Sequence[Failure]) -> None:
    """Write `out`/failures.json, the failed cases with their reasons; without failures there is no such file."""
    if failures:
        write_json(out / FAILURES, [{"case": failure.case, "reason": failure.reason} for failure in failures])
    else:
        (out / FAILURES).unlink(missing_ok=True)


@runtime_checkable
class CaseFiles(Protocol):
    """A case and the places of its output and its picture."""

    @property
    def case(self) -> Case: ...
    @property
    def output(self) -> Path: ...
    @property
    def preview(self) -> Path: ...


@runtime_checkable
class Written(Protocol):
    """A note about an output."""

    @property
    def output(self) -> str | None:
        """SHA-256 of the output; None while it is being written, and in notes of none."""


def make_way(files: CaseFiles, note: Written | None, notes: Path, inputs: Inputs, overwrite: bool) -> None:
    """Move an output that a person made or changed into `notes`/changed.

    Raises InputError if it is a scan or a label map of the input; also if handful did not write it, unless it may be
    overwritten.
    """
    now = digest_of_file(files.output) if files.output.is_file() else None
    own = note is not None and note.output in (None, now)
    if not own or files.output == files.case.image:
        inputs.require_not_among(files.output)
    inputs.require_not_among(files.preview)
    if note is None and now is not None and not overwrite:
        raise InputError(
            f"{files.output.name} exists and handful did not write it; name another folder, or add --overwrite"
        )
    if now is not None and not own:
        aside = notes / "changed" / f"{now[:12]}.{files.output.name}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(files.output, aside)


def outputs_of(cases: Iterable[Case], files: Callable[[Case], CaseFiles]) -> Iterator[Path]:
    """Outputs and pictures that the cases will have; cases that can have none will fail."""
    for case in cases:
        with suppress(HandfulError):
            its = files(case)
            yield from (its.output, its.preview)


def claimed_case(files: CaseFiles, notes: Path, scheduler: str | Path | None) -> AbstractContextManager[None]:
    """Wait until no worker of an earlier run on a cluster works on the case; nothing without a cluster."""
    return nullcontext() if scheduler is None else claimed(notes / CLAIMS / files.case.name)


@contextmanager
def tidying_up(
    out: Path, cases: Sequence[Case], remove_leftovers: Callable[[Path, Iterable[str]], None]
) -> Iterator[None]:
    """Within, other processes work on the cases; afterwards, what killed ones left in `out` is removed.

    If the run ends by an exception, workers of a cluster may still work on cases. So their claims and temporary files
    remain, and the next run waits for these workers. Processes of this machine have ended in any case.
    """
    claims = out / NOTES / CLAIMS
    try:
        yield
    except BaseException:
        if not claims.exists():
            remove_leftovers(out, (case.name for case in cases))
        raise
    remove_leftovers(out, (case.name for case in cases))
    _remove_claims(claims, {case.name for case in cases})


def _remove_claims(claims: Path, names: set[str]) -> None:
    """Remove the claims on these cases; workers of an earlier run may hold those on others."""
    with suppress(OSError):  # there are none, or some remain
        for claim in list(claims.iterdir()):
            if claim.name in names:
                claim.unlink()
        claims.rmdir()


def label_map_name(case: Case) -> str:
    """The file name of a label map of the case. Raises InputError if the name of the case cannot be a file name."""
    if case.name in (".", "..") or any(mark in case.name for mark in "/\\\0"):
        raise InputError(f"case {case.name!r}: this name cannot be a file name; rename the case")
    suffix = case.image.name[len(stem(case.image)) :] if isinstance(case.image, Path) else ".nii.gz"
    suffix = ".nrrd" if suffix.lower() == ".seg.nrrd" else suffix
    suffix = WRITTEN_AS.get(suffix.lower(), suffix if suffix.lower() in SUFFIXES and not case.is_dicom else ".nii.gz")
    return f"{case.name}{suffix}"
