"""Open annotation sessions of a service: one per case, every step on disk before it is answered."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

from handful.backbones.base import Backbone
from handful.backbones.catalog import open_backbone
from handful.cohort.case_jobs import label_map_name
from handful.data.cases import Case
from handful.data.files import read_label_map, stem, write_label_map
from handful.data.inventory import SIDECAR
from handful.data.slice_grid import SliceGrid
from handful.data.volume import IGNORE, LabelMap, Volume
from handful.errors import CheckpointError, HandfulError, InputError
from handful.jobs.atomic import replacing, write_atomically, write_json
from handful.jobs.digests import digest_of_file
from handful.jobs.plain_text import counted
from handful.jobs.scratch import converted, zeros_like
from handful.methods.catalog import online_learner
from handful.service.workspace import Workspace, id_of
from handful.session.session import Session

OPEN_CASES = 3
"""Scans in memory at a time, apart from those that somebody works on; the one used least recently is closed."""
MOST_LABELS = 255
"""Labels that a session may have, since the page is sent one byte per pixel."""
LEASE_S = 60.0
"""Seconds after the last request of an annotator, after which others may open the case."""


class InUseError(Exception):
    """Another annotator works on this case."""


@dataclass
class OpenCase:
    """A case that somebody annotates."""

    case: Case
    session: Session
    annotator: str
    """The browser or viewer that has opened it."""
    until: float
    lock: threading.RLock = field(default_factory=threading.RLock)
    working: int = 0
    """Steps that are being carried out."""

    @property
    def in_use(self) -> bool:
        """Whether its annotator works on it, so that it stays open and is refused to others."""
        return self.working > 0 or time.monotonic() < self.until

    @property
    def volume(self) -> Volume:
        return self.session.volume

    @property
    def finished(self) -> set[int]:
        """The finished slices, by their index in the array of the scan."""
        return {self.grid.index_in_array(number) for number in self.session.accepted}

    @cached_property
    def grid(self) -> SliceGrid:
        return self.session.grid

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest grey value of what is displayed."""
        array = self.session.displayed
        return float(array.min()), float(array.max())

    def pixels(self, number: int) -> NDArray[Any]:
        """A slice: 16-bit grey values that span `range`, (h, w), or 8-bit colours (h, w, 3)."""
        channels = np.stack([self.grid.of(channel)[number] for channel in self.session.displayed])
        low, high = self.range
        share = (channels.astype(np.float32) - low) / max(high - low, 1e-12)
        if len(channels) == 1:
            return np.ascontiguousarray((share[0] * 65535).round().astype("<u2"))
        return np.ascontiguousarray((share * 255).round().astype(np.uint8).transpose(1, 2, 0))

    def classes(self, number: int) -> UInt8[np.ndarray, "h w"]:
        """The segmentation of a slice: 0, or 1 + the index of the label."""
        values = self.session.classes(number)
        index = np.searchsorted(self.session.labels.values, values) + 1
        return np.where(values > 0, index, 0).astype(np.uint8)


