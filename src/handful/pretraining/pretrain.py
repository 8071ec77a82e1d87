"""Pre-training of handful-tiny on episodes of synthetic anatomy; the result is a folder that Sam2VideoModel loads."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Generator, Tensor
from transformers import Sam2VideoModel

from handful.backbones.base import ImageEmbeddings
from handful.backbones.catalog import load_backbone
from handful.backbones.names import require_side
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.errors import SettingsError
from handful.jobs.allocator import tune_allocator
from handful.jobs.atomic import write_atomically
from handful.jobs.executors import cores
from handful.jobs.journal import Journal
from handful.jobs.lock import locked
from handful.jobs.notes import NOTES
from handful.jobs.progress import Run
from handful.pretraining.architecture import initialise, tiny_config
from handful.pretraining.output import fingerprint, prepare_folder, write_note
from handful.pretraining.tasks import REPLAYED, Batch, Task, replay, train_step
from handful.synthesis.episodes import Episode, random_episode
from handful.tuning.loop import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pre-training of handful-tiny."""

    side: int = 128
    """Pixels along the square slices; start with a small side, then continue from the result with 256."""
    episodes: int = 1
    """Random episodes per step and process."""
    subjects: int = 3
    """Subjects per episode, each with `slices` neighbouring slices; every slice is the query once."""
    slices: int = 3
    """Neighbouring slices per subject."""
    crowd: float = 0.3
    """Share of the steps whose episodes have `subjects` × `slices` subjects with one slice each."""
    targets: int = 3
    """Target structures per episode."""
    matching: int = 1000
    """First steps from random weights that train only the encoder, by matching structures between subjects."""
    rehearsals: int = 4
    """Decoder-only steps after each full step, on the same slices: box, points, correction and mask in turn."""
    start: Path | None = None
    """Folder of weights to continue from, trained at any side; None starts from random weights."""
    workers: int = 1
    """Processes that share each step, each with its own episodes: one per GPU, or one per CPU core."""
    train: TrainConfig = TrainConfig(iterations=4000, learning_rate=6e-4, weight_decay=0.02, ema=0.998)
    """Number of steps, learning rate, seed and other settings of the training loop."""

    def __post_init__(self) -> None:
        require_side(self.side)
        require_episodes(self.subjects, self.slices, self.targets)
        for name, least in {"episodes": 1, "workers": 1, "matching": 0, "rehearsals": 0}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be {least} or more, got {getattr(self, name)}")


def require_episodes(subjects: int, slices: int, targets: int) -> None:
    """Raise SettingsError if no task can be made of episodes of so many subjects, slices of each, and targets."""
    if subjects < 2:
        raise SettingsError(f"subjects must be 2 or more, got {subjects}: each is segmented from the slices of others")
    if slices < 1 or targets < 1:
        raise SettingsError(f"slices and targets must be 1 or more, got {slices} and {targets}")


def pretrain(config: PretrainConfig, out: Path, run: Run | None = None, overwrite: bool = False) -> bool:
    """Train a backbone and write it to the folder `out`; return False if it was already there, finished.

    The folder holds config.json, model.safetensors (half precision), metrics.jsonl and curves.png. Training and the
    synthesis of episodes run on the GPUs, in mixed precision, or on the CPU where there is no GPU. A killed run with
    the same config continues from `run.scratch`, which is removed at the end.

    With more than one worker, the others are started by `multiprocessing`: a script that calls this function must
    guard its entry by `if __name__ == "__main__"`. In a script that torchrun starts, its processes are the workers,
    whatever `workers` says, and the one of rank 0 writes the folder. On several machines, `out` and `run.scratch` must
    be on storage that all of them share.

    Raises:
        SettingsError: More workers than GPUs, or `start` holds no handful-tiny.
        InputError: `out` contains another backbone and `overwrite` is not set.
        BusyError: Another process trains into `out`.
    """
    place = _Place.by_torchrun()
    if place is not None:
        config = replace(config, workers=place.count)
    run = run or Run(scratch=out / "partial")
    if place is not None and place.rank > 0:
        own = fingerprint(config, out)
        if not prepare_folder(out, own, overwrite, writes=False):
            return False
        with place.joined(MEETING_OF_TORCHRUN):
            _train(config, Run(run.scratch and run.scratch / own), None, place)
        return True
    with locked(out / NOTES, remove_empty=True):
        own = fingerprint(config, out)
        if not prepare_folder(out, own, overwrite):
            return False
        _write(config, out, replace(run, scratch=run.scratch and run.scratch / own), place)
        write_note(out, own, finished=True)
        if run.scratch:
            shutil.rmtree(run.scratch, ignore_errors=True)
    return True


