"""Folders of models with random damage, and with what a stranger may put there: each is refused by name, or harmless.

FUZZ is the number of folders; `make fuzz` sets a large one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from handful.backbones.base import Backbone
from handful.checkpoint import load, save
from handful.data.volume import Volume
from handful.errors import CheckpointError, HandfulError
from handful.jobs.digests import digest_of_file
from handful.methods.catalog import build_method
from phantoms import phantom, support_set

BUDGET = int(os.environ.get("FUZZ", "20"))
MODELS: dict[str, dict[str, Any]] = {
    "nearest-slice": {},
    "fate": {"roi_margin": "none"},
    "unet": {"encoder": "none", "channels": 4, "side": 32, "train.iterations": 1, "batch": 1, "seeds": 3},
    "lora": {"rank": 2, "train.iterations": 1, "batch": 1},
    "zero-shot": {},
}
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**9, 10**30, 1.5, float("nan"), "", "none", "²", "../../etc", "a" * 5000, [], {}),
    *([10**9], {"a": 10**9}, "attacker/model", "\x1b[2J", "x,y"),
)

WAYS_OUT = ("again", "update", "give")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam2_video(side=64)


@pytest.fixture(scope="module")
def models(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, settings in MODELS.items():
        method = build_method(name, settings)
        segmenter = method.fit(support_set(1), backbone)
        save(segmenter, folder / name, method_name=name, method=method, provenance={"support": [], "decisions": []})
    return folder


def test_damaged_and_crafted_model_folders_are_refused_by_name_or_predict(
    models: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*arguments: object) -> None:
        raise AssertionError("no connection may be made")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("builtins.input", connect)
    image = phantom(3)[0]
    for number in range(BUDGET):
        rng = random.Random(number)
        name = rng.choice(sorted(MODELS))
        folder = tmp_path / "model"
        shutil.copytree(models / name, folder)
        change = rng.choice([_bytes_of_record, _value_of_record, _bytes_of_weights, _tensor, _no_tensor, _extra_tensor])
        change(folder, rng)
        message = _outcome(folder, backbone, image)
        assert message is None or str(folder) in message, f"{number}: {name}, {change.__name__}: {message}"
        assert message is None or any(way in message for way in WAYS_OUT), f"{number}: {message}"
        shutil.rmtree(folder)


def _outcome(folder: Path, backbone: Backbone, image: Volume) -> str | None:
    """The message with which the folder is refused; None if it predicts."""
    try:
        segmenter = load(folder, backbone)
    except CheckpointError as error:
        return str(error)
    with suppress(ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError, HandfulError):
        segmenter.predict(image)  # whose errors handful predict lists for the case
    return None


def _bytes_of_record(folder: Path, rng: random.Random) -> None:
    _damage(folder / "segmenter.json", rng)


def _bytes_of_weights(folder: Path, rng: random.Random) -> None:
    _damage(folder / "weights.safetensors", rng)
    if rng.random() < 0.5:
        _sign(folder)


def _value_of_record(folder: Path, rng: random.Random) -> None:
    """Another value somewhere in the record."""
    record = json.loads((folder / "segmenter.json").read_text("utf-8"))
    places = list(_places(record))
    holder, key = rng.choice(places)
    holder[key] = rng.choice(ODD_VALUES)
    (folder / "segmenter.json").write_text(json.dumps(record), "utf-8")


def _tensor(folder: Path, rng: random.Random) -> None:
    """One tensor with other values or of another shape."""
    tensors = load_file(folder / "weights.safetensors")
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    tensors[name] = rng.choice([tensor[..., None].clone(), tensor.flatten()[:1].clone(), tensor.double() * 1e30])
    save_file(tensors, folder / "weights.safetensors")
    _sign(folder)


def _no_tensor(folder: Path, rng: random.Random) -> None:
    tensors = load_file(folder / "weights.safetensors")
    del tensors[rng.choice(sorted(tensors))]
    save_file(tensors, folder / "weights.safetensors")
    _sign(folder)


def _extra_tensor(folder: Path, rng: random.Random) -> None:
    tensors = load_file(folder / "weights.safetensors")
    save_file(tensors | {"extra": torch.zeros(3)}, folder / "weights.safetensors")
    _sign(folder)


def _sign(folder: Path) -> None:
    """Give the record the digest of the weights, as a stranger can."""
    record = json.loads((folder / "segmenter.json").read_text("utf-8"))
    record["weights_sha256"] = digest_of_file(folder / "weights.safetensors")
    (folder / "segmenter.json").write_text(json.dumps(record), "utf-8")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _damage(path: Path, rng: random.Random) -> None:
    """A flipped byte, a cut, an insertion or a run of zeros."""
    content = bytearray(path.read_bytes())
    place = min(len(content) - 1, int(np.exp(rng.uniform(0, np.log(len(content))))))
    kind = rng.randrange(4)
    if kind == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place:place] = rng.randbytes(rng.randrange(1, 20))
    else:
        content[place : place + 8] = bytes(len(content[place : place + 8]))
    path.write_bytes(content)