class Annotations:
    """All open cases."""

    def __init__(self, workspace: Workspace, backbone: str, device: str, learning: bool = False) -> None:
        """With `learning`, masks from prompts also depend on the slices that were finished before, of any case."""
        self.workspace, self._backbone_name, self._device = workspace, backbone, device
        self._learner = online_learner() if learning else None
        if self._learner is not None and (newest := workspace.newest_learner()) is not None:
            self._learner = self._learner.unpacked(newest.read_bytes())
        self._open: OrderedDict[str, OpenCase] = OrderedDict()
        self._busy: dict[str, str] = {}
        """Cases that are being opened, or whose labels are being replaced, with the annotator who waits for that."""
        self._lock = threading.Condition(threading.RLock())
        self._loading = threading.Lock()
        self._teaching = threading.Lock()

    @property
    def backbone(self) -> Backbone:
        with self._loading:
            return self._backbone

    @cached_property
    def _backbone(self) -> Backbone:
        return open_backbone(self._backbone_name, self._device, self.workspace.folder / ".handful" / "embeddings")

    def open(self, case_id: str, annotator: str) -> OpenCase:
        """The case, for this annotator. Reading a large scan takes seconds, in which other cases can be used.

        Raises KeyError for an unknown id, InUseError while another annotator has it.
        """
        with self._lock:
            while self._busy.get(case_id) == annotator:
                self._lock.wait()
            found = self._open.get(case_id)
            if found is not None and case_id not in self._busy:
                return self._lent(found, annotator)
            self._reserve(case_id, annotator)
        try:
            opened = self._opened(case_id, annotator)
            with self._lock:
                self._open[case_id] = opened
                lent, unused = self._lent(opened, annotator), self._unused()
        finally:
            self._free(case_id)
        for one in unused:
            one.session.close()
        return lent

    def _lent(self, found: OpenCase, annotator: str) -> OpenCase:
        """Raises InUseError while another annotator has the case, whose steps nobody else can undo."""
        if found.annotator != annotator:
            if found.in_use:
                raise InUseError
            found.session.clear_history()
        found.annotator, found.until = annotator, time.monotonic() + LEASE_S
        self._open.move_to_end(id_of(found.case))
        return found

    def _reserve(self, case_id: str, annotator: str) -> None:
        """Nobody else can open the case until `_free`. Raises InUseError if somebody has it already."""
        with self._lock:
            opened = self._open.get(case_id)
            if case_id in self._busy or (opened is not None and opened.in_use):
                raise InUseError
            self._busy[case_id] = annotator

    def _free(self, case_id: str) -> None:
        with self._lock:
            del self._busy[case_id]
            self._lock.notify_all()

    def propose(self, opened: OpenCase) -> bool:
        """Propose the model's latest segmentation, once. Accepted slices and masks from prompts are unchanged.

        Returns whether it has replaced others, such as masks that were propagated.
        """
        with opened.lock:
            prediction = self.workspace.prediction(opened.case)
            folder = self.workspace.session(id_of(opened.case))
            note = folder / "proposed.txt"
            if prediction is None:
                return False
            state = f"{prediction.stat().st_mtime_ns} {prediction.stat().st_size}"
            if note.is_file() and note.read_text("utf-8") == state:
                return False
            had_steps = any(folder.glob("step-*.npz"))
            changed = opened.session.propose_map(read_label_map(prediction, opened.session.labels))
            write_atomically(note, state.encode())
            return had_steps and bool(changed)

    def release(self, case_id: str, annotator: str) -> None:
        """The annotator has left the case."""
        with self._lock:
            found = self._open.get(case_id)
            if found is not None and found.annotator == annotator:
                found.until = 0.0

    def in_use(self, case_id: str, annotator: str) -> bool:
        """Whether another annotator works on the case."""
        with self._lock:
            if case_id in self._busy:
                return self._busy[case_id] != annotator
            found = self._open.get(case_id)
            return found is not None and found.annotator != annotator and found.in_use

    def close(self) -> None:
        with self._lock:
            while self._busy:
                self._lock.wait()
            for found in self._open.values():
                found.session.close()
            self._open.clear()

    def act(self, opened: OpenCase, action: Callable[[Session], Sequence[int]], may_teach: bool = True) -> list[int]:
        """Carry out a step; returns the slices it changed. Finished slices are written into `labels/`.

        With learning, steps that may teach (those that finish a slice, undo or redo) wait for each other across all
        cases, so that each continues from the one before. Other steps set `may_teach` to False, so as not to wait.
        """
        is_taught = may_teach and self._learner is not None
        turn: AbstractContextManager[Any] = self._teaching if is_taught else nullcontext()
        with self._lock:
            opened.working += 1
        try:
            with opened.lock, turn:
                opened.session.learner = self._learner  # another case may have been learned from since
                before, learner = opened.session.accepted, opened.session.learner
                changed = list(action(opened.session))
                if opened.session.accepted != before or set(changed) & set(before):
                    self._write_labels(opened)
                if opened.session.learner is not learner:
                    self._learner = opened.session.learner
                return changed
        finally:
            with self._lock:
                opened.working -= 1
                if opened.until:  # the annotator has not left meanwhile
                    opened.until = time.monotonic() + LEASE_S

    def renew(self) -> None:
        """Open the cases again that were opened before the cohort got another label; their steps are on disk."""
        with self._lock:
            while self._busy:
                self._lock.wait()
            labels = self.workspace.labels()
            outdated = [(case_id, one) for case_id, one in self._open.items() if one.session.labels != labels]
        for case_id, one in outdated:
            with one.lock:
                if self._open.get(case_id) is not one:  # it was closed meanwhile
                    continue
                one.session.close()
                again = self._opened(case_id, one.annotator)
                one.case, one.session = again.case, again.session

    def replace_labels(self, case: Case, label_map: LabelMap) -> None:
        """Keep a label map of all slices from elsewhere as that of a case; the earlier one is put aside.

        Raises InUseError while somebody has the case open.
        """
        case_id = id_of(case)
        self._reserve(case_id, uuid.uuid4().hex)
        try:
            with self._lock:
                opened = self._open.pop(case_id, None)
            if opened is not None:
                opened.session.close()
            folder = self.workspace.folder / "labels"
            folder.mkdir(exist_ok=True)
            self._put_aside(case)
            if self.workspace.session(case_id).is_dir():
                shutil.rmtree(self.workspace.session(case_id))  # its steps are of other labels
            write_label_map(folder / label_map_name(case), as_in_files(label_map, case))
            # last, since without the list all slices of an earlier label map would count as labelled
            (folder / f"{case.name}{SIDECAR}").unlink(missing_ok=True)
        finally:
            self._free(case_id)

    def _unused(self) -> list[OpenCase]:
        """Takes out the cases used least recently. One that is in use stays: two sessions would write its steps."""
        unused = [case_id for case_id, opened in self._open.items() if not opened.in_use]
        return [self._open.pop(case_id) for case_id in unused[: max(0, len(self._open) - OPEN_CASES)]]

    def _opened(self, case_id: str, annotator: str) -> OpenCase:
        case, labels = self.workspace.case(case_id), self.workspace.labels()
        if labels is None:
            raise InputError("no label has a name yet; name at least one first")
        if len(labels) > MOST_LABELS:
            raise InputError(
                f"{len(labels)} labels, and the page shows at most {MOST_LABELS}; leave some out of dataset.json"
            )
        session = Session(self.workspace.read_image(case), self.backbone, labels)
        folder = self.workspace.session(case_id)
        if case.reference is not None and not any(folder.glob("step-*.npz")):
            _take_over(session, case)  # both of its steps are in one file, so a kill leaves no half of it
        self._restore(session, folder)
        session.clear_history()  # no undo takes back what was restored or taken over
        session.learner = self._learner  # only now: `keep_in` would replace it by that of the last step of this case
        opened = OpenCase(case, session, annotator, 0.0)
        self._complete_labels(opened)
        return opened

    def _restore(self, session: Session, folder: Path) -> None:
        """The steps in the folder of a case. Raises CheckpointError if they were taken with another backbone."""
        note = folder / "backbone.txt"
        before = note.read_text("utf-8") if note.is_file() else None
        try:
            session.keep_in(folder)
        except CheckpointError as error:
            if before in (None, self._backbone_name):
                raise
            raise CheckpointError(
                f"this case was annotated with the backbone {before}; start handful serve with --backbone {before}"
            ) from error
        if before != self._backbone_name:
            write_atomically(note, self._backbone_name.encode())

    def _complete_labels(self, opened: OpenCase) -> None:
        """Write the labels of steps after which the service was killed, or the disk was full, before they were written.

        Label maps that another program has written or changed stay as they are.
        """
        target, sidecar = self._label_files(opened.case)
        finished = opened.finished
        if not finished and not self._written(opened.case).is_file():  # no labels of the service
            return
        is_complete = target.is_file() == bool(finished) and _listed(sidecar) == finished
        if not is_complete and not self._by_others(opened.case):
            with suppress(HandfulError, OSError):  # the case can be opened all the same
                self._write_labels(opened)

    def _label_files(self, case: Case) -> tuple[Path, Path]:
        """The label map that the service writes for a case, and its list of labelled slices."""
        folder = self.workspace.folder / "labels"
        return folder / label_map_name(case), folder / f"{case.name}{SIDECAR}"

    def _write_labels(self, opened: OpenCase) -> None:
        """The finished slices as the labels of the case. A file that the service did not write is put aside first.

        The list of labelled slices is shortened before the label map is written, and extended after it, so that a kill
        at any moment leaves no slice labelled that is not.
        """
        session, grid, finished = opened.session, opened.grid, opened.finished
        target, sidecar = self._label_files(opened.case)
        target.parent.mkdir(exist_ok=True)
        self._put_aside(opened.case)
        if not finished:
            target.unlink(missing_ok=True)
            sidecar.unlink(missing_ok=True)
            return
        _list_slices(sidecar, grid.axis, sorted(finished & _listed(sidecar)))
        finished_only = as_in_files(session.export(session.accepted), opened.case)
        with replacing(target) as fresh:
            write_label_map(fresh, finished_only)
            own = [digest_of_file(file) for file in (target, fresh) if file.is_file()]
            write_atomically(self._written(opened.case), "\n".join(own).encode())
        _list_slices(sidecar, grid.axis, sorted(finished))

    def _written(self, case: Case) -> Path:
        """The file with the SHA-256 of the label maps that the service has written for a case: the last one or two.

        It names the new one before that is there, so that after a kill it is not taken for one of another program.
        """
        return self.workspace.session(id_of(case)) / "labels.txt"

    def _put_aside(self, case: Case) -> None:
        """Move label maps of a case that the service did not write, or that were changed since, to `originals`.

        Their lists of labelled slices are copied. What lies in `originals` already is kept.
        """
        for file, digest in self._by_others(case).items():
            aside = self.workspace.own / "originals" / file.name
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                aside = aside.with_name(f"{digest[:12]}.{file.name}")
            if (listed := file.with_name(f"{stem(file)}{SIDECAR}")).is_file():
                shutil.copyfile(listed, aside.with_name(f"{stem(aside)}{SIDECAR}"))
            os.replace(file, aside)

    def _by_others(self, case: Case) -> dict[Path, str]:
        """Label maps of a case that the service did not write, or that were changed since, with their SHA-256."""
        note = self._written(case)
        written = note.read_text("utf-8").split() if note.is_file() else []
        own, _ = self._label_files(case)
        found = {
            file: digest_of_file(file) for file in {case.reference, own} if isinstance(file, Path) and file.is_file()
        }
        return {file: digest for file, digest in found.items() if digest not in written}


