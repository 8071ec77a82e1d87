"""A session: an annotator segments one scan by clicks, boxes and scribbles, and accepts the slices that are right.

A session has no user interface of its own; a program with one calls it. Coordinates are those of the slices that the
slicer yields: slice numbers from 0, and (x, y) in pixels, where (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Num
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from handful.backbones.sam_med3d import SamMed3d
from handful.data.cases import Case
from handful.data.files import write_label_map
from handful.data.formats import require_known
from handful.data.slice_grid import SliceGrid, evenly_spaced
from handful.data.slicing import Slicer
from handful.data.support import AcceptedSlices
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import InputError, LabelError, SettingsError
from handful.jobs.progress import Report, silent
from handful.jobs.scratch import zeros
from handful.methods.base import Segmenter
from handful.methods.online import CorrectedObject, OnlineLearner, PromptedObject
from handful.methods.promptable import Source, resolve_source
from handful.methods.volume_prompts import VolumeClick, segment_object
from handful.session.embeddings import SliceEmbeddings
from handful.session.history import History, Step
from handful.session.predictors import Predictor
from handful.session.propagation import merged, propagated
from handful.session.slice_state import PromptedMask, SliceState, as_prompts, mask_logits, prompted_mask
from handful.session.state_file import Identity, Saved, StepFolder, identity_of, read_states, write_states

STROKE = 8
"""Maximum number of points of a scribble that are used as prompts, as for simulated scribbles in training."""
LIMIT = 32.0
"""Logits of predicted masks are clipped to this magnitude, as in SAM's training. Painted masks have twice as much."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Options of a session."""

    keep: int = 32
    """Maximum number of slices whose embeddings are in memory; those nearest to the current slice are kept."""
    background: bool = True
    """Encode the slices around the current slice ahead of time, in a background thread."""
    history: int = 200
    """Maximum number of steps that can be undone."""
    supports: int = 6
    """Maximum number of segmented slices that propagation uses for each other slice (backbones with a memory only)."""

    def __post_init__(self) -> None:
        for name, least in (("keep", 1), ("history", 0), ("supports", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one slice by one prompt: what a display has to update."""

    number: int
    """Number of the slice."""
    label: int
    """Value of the prompted label."""
    rows: tuple[int, int]
    """Range of rows with changed pixels (start, stop); (0, 0) if nothing changed."""
    columns: tuple[int, int]
    """Range of columns with changed pixels (start, stop); (0, 0) if nothing changed."""
    mask: Bool[np.ndarray, "h w"]
    """The current mask of the label on the whole slice."""


class Session:
    """The interactive segmentation of one scan. Thread-safe: calls are executed one after the other."""

    def __init__(
        self,
        volume: Volume,
        source: Source,
        labels: Labels | None = None,
        slicer: Slicer | None = None,
        config: SessionConfig | None = None,
        learner: OnlineLearner | None = None,
    ) -> None:
        """Open a scan with an empty segmentation. The middle slice is encoded first, in the background.

        `source` is the model that is prompted: a backbone (with `labels`, and optionally a `slicer`), a promptable
        segmenter, or a fitted segmenter. A fitted segmenter can also propose a segmentation; if it takes no prompts,
        its backbone is prompted. Raises SettingsError if labels are missing or differ from the segmenter's.

        With a `learner`, such as `Auxiliary()`, masks from prompts also depend on what was learned from accepted ones.
        """
        self.volume = volume
        self.config = config or SessionConfig()
        promptable, self._segmenter = resolve_source(source, labels, slicer)
        self._predictor = Predictor(promptable)
        self.labels, self.slicer = self._predictor.labels, self._predictor.slicer.resolve([volume])
        self._lock = threading.RLock()
        stack, backbone = self.slicer.view(volume), self._predictor.backbone
        self._embeddings = SliceEmbeddings(stack, backbone, self.config.keep, self.config.background, self._lock)
        self._history = History([SliceState.empty(stack.size)] * len(stack), learner, self.config.history)
        weakref.finalize(self, self._embeddings.stop)
        self._embeddings.move_to(len(stack) // 2)

    @property
    def learner(self) -> OnlineLearner | None:
        """What has learned from the accepted slices so far; give it to the session of the next scan."""
        return self._history.learner

    @learner.setter
    def learner(self, learner: OnlineLearner | None) -> None:
        self._history.learner = learner

    # Slices.

    def __len__(self) -> int:
        """Number of slices."""
        return len(self._history.states)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self._embeddings.stack.size

    @property
    def grid(self) -> SliceGrid:
        """The slices of the scan's voxel grid."""
        return self._embeddings.stack.grid

    @property
    def window(self) -> tuple[float, float]:
        """The grey values that become 0 and 1 in the slices that the model is shown; of sequences, in the first."""
        return self._embeddings.stack.limits[0]

    @property
    def displayed(self) -> Num[np.ndarray[Any, Any], "c i j k"]:
        """The channels of the scan to be displayed: grey, colours, or the first of its sequences that the model takes.

        `window` is that of these channels.
        """
        stack = self._embeddings.stack
        array: NDArray[Any] = self.volume.array if stack.sequences is None else self.volume.array[[stack.shown[0]]]
        return array

    @property
    def accepted(self) -> tuple[int, ...]:
        """Numbers of the accepted slices, which no other call changes."""
        return tuple(number for number, state in enumerate(self._history.states) if state.accepted)

    @property
    def prompted(self) -> tuple[int, ...]:
        """Numbers of the slices with prompts."""
        return tuple(number for number, state in enumerate(self._history.states) if state.prompted)

    def look_at(self, number: int) -> Float[Tensor, "c h w"]:
        """The image of a slice, with values in [0, 1].

        It becomes the current slice, around which others are encoded in the background.
        """
        self._state(number)
        self._embeddings.move_to(number)
        return self._embeddings.stack.take([number])[0]

    def classes(self, number: int) -> Integer[np.ndarray, "h w"]:
        """The segmentation of a slice as label values; 0 is the background."""
        values = np.array([0, *self.labels.values])
        return np.asarray(values[self._state(number).classes()])

    def mask_of(self, number: int, label: int | str) -> Bool[np.ndarray, "h w"]:
        """The mask of one label on a slice."""
        return np.asarray(self._state(number).classes() == self._index(label) + 1)

    # Prompts. `label` is a value or a name. All prompts for one label on one slice are used together.

    def click(self, number: int, label: int | str, xy: Point, positive: bool = True) -> Change:
        """Add a click at (x, y), inside the label (positive) or outside."""
        return self._prompt(number, label, points=[_point(xy, positive)])

    def box(self, number: int, label: int | str, corners: Box) -> Change:
        """Set the box x0, y0, x1, y1 around the label, corner pixels included; it replaces an earlier box."""
        x0, y0, x1, y1 = _numbers(corners, "a box", "x0, y0, x1, y1")
        if x1 < x0 or y1 < y0:
            raise InputError(f"box {corners} is empty; give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
        return self._prompt(number, label, box=(x0, y0, x1, y1))

    def scribble(
        self,
        number: int,
        label: int | str,
        points: Sequence[Point] | Float[np.ndarray, "n 2"],
        positive: bool = True,
    ) -> Change:
        """Add a scribble inside the label (positive) or outside; at most `STROKE` evenly spaced points are used."""
        if len(points) == 0:
            raise InputError("an empty scribble; give at least one point (x, y)")
        chosen = evenly_spaced(len(points), STROKE)
        return self._prompt(number, label, points=[_point(points[i], positive) for i in chosen])

    def mask(self, number: int, label: int | str, mask: Bool[np.ndarray, "h w"]) -> Change:
        """Refine a rough mask with the model; it replaces the model's previous mask."""
        return self._prompt(number, label, rough=self._sized(mask))

    def paint(self, number: int, label: int | str, mask: Bool[np.ndarray, "h w"]) -> Change:
        """Set the mask of a label exactly, without the model. Earlier prompts for it on this slice are removed."""
        with self._lock:
            index, state = self._index(label), self._open(number)
            exactly = torch.from_numpy(np.where(self._sized(mask), 2 * LIMIT, -2 * LIMIT))
            before = state.prompted.get(index)
            attempts = before.attempts if before else ()
            prompted = prompted_mask((), None, exactly, self._predictor.backbone, attempts)
            return self._with_mask(number, index, state, prompted)

    # Accept and undo.

    def accept(self, number: int) -> None:
        """Accept a slice. From now on, only `reopen` and `undo` change it.

        The session's learner learns from each label on it that was prompted for since the slice was last accepted.
        """
        self.accept_all([number])

    def accept_all(self, numbers: Iterable[int]) -> None:
        """Accept several slices as one step for `undo`."""
        with self._lock:
            states = {number: self._state(number) for number in numbers}
            fresh = {number: state for number, state in states.items() if not state.accepted}
            learner = self.learner
            for number, state in fresh.items():
                learner = self._after(learner, number, state)
            self._history.commit({number: state.accept() for number, state in fresh.items()}, learner)

    def reopen(self, number: int) -> None:
        """Allow changes of an accepted slice again."""
        with self._lock:
            state = self._state(number)
            if state.accepted:
                self._history.commit({number: replace(state, accepted=False)})

    def undo(self) -> tuple[int, ...]:
        """Undo the last step exactly. Returns the numbers of the slices that it had changed; () if there is none."""
        with self._lock:
            return self._history.undo()

    def redo(self) -> tuple[int, ...]:
        """Redo the last undone step; not possible after another step. Returns as `undo`."""
        with self._lock:
            return self._history.redo()

    def clear_history(self) -> None:
        """Make the steps so far permanent: `undo` and `redo` change nothing until another step is taken."""
        with self._lock:
            self._history.clear()

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Everything in the context is one step for `undo`. Other threads wait until it ends."""
        with self._lock, self._history.one_step():
            yield

    # Automatic segmentation of other slices.

    def propose(self, segmenter: Segmenter | None = None) -> tuple[int, ...]:
        """Segment the scan with a segmenter (default: that of this session) and return the changed slices.

        Masks from prompts stay in front of the proposal, and accepted slices are unchanged. This is one step for
        `undo`. While it runs, other threads can use the session.
        """
        chosen = segmenter or self._segmenter
        if chosen is None:
            raise SettingsError("this session was opened without a fitted segmenter; give one to propose from")
        if chosen.labels != self.labels:
            raise LabelError(f"the segmenter has the labels {chosen.labels}, but the session has {self.labels}")
        return self.propose_map(chosen.predict(self.volume))

    def propose_map(self, label_map: LabelMap) -> tuple[int, ...]:
        """Propose a label map on the grid of the scan, such as an earlier prediction; otherwise as `propose`.

        Raises LabelError for a value that is no label of this session; unlabelled voxels count as background.
        """
        self.volume.geometry.require_same(label_map.geometry, "the scan and the proposed label map")
        require_known(label_map.array, self.labels, "the proposed label map")
        values = self._embeddings.stack.of(label_map.array)
        with self._lock:
            steps = {}
            for number, state in enumerate(self._history.states):
                if not state.accepted:
                    index = np.searchsorted(self.labels.values, values[number]) + 1
                    below = np.where(values[number] > 0, index, 0).astype(np.uint16)
                    steps[number] = state.with_proposal(below, self._predictor.backbone)
            return self._history.commit(steps)

    def prompt_volume(self, model: SamMed3d, label: int | str) -> tuple[int, ...]:
        """Segment a label in the whole scan with a model of volumes, prompted with the clicks for it on all slices.

        Masks from prompts stay in front of the result, and accepted slices are unchanged. This is one step for `undo`.
        Returns the changed slices. Raises SettingsError without a positive click, UnsupportedInput for a picture and
        for a scan with colours or several sequences, InputError for clicks too far from each other.
        """
        with self._lock:
            index = self._index(label)
            clicks = [
                VolumeClick(self.grid.voxel_of(number, y, x), positive)
                for number, state in enumerate(self._history.states)
                if index in state.prompted
                for x, y, positive in state.prompted[index].points
            ]
            mask = self._embeddings.stack.of(segment_object(model, self.volume, clicks))
            steps = {}
            for number, state in enumerate(self._history.states):
                if not state.accepted:
                    found = np.where(mask[number], index + 1, 0).astype(np.uint16)
                    below = merged(state.proposed(), found, [index])
                    steps[number] = state.with_proposal(below, self._predictor.backbone)
            return self._history.commit(steps)

    def propagate(
        self,
        labels: Iterable[int | str] | None = None,
        report: Report = silent,
        stop_after: int | None = None,
    ) -> tuple[int, ...]:
        """Propagate labels from segmented slices to all others, and return the changed slices. One step for `undo`.

        A label is propagated from the accepted slices (also those where it is absent) and from the slices with prompts
        for it. `labels` defaults to all that are present on such a slice. With `stop_after`, a label is taken to be
        absent beyond so many slices in a row without it, which saves time. Raises SettingsError if a label is on no
        slice.
        """
        with self._lock:
            chosen = range(len(self.labels)) if labels is None else [self._index(label) for label in labels]
            everywhere = {index: self._given_masks(index) for index in chosen}
            given = {index: masks for index, masks in everywhere.items() if any(m.any() for m in masks.values())}
            if not given or (labels is not None and len(given) < len(set(chosen))):
                raise SettingsError(
                    "a label to propagate is on no slice yet; prompt for it on at least one slice first"
                )
            results = propagated(self._predictor, self._embeddings, given, self.config.supports, report, stop_after)
            steps = {}
            for number, classes in results.items():
                state = self._history.states[number]
                here = [index for index in given if number not in given[index]]
                if not state.accepted:
                    below = merged(state.proposed(), classes, here)
                    steps[number] = state.with_proposal(below, self._predictor.backbone)
            return self._history.commit(steps)

    def case(self, name: str) -> Case:
        """The scan as a case on which only the accepted slices are labelled, to fit a method on.

        Raises InputError if no slice is accepted.
        """
        if not self.accepted:
            raise InputError("no slice is accepted, so there is nothing to learn from; accept at least one first")
        array = self._filled(self.accepted, np.int32, IGNORE)
        reference = LabelMap(array, self.volume.geometry, self.labels)
        return Case(name=name, image=self.volume, reference=reference, labels=self.labels)

    def refresh(self, segmenter: Segmenter | None = None, name: str = "corrected") -> Segmenter:
        """A segmenter (default: that of this session) with the accepted slices added to its support, as case `name`.

        Possible for fate and few-shot-prompts, without training; raises SettingsError for other methods. After further
        corrections, refresh the original segmenter again, not the returned one, so that no slice is added twice. Use
        `propose` to see the new segmentation.
        """
        chosen = segmenter or self._segmenter
        if chosen is None:
            raise SettingsError("this session was opened without a fitted segmenter; give one to refresh")
        case = self.case(name)
        if case.labels != chosen.labels:
            raise LabelError(f"the slices have the labels {case.labels}, but the segmenter has {chosen.labels}")
        return chosen.extend(AcceptedSlices((case,), chosen.labels))

    # Results and files.

    def export(self, numbers: Iterable[int] | None = None) -> LabelMap:
        """The segmentation, on the grid of the scan; with `numbers`, that of these slices, and 0 on all others."""
        kind = np.int16 if max(self.labels.values) < 2**15 else np.int32
        array = self._filled(range(len(self)) if numbers is None else numbers, kind)
        return LabelMap(array, self.volume.geometry, self.labels)

    def save(self, path: str | Path) -> None:
        """Write the segmentation, completely or not at all."""
        write_label_map(path, self.export())

    def save_state(self, path: str | Path) -> None:
        """Write prompts, masks and accepted slices for `restore`, without the scan, the model and the undo history.

        With a learner, the file also contains what it has learned, and crops of the last objects that it learned from.
        """
        with self._lock:
            saved = self._history.saved
        write_states(Path(path), saved, self._identity)

    def restore(self, path: str | Path) -> None:
        """Restore a state from `save_state`, as one step for `undo`.

        What a learner had learned is restored too, if this session has a learner and the other one had.

        Raises DamagedFile if it is no such file, CheckpointError if it belongs to another scan, other labels, another
        slicer or another backbone.
        """
        saved = read_states(Path(path), self._identity, len(self))
        with self._lock:
            self._history.commit(saved.states, self._restored(saved))

    def keep_in(self, folder: str | Path) -> None:
        """Write each step into `folder` before its call returns, so that nothing is lost if the process is killed.

        Steps of an earlier session on the same scan that are there are restored first. The undo history is not kept:
        `undo` cannot go back beyond them. If there are none, the segmentation so far is written. Raises as `restore`.
        """
        steps = StepFolder(Path(folder), self._identity, len(self))
        with self._lock:
            saved = steps.read()
            nothing = SliceState.empty(self.size).below
            if not saved.states and any(
                one.below != nothing or one.prompted or one.accepted for one in self._history.states
            ):
                steps.write(self._history.saved)
            self._history.keep_in(steps, Step(saved.states, self._restored(saved)))

    def close(self) -> None:
        """Stop the background thread. The session can still be used."""
        self._embeddings.stop()
        self._embeddings.wait()

    def wait(self) -> None:
        """Wait until the slices around the current slice are encoded."""
        self._embeddings.wait()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _identity(self) -> Identity:
        return identity_of(self.volume, self.labels, self.slicer, self._predictor.backbone)

    def _prompt(
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
            attempts = before.attempts if before else ()
            all_points = (before.points if before else ()) + tuple(points)
            last_box = box or (before.box if before else None)
            previous = self._previous(state, index) if rough is None else mask_logits(rough)
            if previous is None and last_box is None and not any(positive for _, _, positive in all_points):
                logits = torch.full(self.size, -LIMIT)  # negative clicks only: the label stays absent
            else:
                prompts = as_prompts(all_points, last_box, previous)
                self._embeddings.move_to(number)
                logits = self._predictor.logits(self._embeddings, number, index, prompts)
                if self.learner is not None:
                    pixels = self._embeddings.pixels(number)[0]
                    prompted_object = PromptedObject(pixels, logits, all_points, last_box, is_first=not attempts)
                    logits, attempt = self.learner.predict(self.labels.names[index], prompted_object)
                    attempts = (*attempts[:1], attempt)
            clipped = logits.clamp(-LIMIT, LIMIT)
            prompted = prompted_mask(all_points, last_box, clipped, self._predictor.backbone, attempts)
            return self._with_mask(number, index, state, prompted)

    def _after(self, learner: OnlineLearner | None, number: int, state: SliceState) -> OnlineLearner | None:
        """The learner that has also learned from the prompted labels of a slice."""
        for index, prompted in sorted(state.prompted.items()):
            if learner is not None and prompted.attempts:
                mask = torch.from_numpy(state.classes() == index + 1)
                corrected = CorrectedObject(self._embeddings.pixels(number)[0], prompted.attempts, mask)
                learner = learner.after(self.labels.names[index], corrected)
        return learner

    def _restored(self, saved: Saved) -> OnlineLearner | None:
        """The learner of a saved session, or else that of this one; None if this session has none."""
        if self.learner is None or saved.learner is None:
            return self.learner
        return self.learner.unpacked(saved.learner)

    def _previous(self, state: SliceState, index: int) -> Float[Tensor, "h w"] | None:
        """Logits of the previous mask, or of the proposed one; None if there is neither."""
        if prompted := state.prompted.get(index):
            logits = prompted.at_slice_size(self._predictor.backbone, self.size).clamp(-LIMIT, LIMIT)
            return logits if bool((logits > 0).any()) else None
        mask = state.classes() == index + 1
        return mask_logits(mask) if mask.any() else None

    def _with_mask(self, number: int, index: int, state: SliceState, prompted: PromptedMask) -> Change:
        new = state.with_mask(index, prompted, self._predictor.backbone)
        self._history.commit({number: new})
        classes = new.classes()
        changed = classes != state.classes()
        rows, columns = _extent(changed.any(axis=1)), _extent(changed.any(axis=0))
        return Change(number, self.labels.values[index], rows, columns, classes == index + 1)

    def _filled(self, numbers: Iterable[int], kind: DTypeLike, elsewhere: int = 0) -> NDArray[Any]:
        """Label values of these slices in an array of the scan's shape; in a file if it is large."""
        shape, axis = self.volume.geometry.shape, self.grid.axis
        slices_first = (shape[axis], *(length for place, length in enumerate(shape) if place != axis))
        array = np.moveaxis(zeros(slices_first, kind), 0, axis)  # so that each slice is written in one place
        if elsewhere:
            array[...] = elsewhere
        target = self.grid.of(array)
        with self._lock:
            for number in numbers:
                target[number] = self.classes(number)
        return array

    def _given_masks(self, index: int) -> dict[int, NDArray[np.bool_]]:
        """{slice: mask} of a label, on the accepted slices and on those with prompts for it."""
        states = enumerate(self._history.states)
        return {n: state.classes() == index + 1 for n, state in states if state.accepted or index in state.prompted}

    def _state(self, number: int) -> SliceState:
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise InputError(f"slice {number!r} is not a whole number; give one from 0 to {len(self) - 1}")
        if not 0 <= number < len(self):
            raise InputError(f"there is no slice {number}; this scan has slices 0 to {len(self) - 1}")
        return self._history.states[number]

    def _open(self, number: int) -> SliceState:
        state = self._state(number)
        if state.accepted:
            raise InputError(f"slice {number} is accepted; call reopen({number}) to change it")
        return state

    def _index(self, label: int | str) -> int:
        labels = self.labels.names if isinstance(label, str) else self.labels.values
        if label not in labels:
            raise LabelError(f"there is no label {label!r}; the labels are {self.labels.as_dict()}")
        return list(labels).index(label)

    def _sized(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not isinstance(mask, np.ndarray):
            raise InputError(f"a mask must be a NumPy array of bool, is a {type(mask).__name__}; use numpy.asarray")
        if mask.shape != self.size or mask.dtype != np.bool_:
            raise InputError(
                f"a mask of type {mask.dtype} and shape {mask.shape}; give a bool mask of the slice's size {self.size}"
            )
        return mask

    def _require_inside(self, points: Sequence[Sequence[float]]) -> None:
        height, width = self.size
        for x, y in points:
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise InputError(f"(x, y) = ({x:g}, {y:g}) is outside the slice of {width} by {height} pixels")


def _point(xy: Iterable[float], positive: bool) -> tuple[float, float, bool]:
    """The point with plain Python numbers."""
    x, y = _numbers(xy, "a point", "x, y")
    return x, y, bool(positive)


def _numbers(given: Iterable[float], what: str, form: str) -> tuple[float, ...]:
    """Plain Python numbers, as many as `form` names."""
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != form.count(",") + 1 or not all(map(math.isfinite, numbers)):
        raise InputError(f"{what} must be ({form}) in pixels, is {given!r}; give {form.count(',') + 1} finite numbers")
    return numbers


def _extent(line: NDArray[np.bool_]) -> tuple[int, int]:
    """The range (start, stop) from the first to the last True; (0, 0) if there is none."""
    places = np.flatnonzero(line)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
