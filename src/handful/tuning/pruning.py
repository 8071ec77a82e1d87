"""Which samples an epoch trains on: all of them, or a random part, chosen again each time, so that fewer iterations do.

`cbdp` is class-balanced data pruning after Wang, Liao, Jiang and Geng (ISBI 2025, DOI 10.1109/ISBI60581.2025.10981084).
Only the abstract is public: what samples contribute changes with time and organ, and about 56.25 % of the iterations
do as well as all. The rule here is our reconstruction. `infobatch` follows Qin et al. (ICLR 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from handful.errors import CheckpointError, SettingsError, refuse_without_effect
from handful.jobs.journal import Journal

UNSEEN = 3.0
"""Loss that InfoBatch takes a sample to have before its first step."""
BELOW_MEAN = 0.6
"""Share of samples with a loss below the mean that InfoBatch is planned with; what was true, the report says."""
LEAST, MOST = 0.1, 10.0
"""Bounds of a sample's loss over the mean of its class: no sample is taken with certainty, and none is never taken."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How many samples are left out, which, and for how long."""

    rule: Literal["none", "random", "infobatch", "cbdp"] = "none"
    """'random': any. 'infobatch': of those with a loss below the mean. 'cbdp': easy ones, as many of each class."""
    share: float = 0.5
    """Share that is left out of an epoch; with 'infobatch', of the samples below the mean."""
    until: float = 0.875
    """Share of the epochs in which samples are left out; the last ones see all of them, with weight 1."""
    warmup: int = 0
    """Epochs on all samples before the first pruned one; 'infobatch' has one in any case, for it needs losses."""
    sharpness: float = 1.0
    """Power of the loss that 'cbdp' draws by: 0 draws evenly, more prefers what is hard."""
    balance: bool = True
    """Keep as large a share of every class; False lets 'cbdp' draw by loss alone."""
    weights: Literal["draws", "clip", "none"] = "draws"
    """How 'cbdp' makes up for preferring hard samples. 'draws': one over the chance of being kept, estimated by drawing
    many times. 'clip': the same within [1, 1 / (1 - share)]. 'none': not at all."""
    draws: int = 200
    """Draws for that estimate."""
    momentum: float = 0.5
    """How much of a sample's earlier loss stays when it is used again."""

    def __post_init__(self) -> None:
        for name in ("share", "until", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.share == 1 or self.momentum == 1:
            raise SettingsError("share and momentum must be below 1: something must be kept, and something be learnt")
        for name, least in (("warmup", 0), ("sharpness", 0), ("draws", 1)):
            if not least <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.rule == "none":
            others = [field.name for field in fields(self) if field.name != "rule"]
            refuse_without_effect(self, others, "no samples are left out (pruning.rule = 'none')")

    def fraction(self, epochs: float) -> float:
        """Share of the iterations that are made where all samples would be used `epochs` times: 1 - p (δE - w) / E."""
        left_out = {"none": 0.0, "infobatch": self.share * BELOW_MEAN}.get(self.rule, self.share)
        return 1 - left_out * max(0.0, self.until * epochs - self.first_pruned) / epochs

    def steps(self, iterations: int, batch: int, samples: int) -> int:
        """Steps that are made where training on everything takes so many iterations."""
        return max(1, round(iterations * self.fraction(iterations * batch / samples))) if iterations else 0

    @property
    def first_pruned(self) -> int:
        """The first epoch that leaves samples out."""
        return max(1, self.warmup) if self.rule == "infobatch" else self.warmup

    @property
    def needs_losses(self) -> bool:
        """Whether the choice of samples depends on losses."""
        return self.rule in ("infobatch", "cbdp")


@dataclass(frozen=True, eq=False)
class Draw:
    """The samples of one step."""

    rows: Int[Tensor, " b"]
    weights: Float[Tensor, " b"]
    """Factors of the samples' losses, 1 on average: the mean of weighted losses estimates that over all samples."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch was planned to train on."""

    epoch: int
    pruned: bool
    kept: int
    """Samples."""
    kept_per_class: tuple[int, ...]
    """Samples that hold each class; the last figure counts those that hold none."""
    fraction: float
    """Samples trained on so far, over as many as all would have been."""


@dataclass(frozen=True)
class PruningReport:
    """What pruning came to."""

    epochs: tuple[EpochRecord, ...]
    steps: int
    fraction: float
    """Measured: samples trained on over the samples of as many epochs on everything."""


class Sampler:
    """Says which samples each step trains on, and learns from their losses which ones to leave out.

    Its choices depend on its arguments and on the losses it was given, on nothing else. With a `journal` (a file of
    losses, one line per step) it catches up with a training that was killed, and continues with the same samples.
    """

    def __init__(
        self,
        pruning: Pruning,
        holds: Bool[Tensor, "n c"],
        iterations: int,
        batch: int,
        seed: int,
        journal: Path | None = None,
    ) -> None:
        """`holds` says which class is in which sample; `iterations` are those that training on everything takes."""
        if not len(holds) or batch < 1:
            raise SettingsError(f"cannot draw batches of {batch} from {len(holds)} samples; give at least one of each")
        self.pruning, self.batch, self.seed = pruning, batch, seed
        known = holds.cpu().numpy().astype(bool)
        self.holds = np.concatenate([known, ~known.any(axis=1, keepdims=True)], axis=1)
        self.steps = pruning.steps(iterations, batch, len(holds))
        """Steps to be made."""
        self.annealed_from = self.steps - round((1 - pruning.until) * iterations)
        """The first step of the last phase, which sees everything."""
        self.losses = np.full(self.holds.shape, np.nan)
        """Of each sample and class, what was last known, smoothed; nan where nothing was."""
        self._journal = Journal(journal if pruning.needs_losses else None)
        self._plan, self._place, self._epoch = self._nothing(), 0, 0
        self._next, self._drawn, self._passes = 0, 0, 0.0
        self._last = torch.zeros(0, dtype=torch.long)
        self._records: list[EpochRecord] = []

    def draw(self, step: int) -> Draw:
        """The samples of a step; steps come in order, but the first one may be any that a journal covers."""
        if step != self._next:
            self._catch_up(step)
        return self._draw()

    def observe(self, losses: Float[Tensor, "b d"]) -> None:
        """Losses of the samples taken last: one column per class and one for samples without any; nan is unknown."""
        values = losses.detach().cpu().float().numpy().astype(np.float64)
        self._journal.write(self._next - 1, values.tolist())
        self._learn(values)

    def report(self, steps: int | None = None) -> PruningReport:
        """What pruning came to in the steps so far; with `steps`, in so many, which another process may have made."""
        if steps is not None and steps != self._next:
            self._catch_up(steps)
        return PruningReport(tuple(self._records), self._next, self._fraction())

    def plan(self, epoch: int, pruned: bool = True) -> Draw:
        """All samples of an epoch, in order, as far as the losses are known by now."""
        rng = np.random.default_rng([self.seed % 2**63, epoch])
        n = len(self.holds)
        if not pruned or self.pruning.rule == "none":
            kept, weights = np.arange(n), np.ones(n)
        elif self.pruning.rule == "random":
            kept = rng.permutation(n)[: _ceil((1 - self.pruning.share) * n)]
            weights = np.ones(len(kept))
        elif self.pruning.rule == "infobatch":
            kept, weights = self._infobatch(rng)
        else:
            kept, weights = self._cbdp(rng)
        order = rng.permutation(len(kept))
        return Draw(torch.from_numpy(kept[order]), torch.from_numpy(weights[order].astype(np.float32)))

    def _draw(self) -> Draw:
        step, self._next = self._next, self._next + 1
        if step == self.annealed_from and self.pruning.rule != "none":
            self._plan, self._place = self._nothing(), 0
        rows, weights = [], []
        missing = self.batch
        while missing:
            if self._place == len(self._plan.rows):
                self._begin_epoch(step)
            part = slice(self._place, self._place + missing)
            rows.append(self._plan.rows[part])
            weights.append(self._plan.weights[part])
            taken = len(rows[-1])
            self._place, missing = self._place + taken, missing - taken
            self._drawn, self._passes = self._drawn + taken, self._passes + taken / len(self._plan.rows)
        self._last = torch.cat(rows)
        return Draw(self._last, torch.cat(weights))

    def _begin_epoch(self, step: int) -> None:
        pruned = self.pruning.rule != "none" and self.pruning.first_pruned <= self._epoch and step < self.annealed_from
        self._plan, self._place = self.plan(self._epoch, pruned), 0
        held = self.holds[self._plan.rows.numpy()].sum(axis=0)
        counts = tuple(int(count) for count in held)
        self._records.append(EpochRecord(self._epoch, pruned, len(self._plan.rows), counts, self._fraction()))
        self._epoch += 1

    def _fraction(self) -> float:
        return self._drawn / (len(self.holds) * self._passes) if self._passes else 1.0

    def _learn(self, values: NDArray[np.float64]) -> None:
        rows = self._last.numpy()
        for row, new in zip(rows, values, strict=True):
            known = np.isfinite(new) & self.holds[row]
            old = np.where(np.isnan(self.losses[row]), new, self.losses[row])
            self.losses[row, known] = (self.pruning.momentum * old + (1 - self.pruning.momentum) * new)[known]

    def _catch_up(self, step: int) -> None:
        past: list[Any] = self._journal.read(step) if self.pruning.needs_losses else [None] * step
        if self._next or len(past) < step:
            raise CheckpointError(
                f"training continues at step {step}, but losses are known of only {max(len(past), self._next)} steps; "
                "remove the half-done work and start again"
            )
        for values in past:
            self._draw()
            if self.pruning.needs_losses:
                self._learn(np.array(values, dtype=np.float64))

    def _infobatch(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        known = np.isfinite(self.losses)
        sums = np.where(known, self.losses, 0).sum(axis=1)
        score = np.where(known.any(axis=1), sums / known.sum(axis=1).clip(1), UNSEEN)
        easy = np.flatnonzero(score < score.mean())
        spared = rng.permutation(easy)[: _ceil((1 - self.pruning.share) * len(easy))]
        hard = np.flatnonzero(score >= score.mean())
        kept = np.concatenate([hard, spared])
        weights = np.concatenate([np.ones(len(hard)), np.full(len(spared), len(easy) / max(1, len(spared)))])
        return kept, weights * len(kept) / len(score)

    def _cbdp(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Balanced draws, the first of which counts; weights are those of Horvitz and Thompson."""
        setting = self.pruning
        others = 0 if setting.weights == "none" else setting.draws
        draws = balanced_draws(self._hardness() ** setting.sharpness, self.holds, setting, 1 + others, rng)
        kept = np.flatnonzero(draws[0])
        if not others:
            return kept, np.ones(len(kept))
        rarity = 1 / draws.mean(axis=0)[kept]
        if setting.weights == "clip":
            rarity = rarity.clip(1, 1 / (1 - setting.share))
        return kept, rarity * len(kept) / len(self.holds)

    def _hardness(self) -> NDArray[np.float64]:
        """Each loss over the mean of its class, within bounds; 1 where nothing is known, 0 where the class is not."""
        known = np.isfinite(self.losses)
        mean = np.where(known, self.losses, 0).sum(axis=0) / known.sum(axis=0).clip(1)
        ratio = np.where(known, self.losses, mean) / np.where(mean > 0, mean, 1)
        return np.where(self.holds, np.where(mean > 0, ratio, 1).clip(LEAST, MOST), 0)

    def _nothing(self) -> Draw:
        return Draw(torch.zeros(0, dtype=torch.long), torch.zeros(0))


def balanced_draws(
    weight: Float64[np.ndarray, "n c"],
    holds: Bool[np.ndarray, "n c"],
    pruning: Pruning,
    draws: int,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "draws n"]:
    """Independent random choices of the samples an epoch keeps: of every class at least the share that all classes
    keep.

    Rare classes come first, each drawing from its samples with chances as their `weight`; then any samples fill up.
    Where quotas took more, the easiest go that all their classes can spare.
    """
    n = len(holds)
    held = holds.sum(axis=0)
    size = _ceil((1 - pruning.share) * n)
    mean = weight.sum(axis=1) / holds.sum(axis=1).clip(1)
    kept = np.zeros((draws, n), dtype=bool)
    if not pruning.balance:
        return _fill(kept, np.full(draws, size), np.ones(n, dtype=bool), mean, rng)
    target = np.array([_ceil((1 - pruning.share) * count) for count in held])
    for k in np.argsort(held, kind="stable"):
        need = target[k] - kept[:, holds[:, k]].sum(axis=1)
        kept = _fill(kept, need, holds[:, k], weight[:, k], rng)
    kept = _fill(kept, size - kept.sum(axis=1), np.ones(n, dtype=bool), np.ones(n), rng)
    spare = kept.astype(np.int64) @ holds.astype(np.int64) - target
    over = kept.sum(axis=1) - size
    for i in np.argsort(mean, kind="stable"):
        if not (over > 0).any():
            break
        goes = kept[:, i] & (over > 0) & (spare[:, holds[i]] > 0).all(axis=1)
        kept[goes, i] = False
        over = over - goes
        spare = spare - goes[:, None] * holds[i]
    return kept


def _fill(
    kept: NDArray[np.bool_],
    need: NDArray[np.int64],
    among: NDArray[np.bool_],
    weight: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """`kept` and, at each choice, `need` more of those `among` that were not, without replacement, chances as `weight`.

    The largest of log-weights with Gumbel noise are such a draw.
    """
    keys = np.log(np.where(weight > 0, weight, 1)) + rng.gumbel(size=kept.shape)
    free = among & (weight > 0) & ~kept
    rank = np.where(free, -keys, np.inf).argsort(axis=1).argsort(axis=1)
    return kept | (free & (rank < need[:, None]))


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)
