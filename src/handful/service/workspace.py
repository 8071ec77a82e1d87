"""The cohort folder that a service works on: its cases, their states, and where everything is kept."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from handful.checkpoint.record import RECORD
from handful.data.cases import Case, Cohort
from handful.data.files import read_cohort, read_label_map, stated_values, stem
from handful.data.formats import is_scan
from handful.data.support import AcceptedSlices, SupportSet
from handful.data.volume import LabelMap, Labels, Volume
from handful.errors import InputError, reason_of
from handful.evaluation.evaluate import Failure
from handful.jobs.atomic import remove_leftovers, write_atomically, write_json
from handful.jobs.digests import digest_of, digest_of_file
from handful.jobs.notes import NOTES, Notes
from handful.service.folder import require_cohort_folder
from handful.session.state_file import LEARNERS

Status = Literal["unlabelled", "in work", "labelled", "to review", "accepted"]
"""State of a case. "to review": segmented by the model; "accepted": such a segmentation that a person has accepted."""
SERVICE = ".handful/service"

_State = frozenset[tuple[str, int, int]]
"""Names, times and sizes of files, to notice when one changes."""


@dataclass(frozen=True)
class CaseEntry:
    """A case as the page lists it."""

    id: str
    """Stands for the case in addresses; names of files never do."""
    name: str
    status: Status
    quality: float | None
    """Predicted Dice of its worst label; None where it was not estimated."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Origin:
    """What a note of `predict_cohort` states of the origin of a label map."""

    model: str | None = None
    """SHA-256 of the model that made it."""
    output: str | None = None
    """SHA-256 of the label map."""


