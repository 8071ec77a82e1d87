"""The file for saving a session: an .npz archive of numbers and JSON. Reading it executes no code."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from handful.backbones.base import Backbone
from handful.data.slicing import Slicer
from handful.data.volume import Labels, Volume
from handful.errors import CheckpointError, DamagedFile, HandfulError
from handful.jobs.atomic import write_atomically
from handful.jobs.digests import digest_of
from handful.jobs.files import open_file
from handful.methods.online import Attempt
from handful.session.slice_state import PromptedMask, SliceState, compressed_classes

FORMAT = 4
STEP = "step-{:08d}.npz"
MOST_STEPS = 100
"""Files of steps in a folder, above which they are joined into one when the folder is opened."""
ARRAYS = ("notes", "numbers", "below", "top", "accepted", "logits", "bits", "attempts", "learner")
LEARNER = "learner-{:08d}.safetensors"
"""The learner after the step of that number; only the last one is kept."""
LEARNERS = "learner-*.safetensors"
"""All such files in a folder."""
Identity = Mapping[str, Any]
"""The scan, the labels, the slicer and the backbone that a state belongs to, as digests and plain values."""


@dataclass(frozen=True, eq=False)
class Saved:
    """The content of a file, or of a folder of steps."""

    states: Mapping[int, SliceState]
    """The states of some slices, by number."""
    learner: bytes | None = None
    """What the learner has learned, as the content of a safetensors file."""


def write_states(path: Path, saved: Saved, identity: Identity) -> None:
    """Write a file completely or not at all. No paths or names are stored but those in what was learned."""
    states = saved.states
    prompted = [(number, label, mask) for number, state in states.items() for label, mask in state.prompted.items()]
    notes = {
        "of": dict(identity),
        "prompted": [
            {
                "slice": number,
                "label": label,
                "points": mask.points,
                "box": mask.box,
                "attempts": [attempt.window for attempt in mask.attempts],
            }
            for number, label, mask in prompted
        ],
    }
    side = prompted[0][2].logits.shape[0] if prompted else 1
    attempts = [attempt for *_, mask in prompted for attempt in mask.attempts]
    shape = (2, *(attempts[0].backbone.shape if attempts else (1, 1)))
    content = io.BytesIO()
    np.savez_compressed(
        content,
        notes=np.frombuffer(json.dumps(notes).encode(), np.uint8),
        numbers=np.array(list(states), np.int64),
        below=np.stack([state.proposed() for state in states.values()]),
        top=np.stack([state.classes() for state in states.values()]),
        accepted=np.array([state.accepted for state in states.values()]),
        logits=np.stack([np.zeros((side, side), np.float16), *[mask.logits.numpy() for *_, mask in prompted]])[1:],
        bits=np.array([list(mask.bits) for *_, mask in prompted], np.uint8),
        attempts=np.stack(
            [np.zeros(shape, np.float16), *[np.stack([one.backbone.numpy(), one.learner.numpy()]) for one in attempts]]
        )[1:],
        learner=np.frombuffer(saved.learner or b"", np.uint8),
    )
    write_atomically(path, content.getvalue())


def read_states(path: Path, identity: Identity, count: int) -> Saved:
    """The content of a file of a scan with `count` slices.

    Raises InputError if it does not exist, DamagedFile if it is no such file, CheckpointError if it belongs to another
    scan, other labels, another slicer or another backbone.
    """
    open_file(path).close()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
        notes = json.loads(bytes(arrays["notes"]))
        _require_same(path, notes["of"], identity)
        states = _states(arrays, notes["prompted"])
        if not all(0 <= number < count for number in states):
            raise ValueError(f"slices {sorted(states)[:3]} of {count}")
        return Saved(states, arrays["learner"].tobytes() or None)
    except HandfulError:
        raise
    except Exception as error:  # NumPy and zipfile raise errors of any class for broken archives
        raise DamagedFile(f"{path} is not the state of a session ({error}); start a new session") from error


class StepFolder:
    """A folder with one file for every step of a session, so that nothing is lost when the process is killed."""

    def __init__(self, folder: Path, identity: Identity, count: int) -> None:
        self.folder, self.identity, self.count = folder, identity, count
        self._files = sorted(folder.glob("step-*.npz"))

    def read(self) -> Saved:
        """The latest state of every slice that a step has changed, and the learner. Raises as `read_states`."""
        states: dict[int, SliceState] = {}
        for file in self._files:
            states |= read_states(file, self.identity, self.count).states
        if len(self._files) > MOST_STEPS:
            outdated = list(self._files)
            self.write(Saved(states))
            for file in outdated:
                file.unlink()
            self._files = self._files[-1:]
        learners = []
        for file in self._learners():
            if _number(file) <= self._last:
                learners.append(file)
            else:
                file.unlink()  # its step was not taken
        return Saved(states, learners[-1].read_bytes() if learners else None)

    def write(self, step: Saved) -> None:
        """Write a step: the states that it has changed and, if it has changed, what was learned.

        The learner comes first, so that a step that was killed in between has not been taken.
        """
        number = self._last + 1
        if step.learner is not None:
            write_atomically(self.folder / LEARNER.format(number), step.learner)
        file = self.folder / STEP.format(number)
        write_states(file, Saved(step.states), self.identity)
        self._files.append(file)
        for outdated in self._learners() if step.learner is not None else ():
            if _number(outdated) != number:
                outdated.unlink()

    @property
    def _last(self) -> int:
        """The number of the last step."""
        return _number(self._files[-1]) if self._files else 0

    def _learners(self) -> list[Path]:
        return sorted(self.folder.glob(LEARNERS))


def _number(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _states(arrays: dict[str, Any], prompted: Sequence[dict[str, Any]]) -> dict[int, SliceState]:
    size = (int(arrays["top"].shape[1]), int(arrays["top"].shape[2]))
    masks: dict[int, dict[int, PromptedMask]] = {}
    attempts = iter(arrays["attempts"])
    for entry, logits, bits in zip(prompted, arrays["logits"], arrays["bits"], strict=True):
        points = tuple((float(x), float(y), bool(positive)) for x, y, positive in entry["points"])
        x0, y0, x1, y1 = entry["box"] or (0.0, 0.0, 0.0, 0.0)
        box = (float(x0), float(y0), float(x1), float(y1)) if entry["box"] else None
        tried = tuple(_attempts(entry["attempts"], attempts))
        mask = PromptedMask(points, box, torch.from_numpy(logits.copy()), bits.tobytes(), tried)
        masks.setdefault(int(entry["slice"]), {})[int(entry["label"])] = mask
    numbers, accepted = arrays["numbers"].tolist(), arrays["accepted"].tolist()
    rows = zip(numbers, arrays["below"], arrays["top"], accepted, strict=True)
    return {
        number: SliceState(size, compressed_classes(below), compressed_classes(top), masks.get(number, {}), accepted)
        for number, below, top, accepted in rows
    }


def _attempts(windows: Sequence[Sequence[int]], arrays: Iterator[Any]) -> Iterator[Attempt]:
    for top, bottom, left, right in windows:
        backbone, learner = torch.from_numpy(next(arrays).copy())
        yield Attempt((int(top), int(bottom), int(left), int(right)), backbone, learner)


def identity_of(volume: Volume, labels: Labels, slicer: Slicer, backbone: Backbone) -> Identity:
    """Identifies the scan, the labels, the slicer and the backbone that a state belongs to."""
    grid = f"{volume.array.dtype}{volume.array.shape}{volume.geometry.affine.tolist()}"
    return {
        "format": FORMAT,
        "scan": digest_of(grid, volume.array),
        "labels": {str(value): name for value, name in labels.as_dict().items()},
        "slicer": TypeAdapter(Slicer).dump_python(slicer, mode="json"),
        "backbone": backbone.digest(),
    }


def _require_same(path: Path, written: Mapping[str, Any], here: Identity) -> None:
    labels, known = list(here["labels"].items()), list(written["labels"].items())
    same = dict(here) | (
        {"labels": written["labels"]} if labels[: len(known)] == known else {}
    )  # later labels do no harm
    if other := [name for name in here if written[name] != same[name]]:
        raise CheckpointError(f"{path} was written with another {' and '.join(other)}; open the session with the same")
