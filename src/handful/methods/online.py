"""The interface of a model that learns while a person corrects masks, one object after the other.

An object is one label on one slice. A learner is immutable: what learning returns is another learner, so that a session
can undo it exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Attempt:
    """Two predictions of an object after one prompt, made before anything was learned from it."""

    window: tuple[int, int, int, int]
    """The crop around the object in slice pixels: first row, last row + 1, first column, last column + 1."""
    backbone: Float[Tensor, "s s"]
    """The backbone's logits in the crop, in half precision on the CPU."""
    learner: Float[Tensor, "s s"]
    """The learner's logits in the crop, in half precision on the CPU."""


@dataclass(frozen=True, eq=False)
class PromptedObject:
    """What is known of an object when a learner predicts it."""

    pixels: Float[Tensor, "c h w"]
    """The slice, with values in [0, 1]."""
    logits: Float[Tensor, "h w"]
    """The backbone's logits after the last prompt."""
    points: Sequence[tuple[float, float, bool]] = ()
    """x and y of all clicks in slice pixels, and whether the click is positive."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 in slice pixels; the corner pixels belong to the box."""
    is_first: bool = True
    """Whether this is the first prompt for the object."""


@dataclass(frozen=True, eq=False)
class CorrectedObject:
    """An object whose mask a person has accepted."""

    pixels: Float[Tensor, "c h w"]
    """The slice, with values in [0, 1]."""
    attempts: Sequence[Attempt]
    """The predictions after its first prompt and, if there were more, after its last one."""
    mask: Bool[Tensor, "h w"]
    """The accepted mask."""


class OnlineLearner(ABC):
    """Changes the backbone's masks by what it has learned from corrected objects; immutable."""

    @abstractmethod
    def predict(self, label: str, prompted: PromptedObject) -> tuple[Float[Tensor, "h w"], Attempt]:
        """Logits of an object of the label with this name, and the predictions that they were made of.

        The logits are `prompted.logits` themselves while the learner has no reason to change them.
        """

    @abstractmethod
    def after(self, label: str, corrected: CorrectedObject) -> OnlineLearner:
        """The learner that has also learned from this object."""

    @abstractmethod
    def packed(self) -> bytes:
        """Everything that was learned, as the content of a safetensors file."""

    @abstractmethod
    def unpacked(self, content: bytes) -> OnlineLearner:
        """The learner from `packed`. Raises DamagedFile if `content` is anything else."""