def _write(config: PretrainConfig, out: Path, run: Run, place: _Place | None) -> None:
    """Train, as one of torchrun's processes or with workers of its own, and write weights, metrics and curves."""
    log = Log(out / "metrics.jsonl", min(100, config.train.steps), run.scratch)
    with _processes(config, run) if place is None else place.joined(MEETING_OF_TORCHRUN):
        model = _train(config, run, log, place or _Place.on_this_machine(0, config.workers))
    save_half(model, out)
    log.plot(out / "curves.png")


def writes_results() -> bool:
    """Return whether this process is the one that writes: the first of torchrun's, or the only one."""
    place = _Place.by_torchrun()
    return place is None or place.rank == 0


def processors() -> int:
    """Return the number of GPUs of this machine, or of CPU cores that this process may use if it has no GPU."""
    return torch.cuda.device_count() or cores()


def make_batch(config: PretrainConfig, rng: Generator) -> Batch:
    """Return new random episodes on the generator's device."""
    crowd = float(torch.rand(1, generator=rng, device=rng.device)) < config.crowd
    subjects, slices = (config.subjects * config.slices, 1) if crowd else (config.subjects, config.slices)
    return batch_of(
        [random_episode(subjects, slices, config.targets, config.side, rng) for _ in range(config.episodes)]
    )


def batch_of(episodes: list[Episode]) -> Batch:
    """Return the slices of episodes of the same shape; grey images are repeated to three channels."""
    numbers = torch.arange(len(episodes), device=episodes[0].labels.device)
    return Batch(
        torch.cat([e.images.expand(-1, 3, -1, -1) for e in episodes]),
        torch.cat([e.labels for e in episodes]),
        torch.cat([e.masks for e in episodes]),
        numbers.repeat_interleave(len(episodes[0].labels)),
        torch.cat([e.subject for e in episodes]),
    )