def _take_over(session: Session, case: Case) -> None:
    """The labels of the case as accepted slices; unlabelled and scribbled slices stay open and empty."""
    reference = case.read_reference(session.volume.geometry)
    assert reference is not None
    shown = zeros_like(reference.array, reference.array.dtype)
    source, target = session.grid.of(reference.array), session.grid.of(shown)
    whole = [number for number in range(len(session)) if (source[number] != IGNORE).all()]
    for number in whole:
        target[number] = source[number]
    session.propose_map(LabelMap(shown, reference.geometry, session.labels))
    session.accept_all(whole)


def as_in_files(label_map: LabelMap, case: Case) -> LabelMap:
    """The label map with background of the value that it has in the files of the cohort."""
    if case.background == 0:
        return label_map
    array = converted(
        label_map.array, label_map.array.dtype, lambda block: np.where(block == 0, case.background, block)
    )
    return LabelMap(array, label_map.geometry, label_map.labels)


def _list_slices(sidecar: Path, axis: int, labelled: list[int]) -> None:
    write_json(sidecar, {"axis": axis, "labelled": labelled})


def _listed(sidecar: Path) -> set[int]:
    """The slices in a list; none if it is missing or damaged."""
    try:
        return set(json.loads(sidecar.read_text("utf-8"))["labelled"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def unpacked(bits: bytes, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A mask from 8 pixels per byte. Raises InputError for another number of pixels."""
    count = size[0] * size[1]
    if len(bits) != (count + 7) // 8:
        raise InputError(
            f"a mask of {counted(len(bits), 'byte')} for a slice of {size[1]} by {size[0]} pixels; send one bit each"
        )
    found = np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
    return found.reshape(size).astype(bool)
