"""One object in one scan, prompted voxel by voxel as nnInteractive's clients do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Num
from numpy.typing import NDArray

from handful.backbones.base import Backbone
from handful.data.slice_grid import SliceGrid, evenly_spaced
from handful.data.slicing import Slicer
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import InputError
from handful.session.session import Session, SessionConfig

LABEL = 1
ABSENT = 8
"""Slices in a row without the object beyond which it is not looked for; clients wait for a minute at most."""
STROKES = 8
"""Most slices that a prompt across slices is used on."""

Kind = Literal["point", "box", "scribble", "lasso"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Voxels that a person has marked as inside (positive) or outside of the object."""

    kind: Kind
    positive: bool
    corner: tuple[int, int, int]
    """The first voxel of `mask` in the scan."""
    mask: Bool[np.ndarray, "x y z"]


class ObjectSession:
    """One object in one scan, prompted voxel by voxel; all arrays have the client's order of axes."""

    def __init__(self, array: Num[np.ndarray, "c x y z"], spacing: Sequence[float], backbone: Backbone) -> None:
        """Raises UnsupportedInput for other than 1 or 3 channels, InputError without a positive spacing."""
        volume = Volume(array, geometry_of(array.shape[1:], spacing))
        self._backbone, self._session = backbone, _session(volume, backbone)
        self._waiting: list[Prompt] = []
        self.sent = np.zeros(volume.geometry.shape, bool)
        """The mask that the client has."""
        self.type: np.dtype[Any] | None = None
        """Type of the client's mask; None before it has one, and nothing is sent then."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._session.volume.geometry.shape

    def set_target(self, shape: Sequence[int], kind: str) -> None:
        """The client has a new, empty mask of this type. Raises InputError unless it has the scan's shape."""
        if tuple(shape) != self.shape:
            raise InputError(f"a target buffer of shape {tuple(shape)} for a scan of {self.shape} voxels")
        if kind not in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))):
            raise InputError(f"a target buffer of type {kind!r}; choose bool or a type of whole numbers")
        self.type, self.sent = np.dtype(kind), np.zeros(self.shape, bool)

    def prompt(self, prompt: Prompt, run: bool) -> bool:
        """Segment with one more prompt, now or with the next one. Returns whether a prediction was made."""
        self._waiting.append(prompt)
        return self.predict() if run else False

    def predict(self) -> bool:
        """Segment with all waiting prompts; one step for undo. Returns whether there were any."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return False
        with self._session.one_step():
            for prompt in waiting:
                _carry_out(self._session, prompt)
            if any(self._session.mask_of(number, LABEL).any() for number in self._session.prompted):
                if len(self._session) > 1:
                    self._session.propagate(stop_after=ABSENT)
            else:
                self._session.propose_map(self._label_map(np.zeros(self.shape, bool)))
        return True

    def begin_with(self, mask: Bool[np.ndarray, "x y z"]) -> None:
        """A mask of the object to correct; it replaces all prompts. One step for undo.

        From then on a prompt changes only the slices that it is on, so that the rest of the mask stays as it is.
        nnInteractive predicts a block of voxels again, with the mask as an input of its network. handful's models
        segment slice by slice; carrying a correction to the next slices with them made masks worse.
        """
        self._waiting = []
        slices = self._session.grid.of(mask)
        with self._session.one_step():
            for number in range(len(self._session)):
                self._session.paint(number, LABEL, np.ascontiguousarray(slices[number]))
        self.sent = mask.copy()

    def undo(self) -> bool:
        """Take back the last prompt, or the prompts of the last prediction. Returns whether there was one."""
        if self._waiting:
            self._waiting.pop()
            return True
        return bool(self._session.undo())

    def reset(self) -> None:
        """Forget all prompts and the mask, also that of the client."""
        self.close()
        self._waiting, self._session = [], _session(self._session.volume, self._backbone)
        self.sent = np.zeros(self.shape, bool)

    def changes(self) -> tuple[list[list[int]], NDArray[np.generic]] | None:
        """The box of voxels in which the mask differs from the client's, and the mask in it; None without a change.

        The box is [[start, stop], …] along the three axes. The client has the mask then.
        """
        mask = self._session.export().array > 0
        changed = mask != self.sent
        if self.type is None or not changed.any():
            return None
        box = []
        for axis in range(3):
            places = np.flatnonzero(changed.any(axis=tuple(other for other in range(3) if other != axis)))
            box.append([int(places[0]), int(places[-1]) + 1])
        self.sent = mask
        return box, mask[tuple(slice(*edges) for edges in box)].astype(self.type)

    def close(self) -> None:
        self._session.close()

    def _label_map(self, mask: Bool[np.ndarray, "x y z"]) -> LabelMap:
        return LabelMap(mask.astype(np.int16) * LABEL, self._session.volume.geometry, self._session.labels)


def _session(volume: Volume, backbone: Backbone) -> Session:
    quiet = SessionConfig(background=False)
    return Session(volume, backbone, Labels((LABEL,), ("object",)), Slicer(plane="axial"), quiet)


def geometry_of(shape: Sequence[int], spacing: Sequence[float]) -> Geometry:
    """A grid whose axial slices lie across the largest spacing, or else the first axis, as viewers order scans.

    The protocol does not tell where the patient is, so the other two axes are taken as a DICOM image has them.
    """
    if not all(math.isfinite(one) and 1e-6 < one < 1e6 for one in spacing):
        raise InputError(f"a spacing of {list(spacing)}; give three positive numbers in mm")
    across = int(np.argmax(spacing)) if max(spacing) > 1.1 * sorted(spacing)[1] else 0
    if 1 in shape:
        across = list(shape).index(1)
    rows, columns = (1, 0) if across == 2 else [axis for axis in range(3) if axis != across]
    affine = np.zeros((4, 4))
    affine[2, across], affine[1, rows], affine[0, columns] = spacing[across], -spacing[rows], -spacing[columns]
    affine[3, 3] = 1
    x, y, z = shape
    return Geometry((x, y, z), affine)


def _carry_out(session: Session, prompt: Prompt) -> None:
    """A prompt on one slice as a click, box, scribble or mask; across slices as clicks and scribbles."""
    local, (first, top, left) = _on_slices(session.grid, prompt)
    touched = np.flatnonzero(local.any(axis=(1, 2)))
    if not len(touched):
        raise InputError("an empty prompt; mark at least one voxel")
    number = first + int(touched[0])
    rows, columns = slice(top, top + local.shape[1]), slice(left, left + local.shape[2])
    if len(touched) == 1 and prompt.kind in ("box", "lasso"):
        area = np.zeros(session.size, bool)
        area[rows, columns] = local[touched[0]]
        if not prompt.positive:
            session.paint(number, LABEL, session.mask_of(number, LABEL) & ~area)
        elif prompt.kind == "lasso":
            session.mask(number, LABEL, area)
        else:
            box = (left, top, left + local.shape[2] - 1, top + local.shape[1] - 1)
            session.box(number, LABEL, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))
        return
    chosen = evenly_spaced(len(touched), STROKES)
    if prompt.kind == "box" and len(touched) > 2:  # the object may be absent from the ends of its box
        chosen = evenly_spaced(len(touched), STROKES + 2)[1:-1]
    for place in touched[chosen]:
        points = np.argwhere(local[place])
        if prompt.kind in ("box", "lasso"):
            points = points[[len(points) // 2]]
        xy = [(float(left + column), float(top + row)) for row, column in points]
        session.scribble(first + int(place), LABEL, xy, prompt.positive)


def _on_slices(grid: SliceGrid, prompt: Prompt) -> tuple[Bool[np.ndarray, "n h w"], tuple[int, int, int]]:
    """The voxels of a prompt as slices, and the number, row and column at which they start."""
    x, y, z = prompt.corner
    a, b, c = prompt.mask.shape
    ends = grid.place_of(prompt.corner), grid.place_of((x + a - 1, y + b - 1, z + c - 1))
    number, row, column = (min(pair) for pair in zip(*ends, strict=True))
    local = SliceGrid(replace(grid.geometry, shape=(a, b, c)), grid.plane).of(prompt.mask)
    return local, (number, row, column)