def _train(config: PretrainConfig, run: Run, log: Log | None, place: _Place) -> Sam2VideoModel:
    """Train in one process and return the model; all processes end with the same weights."""
    torch.manual_seed(config.train.seed)
    device = torch.device("cuda", place.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    backbone = Sam2VideoBackbone(_new_model(config).to(device), "pretraining")
    backbone.model.requires_grad_(True)
    backbone.model.no_memory_positional_encoding.requires_grad_(False)  # no path of SAM 2 uses it
    tasks_of_step = _Tasks(config, backbone, device, place.rank)

    def loss(step: int, rng: Generator) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            tasks = tasks_of_step(step, rng)
        if log:
            log.add(step, tasks)
        return torch.stack([task.loss for task in tasks.values()]).sum()

    backbone.model.train()
    train(backbone.model, loss, config.train, run)
    model: Sam2VideoModel = backbone.model.eval().cpu()
    return model


class _Tasks:
    """The training tasks of each step: all tasks on new episodes, then decoder-only tasks on the same episodes.

    The decoder learns prompts more slowly than the encoder learns anatomy, and a decoder-only step is cheap.
    """

    def __init__(self, config: PretrainConfig, backbone: Sam2VideoBackbone, device: torch.device, rank: int) -> None:
        self.config, self.backbone, self.device, self.rank = config, backbone, device, rank
        self.matching = config.matching if config.start is None else 0
        self.last: tuple[int, Batch, ImageEmbeddings] | None = None
        """Step, batch and embeddings of the last full step."""

    def __call__(self, step: int, rng: Generator) -> dict[str, Task]:
        if step < self.matching:
            return train_step(self.backbone, self._batch(step), rng, only_match=True)
        place = (step - self.matching) % (1 + self.config.rehearsals)
        if place == 0:
            return train_step(self.backbone, self._batch(step), rng)
        batch, image = self._encoded(step - place)
        return replay(self.backbone, image, batch, REPLAYED[(place - 1) % len(REPLAYED)], rng)

    def _batch(self, step: int) -> Batch:
        """Return the batch of a step, which depends only on the seed, the step and the process."""
        number = (self.config.train.seed * 1_000_003 + step) * 1009 + self.rank
        return make_batch(self.config, Generator(self.device).manual_seed(number % 2**64))

    def _encoded(self, step: int) -> tuple[Batch, ImageEmbeddings]:
        """Return the batch of a full step and its embeddings, which decoder-only steps leave unchanged."""
        if self.last is None or self.last[0] != step:
            batch = self._batch(step)
            with torch.no_grad():
                self.last = (step, batch, self.backbone.encode_exact(batch.images))
        return self.last[1:]


MEETING_OF_TORCHRUN = "env://"
"""How the processes of torchrun find each other."""


@dataclass(frozen=True)
class _Place:
    """The place of a process among those that share each step."""

    rank: int
    local_rank: int
    """Among those on the same machine; the number of its GPU."""
    count: int
    local_count: int

    @classmethod
    def on_this_machine(cls, rank: int, count: int) -> _Place:
        return cls(rank, rank, count, count)

    @classmethod
    def by_torchrun(cls) -> _Place | None:
        """The place that torchrun gave to this process; None if another program started it."""
        if not dist.is_torchelastic_launched():
            return None
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    @contextmanager
    def joined(self, meeting: str) -> Iterator[None]:
        """Join the torch.distributed group of all processes, which leave it together."""
        cuda, threads = torch.cuda.is_available(), torch.get_num_threads()
        if cuda and torch.cuda.device_count() < self.local_count:
            raise SettingsError(
                f"workers is {self.local_count}, but this machine has {torch.cuda.device_count()} GPUs; use one per GPU"
            )
        torch.set_num_threads(max(1, cores() // self.local_count))
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=self.rank, world_size=self.count)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            dist.destroy_process_group()


@contextmanager
def _processes(config: PretrainConfig, run: Run) -> Iterator[None]:
    """Start the other processes of a run and join them in one torch.distributed group; stop them at the end."""
    if config.workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        context = torch.multiprocessing.get_context("spawn")
        places = [_Place.on_this_machine(rank, config.workers) for rank in range(config.workers)]
        others = [
            context.Process(target=_other, args=(config, run.scratch, meeting, place), daemon=True)
            for place in places[1:]
        ]
        try:
            for process in others:
                process.start()
            with places[0].joined(meeting):
                yield
                for process in others:
                    process.join()
        finally:
            for process in others:
                process.terminate()


def _other(config: PretrainConfig, scratch: Path | None, meeting: str, place: _Place) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles Ctrl-C and ends the others
    tune_allocator()
    with place.joined(meeting):
        _train(config, Run(scratch), None, place)


def save_half(model: Sam2VideoModel, folder: Path) -> None:
    """Write a model in half precision in the format of transformers; the model in memory does not change."""
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
        found = start.model.state_dict() if isinstance(start, Sam2VideoBackbone) else {}
        if _shapes(found) != _shapes(model.state_dict()):
            raise SettingsError(
                f"{config.start} holds no handful-tiny, whose training it could continue; name a folder that "
                "handful pretrain wrote"
            )
        model.load_state_dict(found)
    return model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


class Log:
    """Mean metrics of each task over every `every` steps, written as lines of JSON and plotted as curves.

    A journal of all steps in `scratch` makes the file of a training that was killed and resumed equal to that of an
    undisturbed one.
    """

    def __init__(self, path: Path, every: int, scratch: Path | None) -> None:
        self.path, self.every = path, every
        self._journal = Journal(scratch and scratch / path.name)
        if not (self._journal.path and self._journal.path.exists()):  # metrics of another run do not belong to this one
            self.path.unlink(missing_ok=True)
        self._steps: list[dict[str, float]] | None = None
        """The metrics of all steps so far; None before the first step of this process."""

    def add(self, step: int, tasks: dict[str, Task]) -> None:
        """Add the metrics of a step."""
        values: dict[str, float] = {}
        for name, task in tasks.items():
            values |= {f"{name}_loss": float(task.loss.detach()), f"{name}_dice": task.dice}
            scores = {"seen": task.detected, "rejected": task.rejected, "iou_error": task.iou_error}
            values |= {f"{name}_{key}": value for key, value in scores.items() if value is not None}
        if self._steps is None:
            past = self._journal.read(step)
            self._steps = past + [{}] * (step - len(past))  # a damaged journal lacks some
        self._steps.append(values)
        self._journal.write(step, values)
        if (step + 1) % self.every == 0:
            lines = (json.dumps(row) for row in self._rows(self._steps))
            write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())

    def _rows(self, steps: list[dict[str, float]]) -> Iterator[dict[str, float]]:
        for end in range(self.every, len(steps) + 1, self.every):
            window = steps[end - self.every : end]
            row: dict[str, float] = {"step": end}
            for name in sorted({key for values in window for key in values}):
                logged = [values[name] for values in window if name in values]
                row[name] = round(sum(logged) / len(logged), 4)
            yield row

    def plot(self, picture: Path) -> None:
        """Draw the curves into a PNG file; without any metrics, one of another run is removed."""
        if not self.path.exists():
            picture.unlink(missing_ok=True)
            return
        from matplotlib.figure import Figure

        rows = {r["step"]: r for r in map(json.loads, self.path.read_text(encoding="utf-8").splitlines())}
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in ("box", "points", "correction", "repair", "mask", "memory", "neighbour", "tokens", "match"):
            points = [(step, row[f"{name}_dice"]) for step, row in sorted(rows.items()) if f"{name}_dice" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="step", ylabel="Dice on new synthetic episodes (match: accuracy)", ylim=(0, 1))
        axes.legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_atomically(picture, content.getvalue())
