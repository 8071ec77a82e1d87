"""The recipe that makes handful-tiny: episodes of synthetic anatomy in, a folder that Sam2VideoModel loads out."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import Sam2VideoModel

from handful.atomic import write_atomically
from handful.backbones.catalog import load_backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import SettingsError
from handful.pretraining.architecture import initialise, tiny_config
from handful.pretraining.skills import Batch, practise
from handful.synthesis.episodes import random_episode
from handful.tuning.loop import TrainConfig, train
from handful.tuning.run import Run


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How handful-tiny is made."""

    side: int = 128
    """Pixels along the square slices; begin small, then go on from the result at 256."""
    episodes: int = 3
    """Episodes a step, of `subjects` slices each."""
    subjects: int = 4
    """Individuals an episode shows; each is the query once, with one to three of the others as support."""
    targets: int = 3
    """Structures to find in each episode."""
    matching: int = 1000
    """Steps from noise in which only the encoder learns, by matching structures between subjects."""
    start: Path | None = None
    """Folder of weights to go on from, of any side; None starts from noise."""
    train: TrainConfig = TrainConfig(iterations=4000, learning_rate=6e-4, weight_decay=0.02, ema=0.998)
    """Length, learning rate, seed."""


def pretrain(config: PretrainConfig, out: Path, run: Run | None = None) -> Path:
    """Trains and writes `out` (config.json, model.safetensors in half precision, metrics.jsonl, curves.png).

    A killed run of the same config goes on from `run.scratch`, which is removed at the end. Returns `out`.
    """
    run = run or Run(scratch=out / "partial")
    scratch = run.scratch and run.scratch / _fingerprint(config)
    out.mkdir(parents=True, exist_ok=True)
    if not (scratch and scratch.exists()):  # curves of another run do not belong to this one
        (out / "metrics.jsonl").unlink(missing_ok=True)
    torch.manual_seed(config.train.seed)
    backbone = Sam2VideoBackbone(_new_model(config), "pretraining")
    backbone.model.requires_grad_(True)
    backbone.model.no_memory_positional_encoding.requires_grad_(False)  # no path of SAM 2 uses it
    log = _Log(out / "metrics.jsonl")
    matching = config.matching if config.start is None else 0

    def loss(step: int, rng: Generator) -> Tensor:
        skills = practise(backbone, make_batch(config, rng), rng, only_match=step < matching)
        log.add(step, {name: (float(s.loss.detach()), s.dice) for name, s in skills.items()})
        return torch.stack([skill.loss for skill in skills.values()]).sum()

    backbone.model.train()
    train(backbone.model, loss, config.train, replace(run, scratch=scratch))
    backbone.model.eval()
    save_half(backbone.model, out)
    log.draw(out / "curves.png")
    if run.scratch:
        shutil.rmtree(run.scratch, ignore_errors=True)
    return out


def make_batch(config: PretrainConfig, rng: Generator) -> Batch:
    """Fresh episodes, grey ones repeated to three channels so that colour ones may share the batch."""
    episodes = [random_episode(config.subjects, config.targets, config.side, rng) for _ in range(config.episodes)]
    return Batch(
        torch.cat([e.images.expand(-1, 3, -1, -1) for e in episodes]),
        torch.cat([e.labels for e in episodes]),
        torch.cat([e.masks for e in episodes]),
        torch.arange(config.episodes).repeat_interleave(config.subjects),
    )


def _fingerprint(config: PretrainConfig) -> str:
    settings = json.dumps(asdict(config), default=str, sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def save_half(model: Sam2VideoModel, folder: Path) -> None:
    """Writes a model as transformers does, in half precision, without touching the one in memory."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)


def _new_model(config: PretrainConfig) -> Sam2VideoModel:
    model = Sam2VideoModel(tiny_config(config.side))
    if config.start is None:
        initialise(model)
    else:
        start = load_backbone(config.start)
        if not isinstance(start, Sam2VideoBackbone):
            raise SettingsError(f"{config.start} holds no SAM 2 video model to go on from; name a folder pretrain made")
        model.load_state_dict(start.model.state_dict())
    return model


class _Log:
    """Mean loss and Dice of each skill over every 25 steps, as lines of JSON and as a picture."""

    every = 25

    def __init__(self, path: Path) -> None:
        self.path = path
        self.window: list[dict[str, tuple[float, float]]] = []

    def add(self, step: int, skills: dict[str, tuple[float, float]]) -> None:
        self.window.append(skills)
        if (step + 1) % self.every:
            return
        row: dict[str, float] = {"step": step + 1}
        for name in sorted({n for one in self.window for n in one}):
            values = [one[name] for one in self.window if name in one]
            row[f"{name}_loss"] = round(sum(v[0] for v in values) / len(values), 4)
            row[f"{name}_dice"] = round(sum(v[1] for v in values) / len(values), 4)
        self.window.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def draw(self, picture: Path) -> None:
        if not self.path.exists():
            return
        from matplotlib.figure import Figure

        rows = {r["step"]: r for r in map(json.loads, self.path.read_text(encoding="utf-8").splitlines())}
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in ("box", "points", "correction", "memory", "tokens", "match"):
            points = [(step, row[f"{name}_dice"]) for step, row in sorted(rows.items()) if f"{name}_dice" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="step", ylabel="Dice on fresh synthetic episodes (match: accuracy)", ylim=(0, 1))
        axes.legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_atomically(picture, content.getvalue())
