"""Early stopping: keep the weights that did best on held-out data, and end a training that no longer gains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from handful.tuning.loop import CHECKPOINT, DAMAGE, read_checkpoint, write_checkpoint
from handful.tuning.trainable import load_trainable_state, trainable_state


class EarlyStopping:
    """Held-out losses by step and the best weights so far, for `train(..., stop=)`.

    They are kept in a file, so that a killed training chooses alike: resumed, it runs through the same weights, so a
    step that was checked before is not checked again, and best weights from a later step are those it will reach.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[], float], every: int, patience: int, scratch: Path | None
    ) -> None:
        """`loss` of the model as it is, checked at each `every` steps; `patience` is a number of checks."""
        self.model, self.loss, self.every, self.patience = model, loss, every, patience
        self.losses: dict[int, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.path = scratch and scratch / "best.safetensors"
        if self.path and self.path.exists():
            self._load(self.path)

    def __call__(self, step: int) -> bool:
        """Whether to end before this step: the last `patience` checks found no lower loss than an earlier one."""
        if step == 0 or step % self.every:
            return False
        self.check(step)
        return step - self._best_step(step) >= self.patience * self.every

    def check(self, step: int) -> None:
        """Notes the loss after so many steps, and the weights if they are the best so far."""
        if step in self.losses:
            return
        loss = self.loss()
        if not self.weights or loss < min(self.losses.values()):
            self.weights = trainable_state(self.model)
        self.losses[step] = loss
        if self.path:
            tensors = {name: value.cpu().contiguous() for name, value in self.weights.items()}
            write_checkpoint(self.path, {"losses": self.losses}, tensors)

    def restore_best(self) -> None:
        """Writes the best weights into the model."""
        load_trainable_state(self.model, self.weights)

    def _load(self, path: Path) -> None:
        """Read the file; where it is damaged, the training has to find all losses again."""
        try:
            note, self.weights = read_checkpoint(path)
            self.losses = {int(step): loss for step, loss in note["losses"].items()}
        except DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); the training starts from the beginning", stacklevel=3)
            self.weights = {}
            (path.parent / CHECKPOINT).unlink(missing_ok=True)

    def _best_step(self, step: int) -> int:
        """The step with the lowest loss up to this one."""
        return min((loss, s) for s, loss in self.losses.items() if s <= step)[1]
