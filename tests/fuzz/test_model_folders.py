"""Folders of models with random damage, and with what a stranger may put there: each is refused by name, or predicts.

MODELS is the number of folders; `make fuzz` sets a large one, and fits more methods. A folder that can be loaded must
predict without any error, in 3 GiB and 30 seconds: whatever its files state is checked when they are opened.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from fuzz.workers import Trial, outcomes
from handful.backbones.base import Backbone
from handful.checkpoint.model import load, open_model, save
from handful.data.volume import Volume
from handful.errors import CheckpointError
from handful.jobs.digests import digest_of_file
from handful.methods.catalog import build_method
from phantoms import phantom, support_set

BUDGET, FIRST = int(os.environ.get("MODELS", "30")), int(os.environ.get("FUZZ_FROM", "0"))
SMALL = {"train.iterations": 1, "batch": 2}
NET = SMALL | {"encoder": "none", "channels": 4, "side": 32}
MODELS: dict[str, dict[str, Any]] = {
    "nearest-slice": {},
    "fate": {"roi_margin": "none"},
    "unet": {**NET, "seeds": 3},
    "lora": {"rank": 2, **SMALL},
    "zero-shot": {"roi_margin": 1.5},
    "few-shot-prompts": {"views": 1, **SMALL},
    "interactive": {"rounds": 1, **SMALL},
}
MORE: dict[str, dict[str, Any]] = {
    "auto": {f"unet.{key}": value for key, value in NET.items()} | {"check": False},
    "auto-sam": {"views": 1, "head": "cnn", **SMALL},
    "auto-sam-unet": {"views": 1, **SMALL},
    "know-sam": NET,
    "self-training": {"initial": "none", **NET},
    "volume-adapter": {"rank": 2, "width": 2, "depth": 3, **SMALL},
    "ensemble": {f"auto_sam_unet.{key}": value for key, value in ({"views": 1} | SMALL).items()}
    | {f"unet.{key}": value for key, value in NET.items()},
}
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**9, 10**30, 1.5, float("nan"), "", "none", "²", "../../etc", "a" * 5000, [], {}),
    *([10**9], {"a": 10**9}, "attacker/model", "\x1b[2J", "x,y", 2**16, 2**20, "auto"),
)
ODD_NUMBERS = (0, -1, 1, 2, 7, 255, 2**15, 2**20, 2**31, 2**62, -(2**62))
ODD_FLOATS = (0.0, -1.0, 0.5, 1e30, -1e30, 1e-30, float("nan"), float("inf"))

WAYS_OUT = ("again", "update", "give")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_models.tiny_sam2_video(side=64)


@pytest.fixture(scope="module")
def models(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, settings in (MODELS | (MORE if BUDGET > 100 else {})).items():
        method = build_method(name, settings)
        segmenter = method.fit(support_set(1), backbone)
        save(segmenter, folder / name, method_name=name, method=method, provenance={"support": [], "decisions": []})
    return folder


def test_damaged_and_crafted_model_folders_are_refused_by_name_or_predict(
    models: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*arguments: object) -> None:
        raise AssertionError("no connection may be made")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("builtins.input", connect)
    image, names = phantom(3)[0], sorted(one.name for one in models.iterdir())
    changes = [_bytes_of_record, _value_of_record, _bytes_of_weights, _shape, _values, _no_tensor, _extra_tensor]

    def damaged(number: int) -> Trial:
        rng = random.Random(number)
        name, change = rng.choice(names), rng.choice(changes)

        def read(folder: Path) -> str:
            shutil.copytree(models / name, folder / "model")
            change(folder / "model", rng)
            return _outcome(folder / "model", backbone, image)

        return f"{name}: {change.__name__}", read

    counts = outcomes("model folders", range(FIRST, FIRST + BUDGET), damaged)
    assert counts["refused"] > BUDGET // 3


def _outcome(folder: Path, backbone: Backbone, image: Volume) -> str:
    try:
        segmenter = load(folder, backbone)
        open_model(folder).content()
    except CheckpointError as error:
        if str(folder) not in str(error) or not any(way in str(error) for way in WAYS_OUT):
            return f"refused without the folder or a way out: {error}"
        return "refused"
    except Exception as error:
        return f"raw {type(error).__name__} when loaded: {error}"
    try:
        segmenter.predict(image)
    except Exception as error:
        return f"loaded, but {type(error).__name__} in a prediction: {error}"
    return "no checksum could tell"


def _bytes_of_record(folder: Path, rng: random.Random) -> None:
    _damage(folder / "segmenter.json", rng)


def _bytes_of_weights(folder: Path, rng: random.Random) -> None:
    _damage(folder / "weights.safetensors", rng)
    if rng.random() < 0.5:
        _sign(folder)


def _value_of_record(folder: Path, rng: random.Random) -> None:
    """Another value somewhere in the record."""
    record = json.loads((folder / "segmenter.json").read_text("utf-8"))
    holder, key = rng.choice(list(_places(record)))
    holder[key] = rng.choice(ODD_VALUES)
    (folder / "segmenter.json").write_text(json.dumps(record), "utf-8")


def _shape(folder: Path, rng: random.Random) -> None:
    """One tensor of another shape or number format."""
    tensors = load_file(folder / "weights.safetensors")
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    ways = [
        lambda: tensor[..., None].clone(),
        lambda: tensor.flatten()[:1].clone(),
        lambda: tensor[:0].clone() if tensor.ndim else tensor[None],
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor.double(),
        lambda: tensor.double() * 1e30,
        lambda: tensor.int(),
    ]
    tensors[name] = rng.choice(ways)()
    _write(folder, tensors)


def _values(folder: Path, rng: random.Random) -> None:
    """Some or all numbers of one tensor are others; tensors of few or whole numbers are changed more often."""
    tensors = load_file(folder / "weights.safetensors")
    special = [name for name, tensor in tensors.items() if not tensor.is_floating_point() or tensor.numel() < 8]
    name = rng.choice(sorted(special if special and rng.random() < 0.7 else tensors))
    tensor = tensors[name]
    flat = tensor.flatten().clone()
    odd = rng.choice(ODD_FLOATS if tensor.is_floating_point() else ODD_NUMBERS)
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        odd = max(torch.iinfo(tensor.dtype).min, min(torch.iinfo(tensor.dtype).max, int(odd)))
    for place in range(len(flat)) if rng.random() < 0.3 else [rng.randrange(max(1, len(flat)))]:
        if len(flat):
            flat[place] = odd
    tensors[name] = flat.reshape(tensor.shape)
    _write(folder, tensors)


def _no_tensor(folder: Path, rng: random.Random) -> None:
    tensors = load_file(folder / "weights.safetensors")
    del tensors[rng.choice(sorted(tensors))]
    _write(folder, tensors)


def _extra_tensor(folder: Path, rng: random.Random) -> None:
    _write(folder, load_file(folder / "weights.safetensors") | {"extra": torch.zeros(3)})


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "weights.safetensors")
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
