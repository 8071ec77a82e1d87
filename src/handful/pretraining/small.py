"""Pre-training of handful-small on the wide synthetic world, from an encoder that was trained on ImageNet."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import Sam2VideoModel

from handful.backbones.base import ImageEmbeddings
from handful.backbones.catalog import load_backbone
from handful.backbones.efficientnet import EfficientNetLite, imagenet_encoder
from handful.backbones.names import require_side
from handful.backbones.small import SmallBackbone, SmallShape, TrunkEncoder, load_small, save_small, small_model
from handful.errors import SettingsError
from handful.jobs.atomic import write_atomically
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES
from handful.jobs.precision import computing_in
from handful.jobs.progress import Run
from handful.pretraining.architecture import initialise
from handful.pretraining.head_start import take_head, unlike
from handful.pretraining.output import fingerprint, prepare_folder, write_note
from handful.pretraining.pretrain import Log, batch_of, require_episodes
from handful.pretraining.tasks import REPLAYED, Batch, Task, part_step, replay
from handful.pretraining.validation import validate
from handful.synthesis.episodes import random_episode
from handful.synthesis.worlds import WORLDS
from handful.tuning.loop import TrainConfig, train

TRUNK = "vision_encoder.trunk"
"""Start of the names of the parameters that were trained on ImageNet."""
ALIGNMENT_SEED = 500_000
"""Number of the first episode of the alignment; the training has those from 0."""
STOP = "STOP"
"""File in the output folder that ends a training early."""


@dataclass(frozen=True, kw_only=True)
class SmallConfig:
    """Settings of the pre-training of handful-small."""

    shape: SmallShape = SmallShape()
    """Widths of the model."""
    sides: tuple[int, ...] = (128, 192, 256)
    """Pixels along the slices; each full step takes one of them. The last one is that of the finished model."""
    shares: tuple[float, ...] = (0.5, 0.3, 0.2)
    """How often each side is taken."""
    world: str = "wide"
    """One of WORLDS."""
    subjects: tuple[int, ...] = (3, 3, 2)
    """Subjects per episode at each side, each with `slices` neighbouring slices."""
    slices: int = 3
    """Neighbouring slices per subject."""
    crowd: float = 0.4
    """Share of the steps whose episode has `subjects` × `slices` subjects with one slice each."""
    targets: int = 2
    """Target structures per episode."""
    rehearsals: int = 3
    """Decoder-only steps after each full step, on the same slices."""
    trunk_rate: float = 0.15
    """Learning rate of the ImageNet encoder, relative to that of the other parts."""
    keep: float = 0.1
    """Weight of the term that keeps the features of the ImageNet encoder near those it started with."""
    start: Path | None = None
    """Folder of weights to continue from; None starts from ImageNet's encoder and the head of handful-tiny."""
    alignment: TrainConfig | None = TrainConfig(iterations=1500, learning_rate=2e-3, weight_decay=0.02)
    """The training before, of the encoder alone, that makes its features like handful-tiny's; None starts with a random
    head. Weights of `start` have had it."""
    validate_every: int = 2000
    """Steps between validations; the moving average of the weights is written at each of them."""
    validation_episodes: int = 24
    """Synthetic episodes of each validation, the same ones every time."""
    train: TrainConfig = TrainConfig(
        iterations=24_000, learning_rate=5e-4, weight_decay=0.02, warmup=0.01, schedule="constant", ema=0.999
    )
    """Number of steps, learning rate, precision, seed and other settings of the training loop."""

    def __post_init__(self) -> None:
        if not len(self.sides) == len(self.shares) == len(self.subjects) > 0:
            raise SettingsError(
                f"sides, shares and subjects must be equally many, got {self.sides}, {self.shares}, {self.subjects}"
            )
        for side, subjects in zip(self.sides, self.subjects, strict=True):
            require_side(side)
            require_episodes(subjects, self.slices, self.targets)
        if self.rehearsals < 0 or self.validate_every < 1:
            raise SettingsError(
                "rehearsals must be 0 or more and validate_every 1 or more, got "
                f"{self.rehearsals} and {self.validate_every}"
            )
        if self.world not in WORLDS:
            raise SettingsError(f"world must be one of {', '.join(WORLDS)}, got {self.world!r}")
        if not self.train.ema:
            raise SettingsError("ema must be above 0, such as 0.999: the moving average is what is written")


