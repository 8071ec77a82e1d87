"""The one training loop: AdamW on all parameters that need gradients, exact resume after a kill, a history.

Where processes have joined a torch.distributed group, each brings its own share of every step and all take the same
step: gradients are averaged over them. On a CPU, small models learn faster from several processes of one thread each
than from one of several threads.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from handful.errors import SettingsError, TrainingError, first_line
from handful.jobs.atomic import write_atomically
from handful.jobs.digests import digest_of, digest_of_tensors
from handful.jobs.precision import Precision, computing_in
from handful.jobs.progress import Run

CHECKPOINT = "train.safetensors"
"""Name of the file with the state of an unfinished training."""
MOST_SKIPPED = 10
"""Steps in a row without a finite gradient, after which a training is given up."""
DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors of damaged checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train."""

    iterations: int | None = 600
    """Optimiser steps; None takes the number that suits method and backbone."""
    learning_rate: float | None = 1e-4
    """Peak learning rate of AdamW; None takes the rate that suits method and backbone."""
    weight_decay: float = 1e-2
    """Decoupled weight decay; not applied to biases and norms."""
    warmup: float = 0.05
    """Share of the iterations in which the rate climbs to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rate does after the climb: falls to zero, or stays."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which then is the result; 0 keeps the last weights."""
    precision: Precision = "float32"
    """What the forward pass computes in; weights, gradients and losses stay float32. 'bfloat16' takes about half the
    time for convolutions where the processor has it (AVX-512 BF16, AMX, GPUs), and is float32 elsewhere."""
    seed: int = 0
    """Seed of every random choice; on a CPU, one seed gives one result."""

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 0:
            raise SettingsError(f"iterations must be 0 or more, got {self.iterations}")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingsError(f"{name} must be 0 or more, got {value}")
        if not 0 <= self.warmup <= 1:
            raise SettingsError(f"warmup must be a share of the iterations from 0 to 1, got {self.warmup}")
        if not self.clip > 0:
            raise SettingsError(f"clip must be above 0, got {self.clip}; a large number never clips")
        if not 0 <= self.ema < 1:
            raise SettingsError(f"ema must be from 0 to below 1, got {self.ema}; 0 keeps the last weights")
        if not -(2**63) <= self.seed < 2**63:
            raise SettingsError(f"seed must be from -2^63 to 2^63 - 1, got {self.seed}")

    @property
    def steps(self) -> int:
        """`iterations`; SettingsError where that is None."""
        if self.iterations is None:
            raise SettingsError("iterations is None, and this method has no default; give a number such as 600")
        return self.iterations

    def filled(self, iterations: int, learning_rate: float) -> TrainConfig:
        """This configuration with the given values where its own are None."""
        return replace(
            self,
            iterations=iterations if self.iterations is None else self.iterations,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
        )


