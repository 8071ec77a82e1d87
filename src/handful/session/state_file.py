"""The file for saving a session: an .npz archive of numbers and JSON. Reading it executes no code."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
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
from handful.session.slice_state import PromptedMask, SliceState, compressed_classes

FORMAT = 2


def write_state(
    path: Path, states: Sequence[SliceState], volume: Volume, labels: Labels, slicer: Slicer, backbone: Backbone
) -> None:
    """Write the states and digests of scan and backbone, completely or not at all. No paths or names are stored."""
    prompted = [(number, label, mask) for number, state in enumerate(states) for label, mask in state.prompted.items()]
    notes = {
        "of": _identity(volume, labels, slicer, backbone),
        "prompted": [
            {"slice": number, "label": label, "points": mask.points, "box": mask.box}
            for number, label, mask in prompted
        ],
    }
    side = backbone.mask_side
    content = io.BytesIO()
    np.savez_compressed(
        content,
        notes=np.frombuffer(json.dumps(notes).encode(), np.uint8),
        below=np.stack([state.proposed() for state in states]),
        top=np.stack([state.classes() for state in states]),
        accepted=np.array([state.accepted for state in states]),
        logits=np.stack([np.zeros((side, side), np.float16), *[mask.logits.numpy() for *_, mask in prompted]])[1:],
        bits=np.array([list(mask.bits) for *_, mask in prompted], np.uint8),
    )
    write_atomically(path, content.getvalue())


def read_state(path: Path, volume: Volume, labels: Labels, slicer: Slicer, backbone: Backbone) -> list[SliceState]:
    """The states in a file.

    Raises InputError if it does not exist, DamagedFile if it is no such file, CheckpointError if it belongs to another
    scan, other labels, another slicer or another backbone.
    """
    open_file(path).close()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("notes", "below", "top", "accepted", "logits", "bits")}
        notes = json.loads(bytes(arrays["notes"]))
        _require_same(path, notes["of"], _identity(volume, labels, slicer, backbone))
        return _states(arrays, notes["prompted"])
    except HandfulError:
        raise
    except Exception as error:  # NumPy and zipfile raise errors of any class for broken archives
        raise DamagedFile(f"{path} is not the state of a session ({error}); start a new session") from error


def _states(arrays: dict[str, Any], prompted: Sequence[dict[str, Any]]) -> list[SliceState]:
    size = (int(arrays["top"].shape[1]), int(arrays["top"].shape[2]))
    masks: dict[int, dict[int, PromptedMask]] = {}
    for entry, logits, bits in zip(prompted, arrays["logits"], arrays["bits"], strict=True):
        points = tuple((float(x), float(y), bool(positive)) for x, y, positive in entry["points"])
        x0, y0, x1, y1 = entry["box"] or (0.0, 0.0, 0.0, 0.0)
        box = (float(x0), float(y0), float(x1), float(y1)) if entry["box"] else None
        mask = PromptedMask(points, box, torch.from_numpy(logits.copy()), bits.tobytes())
        masks.setdefault(int(entry["slice"]), {})[int(entry["label"])] = mask
    rows = zip(arrays["below"], arrays["top"], arrays["accepted"].tolist(), strict=True)
    return [
        SliceState(size, compressed_classes(below), compressed_classes(top), masks.get(number, {}), accepted)
        for number, (below, top, accepted) in enumerate(rows)
    ]


def _identity(volume: Volume, labels: Labels, slicer: Slicer, backbone: Backbone) -> dict[str, Any]:
    """Identifies the scan, the labels, the slicer and the backbone that a state belongs to."""
    grid = f"{volume.array.dtype}{volume.array.shape}{volume.geometry.affine.tolist()}"
    return {
        "format": FORMAT,
        "scan": digest_of(grid, volume.array),
        "labels": {str(value): name for value, name in labels.as_dict().items()},
        "slicer": TypeAdapter(Slicer).dump_python(slicer, mode="json"),
        "backbone": backbone.digest(),
    }


def _require_same(path: Path, written: dict[str, Any], here: dict[str, Any]) -> None:
    if other := [name for name in here if written[name] != here[name]]:
        raise CheckpointError(f"{path} was written with another {' and '.join(other)}; open the session with the same")