class Workspace:
    """A cohort folder. What the service adds lies in `.handful/service` in it, and label maps in `labels/`."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError unless the folder is a cohort with `images/`."""
        require_cohort_folder(folder)
        (folder / "images").mkdir(exist_ok=True)
        self.folder, self.own = folder, folder / SERVICE
        self.own.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        self._lock = threading.RLock()
        self._read: tuple[_State, Cohort] | None = None
        self._unreadable: dict[str, tuple[_State, str]] = {}

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a service that was killed; those of jobs, which may still run, only if old."""
        inside = [path for name in ("sessions", "accepted") for path in (self.own / name).glob("*")]
        for folder in (self.folder, self.folder / "images", self.folder / "labels", self.own, *inside):
            remove_leftovers(folder)
        remove_leftovers(self.jobs, min_age_s=60)

    # Places.

    @property
    def model(self) -> Path:
        return self.own / "model"

    @property
    def predictions(self) -> Path:
        return self.own / "predictions"

    @property
    def review(self) -> Path:
        return self.own / "review"

    @property
    def jobs(self) -> Path:
        return self.own / "jobs"

    def session(self, case_id: str) -> Path:
        return self.own / "sessions" / case_id

    def newest_learner(self) -> Path | None:
        """The file of what was learned last from finished slices, of any case; None if there is none."""
        found = self.own.glob(f"sessions/*/{LEARNERS}")
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def has_model(self) -> bool:
        return (self.model / RECORD).is_file()

    # Cases.

    def cohort(self) -> Cohort:
        """The cases as they lie in the folder now; empty if there are none yet."""
        with self._lock:
            state = self._files_now()
            if self._read is None or self._read[0] != state:
                empty = not any((self.folder / "images").iterdir())
                own = Cohort((), stated_values(self.folder)[0], self.folder.resolve().name)
                self._read = state, own if empty else read_cohort(self.folder)
            return self._read[1]

    def _files_now(self) -> _State:
        """The state of the files that make up the cohort, so that it is read again when one changes."""
        places = [self.folder / name for name in ("images", "labels")]
        files = [file for place in places for file in _below(place)]
        return _state_of(file for file in [*files, *self.folder.iterdir()] if file != self.own.parent)

    def case(self, case_id: str) -> Case:
        """Raises KeyError for an unknown id."""
        return {id_of(case): case for case in self.cohort().cases}[case_id]

    def read_image(self, case: Case) -> Volume:
        """The scan of a case. Raises what `Case.read_image` does, and lists the case in `unreadable` then."""
        before = state_of_scan(case)
        try:
            volume = case.read_image()
        except Exception as error:
            self._unreadable[id_of(case)] = before, reason_of(error)
            raise
        self._unreadable.pop(id_of(case), None)
        return volume

    def unreadable(self, cases: Iterable[Case]) -> dict[str, str]:
        """Why scans could not be read when that was tried last, by id; only those whose files are still the same."""
        found = ((id_of(case), case, self._unreadable.get(id_of(case))) for case in cases)
        return {own: known[1] for own, case, known in found if known and known[0] == state_of_scan(case)}

    def is_readable(self, case: Case) -> bool:
        """Whether the scan of a case can be read. One that could not is tried again when its files have changed."""
        if self.unreadable([case]):
            return False
        try:
            self.read_image(case)
        except Exception:  # it is listed with its reason
            return False
        return True

    def labels(self) -> Labels | None:
        """The labels of the cohort; None before anybody has named some."""
        return self.cohort().labels

    def support(self, failures: list[Failure] | None = None) -> SupportSet:
        """All labelled cases, and the labels that they show; a label that was named and never used is left out.

        Cases that cannot be used are left out, too, and added to `failures`. Raises InputError without a labelled case,
        and the first error if none can be used.
        """
        cohort = self.cohort()
        labelled = [case for case in cohort.cases if case.reference is not None]
        if cohort.labels is None or not labelled:
            raise InputError(f"cohort {cohort.name!r} has no labelled case; finish a slice of one first")
        readable, errors = AcceptedSlices.of_readable(labelled, cohort.labels)
        if failures is not None:
            failures += [Failure.of(case, errors[case.name]) for case in labelled if case.name in errors]
        shown = {value for facts in readable.facts for value in facts.voxels}
        used = {value: name for value, name in cohort.labels.as_dict().items() if value in shown}
        return SupportSet(readable.cases, Labels.of(used) if used else cohort.labels, known_facts=readable.facts)

    def name_labels(self, names: Sequence[str]) -> Labels:
        """Names the labels 1, 2, …, in dataset.json; names that are there keep their values and can only be added to.

        New ones get higher values than those, since saved sessions count the labels in the order of their values.
        The values of unlabelled voxels and of background keep their meaning, and no label gets them.

        Raises InputError for empty or double names, "background" and "ignore", and where an earlier name is left out.
        """
        wanted = [name.strip() for name in names]
        if not wanted or not all(wanted) or len({name.lower() for name in wanted}) < len(wanted):
            raise InputError("give each label a name of its own")
        if reserved := [name for name in wanted if name in ("background", "ignore")]:
            raise InputError(f"{reserved[0]!r} has a meaning of its own in dataset.json; choose another name")
        with self._lock:
            known = self.labels()
            before = dict(known.as_dict()) if known else {}
            if missing := [name for name in before.values() if name not in wanted]:
                raise InputError(f"label {missing[0]!r} is in use already; keep it in the list")
            _, ignore, background = stated_values(self.folder)
            free = (value for value in count(max(before, default=0) + 1) if value not in (ignore, background))
            named = before | {next(free): name for name in wanted if name not in before.values()}
            file = self.folder / "dataset.json"
            content = json.loads(file.read_text("utf-8-sig")) if file.is_file() else {}
            special = {background: "background"}
            if ignore and "ignore" not in content:
                special[ignore] = "ignore"
            content["labels"] = {str(value): name for value, name in sorted((special | named).items())}
            write_json(file, content)
            return Labels.of(named)

    def entries(self, cohort: Cohort | None = None) -> list[CaseEntry]:
        """All cases with their states."""
        accepted, qualities, predicted = self.accepted_cases(), self._qualities(), self.predicted()
        found = []
        for case in (cohort or self.cohort()).cases:
            own, quality = id_of(case), qualities.get(case.name)
            status: Status = "unlabelled"
            if case.reference is not None:
                status = "labelled"
            elif case.name in predicted:
                status = "accepted" if own in accepted else "to review"
            elif any(self.session(own).glob("step-*.npz")):
                status = "in work"
            found.append(CaseEntry(own, case.name, status, *(quality or (None, ()))))
        return found

    def prediction(self, case: Case) -> Path | None:
        """The label map that the model made of a case."""
        return self.predicted().get(case.name)

    def predicted(self) -> dict[str, Path]:
        """The label maps that the model made, by name of the case."""
        if not self.predictions.is_dir():
            return {}
        return {stem(path): path for path in sorted(self.predictions.iterdir()) if is_scan(path)}

    # Review.

    @property
    def accepted(self) -> Path:
        """The folder of segmentations that a person has accepted; they are not made again."""
        return self.own / "accepted"

    def accepted_cases(self) -> set[str]:
        """Ids of the cases whose segmentation was accepted."""
        return {folder.name for folder in self.accepted.iterdir()} if self.accepted.is_dir() else set()

    def accept(self, case: Case) -> None:
        """Keep the segmentation of a case, and the note of its origin. Raises InputError if it has none."""
        prediction = self.prediction(case)
        if prediction is None:
            raise InputError("this case has no segmentation yet; segment it first")
        folder, note = self.accepted / id_of(case), self.predictions / NOTES / f"{case.name}.json"
        write_atomically(folder / prediction.name, prediction.read_bytes())
        if note.is_file():
            write_atomically(folder / NOTES / note.name, note.read_bytes())

    def send_back(self, case: Case) -> None:
        """Take back that the segmentation was accepted."""
        folder = self.accepted / id_of(case)
        if folder.is_dir():
            shutil.rmtree(folder)

    def result(self, case: Case) -> Path | None:
        """The best label map of a case: by hand, accepted, or predicted."""
        if isinstance(case.reference, Path):
            return case.reference
        accepted = (self.accepted / id_of(case)).glob("[!.]*")  # without what is just being written
        return next(accepted, None) or self.prediction(case)

    def model_of(self, case: Case, result: Path) -> str | None:
        """SHA-256 of the model that made a segmentation; None where that is unknown, or the file was changed since."""
        digest = digest_of_file(result)
        for folder in (result.parent, self.predictions):  # what an earlier version accepted has no note of its own
            origin = Notes(folder / NOTES, _Origin).read(case.name)
            if origin is not None and origin.output == digest:
                return origin.model
        return None

    def read_result(self, case: Case) -> LabelMap | None:
        """The best label map of a case; None without any, or before a label has a name."""
        if case.reference is not None:
            return case.read_reference()
        file, labels = self.result(case), self.labels()
        return None if file is None or labels is None else read_label_map(file, labels)

    def _qualities(self) -> Mapping[str, tuple[float, tuple[str, ...]]]:
        """Predicted Dice of the worst label, and flags, by name of the case."""
        file = self.own / "quality.json"
        if not file.is_file():
            return {}
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return {name: (float(entry["worst"]), tuple(entry["flags"])) for name, entry in content.items()}


def state_of_scan(case: Case) -> _State:
    """The files of a scan with their times and sizes, which change when the scan is replaced."""
    return _state_of(file for path in case.files for file in (path, *_below(path)))


def _below(folder: Path) -> Iterator[Path]:
    """All files and folders below a folder; none if it is a file, or is gone by now."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _state_of(files: Iterable[Path]) -> _State:
    found = set()
    for file in files:
        with suppress(OSError):  # some are optional, and temporary ones come and go while somebody finishes a slice
            stat = file.lstat()
            found.add((str(file), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)


def id_of(case: Case) -> str:
    """A short identifier of a case that says nothing of its name."""
    return digest_of(case.name)[:16]