@dataclass
class History:
    """What happened in training."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)
    """Steps without a finite gradient, which left the weights as they were."""


def train(
    model: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    config: TrainConfig,
    run: Run | None = None,
    stop: Callable[[int], bool] | None = None,
    rates: Mapping[str, float] | None = None,
    teacher: nn.Module | None = None,
) -> History:
    """Optimises every parameter of `model` that needs gradients, in place; returns the history.

    `stop(step)`, called before each step, ends the training where it returns True; a later call continues there.
    `rates` has factors of the learning rate for parameters whose names start with a key. `teacher`, a copy of `model`,
    is given the moving average of the weights after every step, so that the loss may ask it (Tarvainen and Valpola,
    "Mean teachers are better role models", NeurIPS 2017); it takes `config.ema` above 0.

    `loss(step, generator)` draws all randomness from the generator or torch's global one: both are seeded from
    (seed, step), so on a CPU, a run continued from `run.scratch` ends with exactly the weights of an undisturbed one.
    In a group of processes the rank is part of that seed, and the one of rank 0 alone keeps checkpoints.

    A step without a finite gradient changes no weight. Raises TrainingError after MOST_SKIPPED of them in a row.
    """
    run = run or Run()
    rank = dist.get_rank() if dist.is_initialized() else 0
    if config.steps < 1:
        raise SettingsError(f"iterations must be at least 1, got {config.steps}")
    if config.learning_rate is None:
        raise SettingsError("learning_rate is None, and this method has no default; give a number such as 1e-3")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise SettingsError("nothing to train: no parameter of the model needs gradients")
    if teacher is not None and not config.ema:
        raise SettingsError("a teacher is the moving average of the weights, and ema is 0; give a decay such as 0.99")
    state = _State(named, config, config.learning_rate, rates or {}, teacher)
    device = next(iter(named.values())).device.type
    step = state.load(run.scratch) if run.scratch else 0
    saved = time.monotonic()
    while step < config.steps:
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            seed = _step_seed(config.seed, step, rank)
            torch.manual_seed(seed)
            if stop is not None and stop(step):  # in float32, as predictions are
                break
            with computing_in(config.precision, device):
                value = loss(step, torch.Generator().manual_seed(seed))
            state.update(value, step)
        step += 1
        state.history.losses.append(float(value.detach()))
        state.history.seconds += time.monotonic() - began
        run.report(step, config.steps, f"loss {_recent(state.history.losses):.3f}")
        if run.scratch and rank == 0 and time.monotonic() - saved > run.save_every_s:
            state.save(run.scratch, step)
            saved = time.monotonic()
    if run.scratch and rank == 0:  # all steps are made, or `stop` ended them
        state.save(run.scratch, step)
    state.finish()
    return state.history


class _State:
    """Parameters, optimiser and moving average, with an exact checkpoint of all three."""

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        config: TrainConfig,
        peak: float,
        rates: Mapping[str, float],
        teacher: nn.Module | None,
    ) -> None:
        self.named, self.config, self.history = named, config, History()
        self.peak = peak
        # the fused form takes a quarter of the time, and runs on processors of all kinds
        fused = next(iter(named.values())).device.type == "cpu"
        self.optimizer = torch.optim.AdamW(list(_groups(named, config.weight_decay, rates)), lr=peak, fused=fused)
        self.average: dict[str, Tensor] = {}
        if teacher is not None:
            copies = dict(teacher.named_parameters())
            self.average = {name: copies[name].detach() for name in named}
        elif config.ema:
            self.average = {name: p.detach().clone() for name, p in named.items()}

    def update(self, value: Tensor, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * group["factor"] * rate(step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized():
            _average_gradients(list(self.named.values()))
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.clip, error_if_nonfinite=False)
        if not norm.isfinite():
            self._skip(step)
            return
        self.optimizer.step()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for name, mean in self.average.items():
            mean.lerp_(self.named[name].detach(), 1 - decay)

    def _skip(self, step: int) -> None:
        self.history.skipped.append(step)
        if self.history.skipped[-MOST_SKIPPED:] == list(range(step + 1 - MOST_SKIPPED, step + 1)):
            raise TrainingError(
                f"the training has no finite gradients since step {step + 1 - MOST_SKIPPED} of {self.config.steps}; "
                f"set a learning_rate below {self.peak:g}, or precision=float32 where it is bfloat16"
            )

    def finish(self) -> None:
        with torch.no_grad():
            for name, mean in self.average.items():
                self.named[name].copy_(mean)

    def save(self, folder: Path, step: int) -> None:
        tensors = {f"weight/{n}": p.detach().cpu().contiguous() for n, p in self.named.items()}
        tensors |= {f"average/{n}": t.cpu().contiguous() for n, t in self.average.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        note = {"step": step, **asdict(self.history)}
        write_checkpoint(folder / CHECKPOINT, note, tensors)

    def load(self, folder: Path) -> int:
        """The step to continue from; 0 if nothing was saved, or if what was saved is damaged."""
        path = folder / CHECKPOINT
        if not path.exists():
            return 0
        try:
            note, tensors = read_checkpoint(path)
        except DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); the training starts from the beginning", stacklevel=3)
            return 0
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight/{name}"])
                if self.average:
                    self.average[name].copy_(tensors[f"average/{name}"])
                if f"exp_avg/{name}" in tensors:
                    device = parameter.device
                    self.optimizer.state[parameter] = {
                        "step": tensors[f"step/{name}"],
                        "exp_avg": tensors[f"exp_avg/{name}"].to(device),
                        "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(device),
                    }
        self.history = History(note["losses"], note["seconds"], note.get("skipped", []))
        return int(note["step"])


def write_checkpoint(path: Path, note: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, on the CPU and contiguous, and JSON values of an unfinished training, with a checksum of both."""
    text = json.dumps(note)
    metadata = {"note": text, "sha256": _checksum(text, tensors)}
    write_atomically(path, save(dict(tensors), metadata=metadata))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The note and the tensors from `write_checkpoint`. Raises one of DAMAGE if the file is damaged."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(metadata["note"], tensors) != metadata["sha256"]:
        raise ValueError("its checksum is wrong")
    note: dict[str, Any] = json.loads(metadata["note"])
    return note, tensors


def _checksum(note: str, tensors: Mapping[str, Tensor]) -> str:
    """The digest of the note, and of names, types, shapes and elements of the tensors."""
    return digest_of(note, digest_of_tensors(sorted(tensors.items())))


def _groups(
    named: Mapping[str, nn.Parameter], weight_decay: float, rates: Mapping[str, float]
) -> Iterator[dict[str, object]]:
    """Parameters by their learning rate, and those of more than one dimension, which decay, before the others."""
    factors = {name: next((f for key, f in rates.items() if name.startswith(key)), 1.0) for name in named}
    for factor in dict.fromkeys(factors.values()):
        mine = [p for name, p in named.items() if factors[name] == factor]
        for decay, parameters in (
            (weight_decay, [p for p in mine if p.ndim > 1]),
            (0.0, [p for p in mine if p.ndim <= 1]),
        ):
            if parameters:
                yield {"params": parameters, "weight_decay": decay, "factor": factor}


def rate(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step."""
    climb = max(1, round(config.warmup * config.steps))
    if step < climb:
        return (step + 1) / climb
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, config.steps - climb)))


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Every process gets the mean gradient of all; who did not use a parameter that another used counts with zero."""
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    _add_up(used)
    gradients = []
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _add_up(flat)
    torch.nn.utils.vector_to_parameters(flat / dist.get_world_size(), gradients)


def _add_up(values: Tensor) -> None:
    """Replace the values by their sums over all processes. Raises TrainingError if another process has ended."""
    try:
        dist.all_reduce(values)
    except RuntimeError as error:
        raise TrainingError(
            "another of the processes that share the training has ended; run the same command again, and it continues "
            f"from the last checkpoint ({first_line(error)})"
        ) from error


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 7_919 + rank * 104_729 + 12_345) % (2**63 - 1)


def _recent(losses: list[float]) -> float:
    tail = [loss for loss in losses[-20:] if math.isfinite(loss)]
    return sum(tail) / len(tail) if tail else math.nan