def pretrain_small(config: SmallConfig, out: Path, run: Run | None = None, overwrite: bool = False) -> bool:
    """Train handful-small and write it to the folder `out`; return False if it was already there, finished.

    The folder holds config.json and model.safetensors (half precision, the moving average of the weights, rewritten at
    every validation), metrics.jsonl (training) and validation.jsonl (fixed synthetic episodes). A killed run with the
    same config continues from `run.scratch`, which is removed at the end.

    A file named STOP in `out` ends the training early, with these files if steps were made, and is then removed; the
    same call continues the training.

    Raises:
        SettingsError: `start` holds weights of another shape.
        CheckpointError: The package with ImageNet's weights is not installed.
        InputError: `out` contains another backbone and `overwrite` is not set.
        BusyError: Another process trains into `out`.
    """
    run = run or Run(scratch=out / "partial")
    with locked(out / NOTES, remove_empty=True):
        own = fingerprint(config, out)
        if not prepare_folder(out, own, overwrite):
            return False
        if _train(config, out, replace(run, scratch=run.scratch and run.scratch / own)):
            write_note(out, own, finished=True)
            if run.scratch:
                shutil.rmtree(run.scratch, ignore_errors=True)
        (out / STOP).unlink(missing_ok=True)
    return True


def _train(config: SmallConfig, out: Path, run: Run) -> bool:
    """Train until the end or until there is a file STOP; return whether all steps are made."""
    torch.manual_seed(config.train.seed)
    backbones = _backbones(config)
    main = backbones[config.sides[-1]].model
    if config.alignment and not config.start and not _align(config, config.alignment, backbones, out, run):
        return False
    teacher = SmallBackbone(copy.deepcopy(main), "average")
    for backbone in backbones.values():
        backbone.model.requires_grad_(True).train()
        backbone.model.no_memory_positional_encoding.requires_grad_(False)  # no path of SAM 2 uses it
    steps = _Steps(config, backbones)
    log = Log(out / "metrics.jsonl", min(200, config.train.steps), run.scratch)
    made = False

    def loss(step: int, rng: Generator) -> Tensor:
        nonlocal made
        if step % config.validate_every == 0:
            _record(config, teacher, step, out)
        tasks = steps(step, rng)
        log.add(step, tasks)
        made = True
        return torch.stack([task.loss for task in tasks.values()]).sum()

    history = train(main, loss, config.train, run, _stop(out), {TRUNK: config.trunk_rate}, teacher.model)
    reached = len(history.losses)
    finished = reached == config.train.steps
    if finished or made:
        _record(config, teacher, reached, out)
        log.plot(out / "curves.png")
    return finished


def _stop(out: Path) -> Callable[[int], bool]:
    """Return the function that ends a training when there is a file STOP."""
    return lambda step: (out / STOP).exists()


def _align(
    config: SmallConfig, settings: TrainConfig, backbones: dict[int, SmallBackbone], out: Path, run: Run
) -> bool:
    """Give the model handful-tiny's head, and train its encoder and pyramid to give features like handful-tiny's.

    The result goes through a file, in half precision, so that a killed run continues with the same weights. Return
    False if a file STOP ended the training.
    """
    main = backbones[config.sides[-1]].model
    folder = (run.scratch or out) / "aligned"
    if run.scratch is None or not (folder / "model.safetensors").exists():
        tiny = {side: load_backbone(f"handful-tiny@{side}") for side in config.sides}
        reference = _imagenet(config)
        take_head(main, tiny[config.sides[-1]], Generator().manual_seed(settings.seed))
        main.requires_grad_(False)
        for part in (main.vision_encoder, main.mask_decoder.conv_s0, main.mask_decoder.conv_s1):
            part.requires_grad_(True)
        scratch = run.scratch and run.scratch / "alignment"
        log = Log(out / "alignment.jsonl", min(100, settings.steps), scratch)

        def loss(step: int, rng: Generator) -> Tensor:
            backbone, batch = _episode(config, backbones, ALIGNMENT_SEED + step)
            far = unlike(backbone.encode_exact(batch.images), tiny[backbone.side].encode(batch.images))
            tasks = {"alignment": Task(far, 1 - float(far.detach()))}
            if config.keep:
                tasks["kept"] = _kept(backbone, reference, batch, config.keep, rng)
            log.add(step, tasks)
            return torch.stack([task.loss for task in tasks.values()]).sum()

        own_run = replace(run, scratch=scratch)
        history = train(main, loss, settings, own_run, _stop(out), {TRUNK: config.trunk_rate})
        if len(history.losses) < settings.steps:
            return False
        save_small(main, config.shape, folder)
    main.load_state_dict(load_small(folder, str(folder)).model.state_dict())
    if run.scratch is None:  # nothing is resumed, and another configuration must not find it
        shutil.rmtree(folder)
    return True


