"""A session: an annotator corrects the segmentation of one scan by clicks, boxes and strokes, and keeps what is right.

It knows nothing of screens, mice or networks. All coordinates are those of slices as the slicer cuts them: slice
numbers from 0, (x, y) in pixels, the first pixel with its centre at (0, 0).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from handful.data.cases import Case
from handful.data.files import write_label_map
from handful.data.slicing import Slicer
from handful.data.support import AcceptedSlices
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError
from handful.jobs.progress import Report, silent
from handful.methods.base import Segmenter
from handful.methods.promptable import Source, resolve_source
from handful.session.embeddings import SliceEmbeddings
from handful.session.predictors import Predictor
from handful.session.propagation import merged, walked
from handful.session.slice_state import PromptedMask, SliceState, answered, as_prompts, mask_logits
from handful.session.state_file import read_state, write_state

STROKE = 8
"""Points of a scribble that are asked with: as many as annotators' strokes have in training."""
LIMIT = 32.0
"""Logits of answers are cut off here, as SAM's own were in training; what is painted has twice as much, so it wins."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """What a session may take of the machine, and how far it looks when it propagates."""

    keep: int = 32
    """Slices whose embeddings are kept in memory, in half precision, those nearest to the annotator."""
    background: bool = True
    """Encode the slices beside the annotator's before she asks."""
    history: int = 200
    """Steps that can be undone."""
    supports: int = 6
    """Known slices that a backbone with a memory is shown at once when it propagates."""

    def __post_init__(self) -> None:
        for name, least in (("keep", 1), ("history", 0), ("supports", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Change:
    """What one question changed on its slice: all that a screen has to draw anew."""

    number: int
    label: int
    """Value of the label that was asked for."""
    rows: tuple[int, int]
    """First row with a changed pixel, and the one after the last; both 0 where nothing changed."""
    columns: tuple[int, int]
    mask: Bool[np.ndarray, "h w"]
    """The label on the whole slice, as it is now."""


class Session:
    """One scan and what is known of its slices. Any thread may call it; one at a time is served."""

    def __init__(
        self,
        volume: Volume,
        source: Source,
        labels: Labels | None = None,
        slicer: Slicer | None = None,
        config: SessionConfig | None = None,
    ) -> None:
        """Opens a scan, all slices empty; the middle slice is encoded first, in the background.

        `source` answers: a backbone (then `labels` must be given, and `slicer` may be), a promptable segmenter, a
        segmenter of the method `interactive`, or any other fitted segmenter, whose backbone answers and which can make
        the first proposal. Raises SettingsError where labels are missing or not the segmenter's own.
        """
        self.volume = volume
        self.config = config or SessionConfig()
        promptable, self._segmenter = resolve_source(source, labels, slicer)
        who = Predictor(promptable)
        self.labels, self.slicer = who.labels, who.slicer.resolve([volume])
        self._who = who
        self._lock = threading.RLock()
        stack = self.slicer.view(volume)
        self._embeddings = SliceEmbeddings(stack, who.backbone, self.config.keep, self.config.background, self._lock)
        self._states = [SliceState.empty(stack.size)] * len(stack)
        self._undo: deque[dict[int, SliceState]] = deque(maxlen=self.config.history)
        self._redo: list[dict[int, SliceState]] = []
        weakref.finalize(self, self._embeddings.stop)
        self._embeddings.look_from(len(stack) // 2)

    # Where the annotator is.

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._states)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self._embeddings.stack.size

    @property
    def accepted(self) -> tuple[int, ...]:
        """Numbers of the slices that never change."""
        return tuple(number for number, state in enumerate(self._states) if state.accepted)

    @property
    def prompted(self) -> tuple[int, ...]:
        """Numbers of the slices on which the annotator has asked for something."""
        return tuple(number for number, state in enumerate(self._states) if state.prompted)

    def look_at(self, number: int) -> Float[Tensor, "c h w"]:
        """A slice in [0, 1], and word that the annotator is there now: from here outwards slices are encoded."""
        self._state(number)
        self._embeddings.look_from(number)
        return self._embeddings.stack.take([number])[0]

    def classes(self, number: int) -> Integer[np.ndarray, "h w"]:
        """The segmentation of a slice as label values; 0 is background."""
        values = np.array([0, *self.labels.values])
        return np.asarray(values[self._state(number).classes()])

    def mask_of(self, number: int, label: int | str) -> Bool[np.ndarray, "h w"]:
        """One label on a slice."""
        return np.asarray(self._state(number).classes() == self._index(label) + 1)

    # What the annotator says. `label` is a value or a name; what she says of one label on one slice adds up.

    def click(self, number: int, label: int | str, xy: Point, positive: bool = True) -> Change:
        """Inside (positive) or outside the label at (x, y)."""
        return self._ask(number, label, points=[_point(xy, positive)])

    def box(self, number: int, label: int | str, corners: Box) -> Change:
        """The label lies within x0, y0, x1, y1, corner pixels included; takes the place of an earlier box."""
        x0, y0, x1, y1 = (float(corner) for corner in corners)
        if x1 < x0 or y1 < y0:
            raise InputError(f"box {corners} has no inside; give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
        return self._ask(number, label, box=(x0, y0, x1, y1))

    def scribble(self, number: int, label: int | str, points: Sequence[Point], positive: bool = True) -> Change:
        """A stroke along the label, or outside it: asked with `STROKE` of its points, evenly spaced, ends included."""
        if not points:
            raise InputError("a scribble has points; give one (x, y) at least")
        chosen = np.unique(np.linspace(0, len(points) - 1, min(STROKE, len(points))).round().astype(int))
        return self._ask(number, label, points=[_point(points[i], positive) for i in chosen])

    def mask(self, number: int, label: int | str, mask: Bool[np.ndarray, "h w"]) -> Change:
        """A rough mask for the model to refine; it takes the place of its last answer."""
        return self._ask(number, label, rough=self._sized(mask))

    def paint(self, number: int, label: int | str, mask: Bool[np.ndarray, "h w"]) -> Change:
        """The label is exactly this; no model is asked. What was said of it before is forgotten."""
        with self._lock:
            index, state = self._index(label), self._open(number)
            exactly = torch.from_numpy(np.where(self._sized(mask), 2 * LIMIT, -2 * LIMIT))
            prompted = answered((), None, exactly, self._who.backbone)
            return self._answered(number, index, state, prompted)

    # Keeping and taking back.

    def accept(self, number: int) -> None:
        """From now on this slice changes by nothing but `reopen` and `undo`."""
        with self._lock:
            state = self._state(number)
            if not state.accepted:
                self._commit({number: replace(state, accepted=True)})

    def reopen(self, number: int) -> None:
        """An accepted slice may change again."""
        with self._lock:
            state = self._state(number)
            if state.accepted:
                self._commit({number: replace(state, accepted=False)})

    def undo(self) -> tuple[int, ...]:
        """Takes the last step back, bit for bit; the slices it had changed, none where there is nothing to undo."""
        with self._lock:
            return self._swap(self._undo.pop(), self._redo) if self._undo else ()

    def redo(self) -> tuple[int, ...]:
        """Takes the last undo back; none is left after another step."""
        with self._lock:
            return self._swap(self._redo.pop(), self._undo) if self._redo else ()

    # The other slices.

    def propose(self, segmenter: Segmenter | None = None) -> tuple[int, ...]:
        """What a segmenter (that of this session, or another for its labels) says, below all answers; slices changed.

        Accepted slices stay. One step. It may take long; the session answers meanwhile.
        """
        chosen = segmenter or self._segmenter
        if chosen is None:
            raise SettingsError("this session was opened with nothing that makes proposals; give a fitted segmenter")
        if chosen.labels != self.labels:
            raise LabelError(f"the segmenter has the labels {chosen.labels}, the session {self.labels}")
        values = self._embeddings.stack.of(chosen.predict(self.volume).array)
        with self._lock:
            steps = {}
            for number, state in enumerate(self._states):
                if not state.accepted:
                    index = np.searchsorted(self.labels.values, values[number]) + 1
                    below = np.where(values[number] > 0, index, 0).astype(np.uint16)
                    steps[number] = state.with_proposal(below, self._who.backbone)
            return self._commit(steps)

    def propagate(
        self,
        labels: Iterable[int | str] | None = None,
        report: Report = silent,
    ) -> tuple[int, ...]:
        """Carries labels from where they are known, outwards to all other slices; the slices that changed. One step.

        A label (None: each that is known anywhere) is known on accepted slices, also as absent, and on those where the
        annotator asked for it. SettingsError where it is known nowhere.
        """
        with self._lock:
            chosen = range(len(self.labels)) if labels is None else [self._index(label) for label in labels]
            everywhere = {index: self._known(index) for index in chosen}
            known = {index: masks for index, masks in everywhere.items() if any(m.any() for m in masks.values())}
            if not known or (labels is not None and len(known) < len(set(chosen))):
                raise SettingsError("nothing is known of a label that is to be propagated; ask for it on a slice first")
            found = walked(self._who, self._embeddings, known, self.config.supports, report)
            steps = {}
            for number, classes in found.items():
                state = self._states[number]
                here = [index for index in known if number not in known[index]]
                if not state.accepted:
                    below = merged(state.proposed(), classes, here)
                    steps[number] = state.with_proposal(below, self._who.backbone)
            return self._commit(steps)

    def case(self, name: str) -> Case:
        """The scan as a labelled case whose accepted slices alone are labelled, to fit any method with.

        InputError where no slice is accepted.
        """
        if not self.accepted:
            raise InputError("no slice is accepted, so there is nothing to learn from; accept some first")
        full = self.export()
        array = np.full(full.array.shape, IGNORE, dtype=np.int32)
        target, source = self._embeddings.stack.of(array), self._embeddings.stack.of(full.array)
        for number in self.accepted:
            target[number] = source[number]
        reference = LabelMap(array, full.geometry, self.labels)
        return Case(name=name, image=self.volume, reference=reference, labels=self.labels)

    def refresh(self, segmenter: Segmenter | None = None, name: str = "corrected") -> Segmenter:
        """The segmenter (that of this session, or another) with the accepted slices in its support, as case `name`.

        For fate and few-shot-prompts, in seconds; SettingsError for others. Refresh the same segmenter again after more
        corrections: what comes back here has these slices once. Show what it says by `propose`.
        """
        chosen = segmenter or self._segmenter
        if chosen is None:
            raise SettingsError("this session was opened with nothing that has a support; give a fitted segmenter")
        case = self.case(name)
        if case.labels != chosen.labels:
            raise LabelError(f"the slices are labelled with {case.labels}, the segmenter with {chosen.labels}")
        return chosen.extend(AcceptedSlices((case,), chosen.labels))

    # Going out, and coming back.

    def export(self) -> LabelMap:
        """The segmentation, on the scan's very grid."""
        geometry = self.volume.geometry
        out = np.zeros(geometry.shape, dtype=np.int16 if max(self.labels.values) < 2**15 else np.int32)
        target = self._embeddings.stack.of(out)
        with self._lock:
            for number in range(len(self)):
                target[number] = self.classes(number)
        return LabelMap(out, geometry, self.labels)

    def save(self, path: str | Path) -> None:
        """Writes the segmentation; the file is there whole or not at all."""
        write_label_map(path, self.export())

    def save_state(self, path: str | Path) -> None:
        """Writes all that `restore` needs beside the scan and the source, but not the steps that could be undone."""
        with self._lock:
            states = list(self._states)
        write_state(Path(path), states, self.volume, self.labels, self.slicer, self._who.backbone)

    def restore(self, path: str | Path) -> None:
        """Takes up what `save_state` wrote, as one step.

        DamagedFile where it is no such file, CheckpointError where it is of another scan, other labels, another slicer
        or another backbone.
        """
        states = read_state(Path(path), self.volume, self.labels, self.slicer, self._who.backbone)
        with self._lock:
            self._commit(dict(enumerate(states)))

    def close(self) -> None:
        """Ends the background; the session can still be asked."""
        self._embeddings.stop()
        self._embeddings.wait()

    def wait(self) -> None:
        """Returns when the slices beside the annotator's are encoded."""
        self._embeddings.wait()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Within.

    def _ask(
        self,
        number: int,
        label: int | str,
        points: Sequence[tuple[float, float, bool]] = (),
        box: Box | None = None,
        rough: NDArray[np.bool_] | None = None,
    ) -> Change:
        with self._lock:
            index, state = self._index(label), self._open(number)
            self._require_inside([(x, y) for x, y, _ in points] + ([box[:2], box[2:]] if box else []))
            before = state.prompted.get(index)
            all_points = (before.points if before else ()) + tuple(points)
            last_box = box or (before.box if before else None)
            shown = self._previous(state, index) if rough is None else mask_logits(rough)
            if shown is None and last_box is None and not any(positive for _, _, positive in all_points):
                logits = torch.full(self.size, -LIMIT)  # nobody has said yet where it could be
            else:
                prompts = as_prompts(all_points, last_box, shown)
                self._embeddings.look_from(number)
                logits = self._who.answer(self._embeddings, number, index, prompts)
            prompted = answered(all_points, last_box, logits.clamp(-LIMIT, LIMIT), self._who.backbone)
            return self._answered(number, index, state, prompted)

    def _previous(self, state: SliceState, index: int) -> Float[Tensor, "h w"] | None:
        """Logits of the answer before, or the label as it was proposed; None where there is neither."""
        if prompted := state.prompted.get(index):
            logits = prompted.lifted(self._who.backbone, self.size).clamp(-LIMIT, LIMIT)
            return logits if bool((logits > 0).any()) else None
        shown = state.classes() == index + 1
        return mask_logits(shown) if shown.any() else None

    def _answered(self, number: int, index: int, state: SliceState, prompted: PromptedMask) -> Change:
        new = state.with_answer(index, prompted, self._who.backbone)
        self._commit({number: new})
        classes = new.classes()
        changed = classes != state.classes()
        rows, columns = _extent(changed.any(axis=1)), _extent(changed.any(axis=0))
        return Change(number, self.labels.values[index], rows, columns, classes == index + 1)

    def _commit(self, states: Mapping[int, SliceState]) -> tuple[int, ...]:
        """Replaces states, as one step that can be undone; the slices that look different now."""
        if not states:
            return ()
        self._undo.append({number: self._states[number] for number in states})
        self._redo.clear()
        different = tuple(number for number, state in states.items() if state.top != self._states[number].top)
        for number, state in states.items():
            self._states[number] = state
        return different

    def _swap(
        self, states: Mapping[int, SliceState], others: deque[dict[int, SliceState]] | list[dict[int, SliceState]]
    ) -> tuple[int, ...]:
        others.append({number: self._states[number] for number in states})
        for number, state in states.items():
            self._states[number] = state
        return tuple(states)

    def _known(self, index: int) -> dict[int, NDArray[np.bool_]]:
        """Slices on which a label is known, and where it is there."""
        states = enumerate(self._states)
        return {n: state.classes() == index + 1 for n, state in states if state.accepted or index in state.prompted}

    def _state(self, number: int) -> SliceState:
        if not 0 <= number < len(self._states):
            raise InputError(f"there is no slice {number}; this scan has slices 0 to {len(self._states) - 1}")
        return self._states[number]

    def _open(self, number: int) -> SliceState:
        state = self._state(number)
        if state.accepted:
            raise InputError(f"slice {number} is accepted and stays as it is; call reopen({number}) to change it")
        return state

    def _index(self, label: int | str) -> int:
        known = self.labels.names if isinstance(label, str) else self.labels.values
        if label not in known:
            raise LabelError(f"there is no label {label!r}; there are {self.labels.as_dict()}")
        return list(known).index(label)

    def _sized(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if mask.shape != self.size or mask.dtype != np.bool_:
            raise InputError(f"a mask of {mask.dtype} {mask.shape}; give bool of the slice's size {self.size}")
        return mask

    def _require_inside(self, points: Sequence[Sequence[float]]) -> None:
        height, width = self.size
        for x, y in points:
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise InputError(f"(x, y) = ({x:g}, {y:g}) lies outside the slice of {width} by {height} pixels")


def _point(xy: Point, positive: bool) -> tuple[float, float, bool]:
    """Plain numbers, whatever library they come from."""
    x, y = xy
    return float(x), float(y), bool(positive)


def _extent(line: NDArray[np.bool_]) -> tuple[int, int]:
    """First True and the place after the last; (0, 0) without any."""
    there = np.flatnonzero(line)
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
