"""What auxiliary networks have learned as a safetensors file. Reading it executes no code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load, save
from torch import Tensor

from handful.errors import DamagedFile
from handful.methods.auxiliary.network import AuxiliaryNet
from handful.methods.auxiliary.training import MOMENTS, WEIGHTS, AuxiliaryConfig, Example, Knowledge
from handful.methods.base import below
from handful.methods.learned import Learned

FORMAT = 1
NOTES = "notes"
"""Name of the tensor with the settings and the names of the labels, as the bytes of JSON."""


def pack(config: AuxiliaryConfig, of_label: Mapping[str, Knowledge]) -> bytes:
    """The content of the file."""
    settings = TypeAdapter(AuxiliaryConfig).dump_python(config, mode="json")
    labels = [
        {"name": name, "steps": one.steps, "examples": [len(examples) for examples in one.queue]}
        for name, one in of_label.items()
    ]
    notes = json.dumps({"format": FORMAT, "settings": settings, "labels": labels}).encode()
    tensors = {NOTES: torch.tensor(list(notes), dtype=torch.uint8)}
    for number, knowledge in enumerate(of_label.values()):
        tensors |= {f"{number}/{name}": tensor.contiguous() for name, tensor in _tensors_of(knowledge).items()}
    return save(tensors)


def unpack(content: bytes, source: str) -> tuple[AuxiliaryConfig, dict[str, Knowledge]]:
    """The settings and what was learned, by name of the label. Raises DamagedFile if `content` is anything else."""
    try:
        tensors = load(content)
        notes = json.loads(Learned(tensors).text(NOTES))
        if notes["format"] != FORMAT:
            raise ValueError(f"format {notes['format']}")
        config = TypeAdapter(AuxiliaryConfig).validate_python(notes["settings"])
        parts = enumerate(notes["labels"])
        return config, {
            str(label["name"]): _knowledge(below(str(number), tensors), label, config) for number, label in parts
        }
    except Exception as error:  # safetensors, JSON and pydantic raise errors of many classes for damaged content
        raise DamagedFile(f"{source} has no auxiliary network of handful ({error}); start without it") from error


def _tensors_of(knowledge: Knowledge) -> dict[str, Tensor]:
    examples = [example for examples in knowledge.queue for example in examples]
    scores = {"first": knowledge.first, "later": knowledge.later}
    return {
        **knowledge.tensors,
        "pixels": torch.stack([one.pixels for one in examples]),
        "backbone": torch.stack([one.backbone for one in examples]),
        "masks": torch.stack([one.mask for one in examples]),
        **{f"dice/{name}": torch.stack(list(dice)) for name, dice in scores.items() if dice},
    }


def _knowledge(tensors: dict[str, Tensor], label: Mapping[str, Any], config: AuxiliaryConfig) -> Knowledge:
    taken, shapes = Learned(tensors, s=config.side), AuxiliaryNet(config.channels, config.seed).state_dict()
    learned = {
        f"{kind}/{name}": taken.floats(f"{kind}/{name}", " ".join(map(str, tensor.shape)))
        for kind in ("weight", *MOMENTS)
        for name, tensor in shapes.items()
    }
    counts = [int(count) for count in label["examples"]]
    if not (0 < len(counts) <= config.queue and set(counts) <= {1, 2} and int(label["steps"]) > 0):
        raise ValueError(f"{counts} examples and {label['steps']} steps")
    pixels = taken.whole("pixels", "n 3 s s", high=255).to(torch.uint8)
    backbone = taken.floats("backbone", "n s s").half()
    masks = taken.tensors["masks"]
    if masks.dtype != torch.bool or masks.shape != backbone.shape or sum(counts) != len(pixels):
        raise ValueError(f"masks of shape {tuple(masks.shape)} for {sum(counts)} examples")
    examples = map(Example, pixels, backbone, masks)
    queue = tuple(tuple(next(examples) for _ in range(count)) for count in counts)
    first, later = (tuple(_scores(taken, f"dice/{name}", config.recent)) for name in ("first", "later"))
    return Knowledge(config, learned, int(label["steps"]), queue, first, later)


def _scores(taken: Learned, name: str, most: int) -> Iterator[Tensor]:
    if name in taken:
        dice = taken.floats(name, f"* {len(WEIGHTS)}", low=0, high=1)
        if len(dice) > most:
            raise ValueError(f"{len(dice)} scores")
        yield from dice