class _Steps:
    """The tasks of each step: encoder and decoder on a new episode, then the decoder alone on the same one."""

    def __init__(self, config: SmallConfig, backbones: dict[int, SmallBackbone]) -> None:
        self.config, self.backbones = config, backbones
        self.reference = _imagenet(config)
        self.last: tuple[int, Batch, ImageEmbeddings] | None = None
        """Full step, its batch, and the embeddings after it."""

    def __call__(self, step: int, rng: Generator) -> dict[str, Task]:
        place = step % (1 + self.config.rehearsals)
        if place == 0:
            backbone, batch = _episode(self.config, self.backbones, step)
            tasks = part_step(backbone, batch, rng)
            if self.config.keep:
                tasks["kept"] = _kept(backbone, self.reference, batch, self.config.keep, rng)
            return tasks
        if self.last is None or self.last[0] != step - place:
            backbone, batch = _episode(self.config, self.backbones, step - place)
            with torch.no_grad():
                self.last = (step - place, batch, backbone.encode_exact(batch.images))
        _, batch, image = self.last
        name = REPLAYED[int(torch.randint(0, len(REPLAYED), (1,), generator=rng))]
        return replay(self.backbones[batch.images.shape[-1]], image, batch, name, rng)


def _episode(config: SmallConfig, backbones: dict[int, SmallBackbone], step: int) -> tuple[SmallBackbone, Batch]:
    """Return the episode of a step, which depends only on the seed and the step, and the backbone of its side."""
    rng = Generator().manual_seed((config.train.seed * 1_000_003 + step) % 2**64)
    place = int(torch.multinomial(torch.tensor(config.shares), 1, generator=rng))
    side = config.sides[place]
    crowd = float(torch.rand(1, generator=rng)) < config.crowd
    subjects, slices = config.subjects[place], config.slices
    subjects, slices = (subjects * slices, 1) if crowd else (subjects, slices)
    episode = random_episode(subjects, slices, config.targets, side, rng, WORLDS[config.world])
    return backbones[side], batch_of([episode])


def _imagenet(config: SmallConfig) -> EfficientNetLite:
    return imagenet_encoder(config.shape.trunk).requires_grad_(False).eval()


def _kept(backbone: SmallBackbone, reference: EfficientNetLite, batch: Batch, weight: float, rng: Generator) -> Task:
    """Return how far the encoder's features of two slices are from those that ImageNet's weights give them."""
    rows = torch.randperm(len(batch.images), generator=rng)[:2]
    pixels = backbone.family.pixels.encoder_input(batch.images[rows], backbone.side)
    encoder = backbone.model.vision_encoder
    assert isinstance(encoder, TrunkEncoder)
    with torch.no_grad():
        wanted = reference(pixels)
    pairs = zip(encoder.trunk(pixels), wanted, strict=True)
    far = torch.stack([F.mse_loss(own.float(), other.float()) / other.float().var() for own, other in pairs]).mean()
    return Task(weight * far, 1 - float(far.detach()))


def _backbones(config: SmallConfig) -> dict[int, SmallBackbone]:
    """Return a backbone per side; all have the same parameters, as tensors that they share."""
    main = small_model(config.shape, config.sides[-1])
    if config.start is None:
        initialise(main)
        main.vision_encoder.trunk = imagenet_encoder(config.shape.trunk)
    else:
        start = load_small(config.start, str(config.start))
        if start.channels != config.shape.channels:
            raise SettingsError(f"{config.start} has {start.channels} channels, not {config.shape.channels}")
        main.load_state_dict(start.model.state_dict())
    backbones = {config.sides[-1]: SmallBackbone(main, "pretraining")}
    for side in config.sides[:-1]:
        other = small_model(config.shape, side)
        share_tensors(other, main)
        backbones[side] = SmallBackbone(other, "pretraining")
    return backbones


def share_tensors(model: Sam2VideoModel, source: Sam2VideoModel) -> None:
    """Replace each stored tensor of `model` by that of `source`, so that both train together."""
    modules = dict(source.named_modules())
    stored = source.state_dict().keys()
    for name, module in model.named_modules():
        for key, _ in _own_tensors(module):
            if f"{name}.{key}".removeprefix(".") in stored:
                setattr(module, key, getattr(modules[name], key))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from list(module.named_parameters(recurse=False))
    yield from list(module.named_buffers(recurse=False))


def _record(config: SmallConfig, average: SmallBackbone, step: int, out: Path) -> None:
    """Validate the moving average of the weights, add the scores to validation.jsonl, and write the weights."""
    save_small(average.model, config.shape, out)
    with computing_in("float32", "cpu"):  # whatever the training computes in
        scores = validate(average, WORLDS[config.world], config.validation_episodes)
    path = out / "validation.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    before = [line for line in lines if json.loads(line)["step"] < step]  # a resumed training repeats steps
    write_atomically(path, "".join(f"{line}\n" for line in [*before, json.dumps({"step": step, **scores})]).encode())
