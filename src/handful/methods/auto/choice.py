"""The rules by which `auto` chooses a method, its number of training steps and the size of its slices."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from pydantic import TypeAdapter
from torch import Tensor

from handful.data.support import SupportSet
from handful.errors import SettingsError
from handful.jobs.plain_text import counted
from handful.methods.learned import Learned

SELF_TRAINING, UNET = "self-training", "unet"
ENOUGH_UNLABELLED = 10
"""Unlabelled scans from which on self-training is chosen."""
FEWEST_STEPS = 300
"""Training steps below which nothing is trained."""
COMFORTABLE_STEPS = 1000
"""Training steps for which slices are reduced, if there is no time for as many at full size."""
SMALLEST_SIDE, GRANULE = 96, 32
"""Pixels along the square to which slices are reduced at most, and the step between two sizes."""
MOST_STEPS = {SELF_TRAINING: 12_000, UNET: 4_000}
"""Training steps above which more time is not used."""
RELATIVE_COST = {SELF_TRAINING: 1.8, UNET: 1.0}
"""Time of a training step relative to one of the U-Net on labelled slices, averaged over the training."""
SHARE_OF_FINAL_FIT = 0.7
"""Share of the time that is planned for the final fit; the rest is for the check and for reading."""
CLEARLY = 0.05
"""Difference in Dice by which a method without training must be better in the check to be preferred."""
LADDER = (1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.3, 2.6, 3, 3.5, 4, 4.5, 5, 5.6, 6.3, 7, 8, 9)
"""Steps are one of these times a power of ten, so that small differences in speed change nothing, and little time is
left unused."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the choice depends on."""

    patients: int
    """Labelled patients."""
    labelled: int
    """Labelled cases."""
    unlabelled: int
    """Unlabelled scans."""
    uncertain: int = 0
    """Unlabelled scans with uncertain labels, such as masks made from boxes."""

    @classmethod
    def of(cls, support: SupportSet) -> Situation:
        patients = {case.patient_key for case in support.cases}
        partly = sum(not facts.complete for facts in support.facts)
        return cls(
            patients=len(patients),
            labelled=len(support.cases),
            unlabelled=len(support.unlabelled) + partly,
            uncertain=len(support.unlabelled.labels),
        )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured time of one training step of the U-Net on labelled slices."""

    side: int
    """Pixels along the square."""
    seconds: float

    def at(self, side: int) -> float:
        """Estimated seconds at another side; the time is proportional to the number of pixels."""
        return self.seconds * (side / self.side) ** 2


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A method without training that was better in the check than the first steps of a long training."""

    method: str
    dice: float
    """Mean Dice on the cases that were left out of its fit."""
    cases: tuple[str, ...]
    """Names of these cases."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method, and the settings of a training that the user did not set."""

    method: str
    """Name of the method."""
    steps: int | None = None
    """Training steps; None for methods without training and where the user set the number."""
    side: int | None = None
    """Pixels along the square; None leaves the choice to the method."""
    reasons: tuple[str, ...] = ()
    """One sentence each."""
    rival: Rival | None = None
    """What takes the place of the chosen method if that is worse even after its training."""

    def because(self, reason: str) -> Choice:
        """The same choice with one more reason."""
        return dataclasses.replace(self, reasons=(*self.reasons, reason))

    def pack(self) -> UInt8[Tensor, " n"]:
        """The choice as UTF-8 bytes of JSON, to be saved among tensors."""
        return torch.tensor(list(self.to_json().encode()), dtype=torch.uint8)

    @classmethod
    def unpack(cls, packed: UInt8[Tensor, " n"]) -> Choice:
        """The inverse of `pack`. Raises SettingsError if it is no choice."""
        try:
            return cls.from_json(Learned({"choice": packed}).text("choice"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise SettingsError("tensor 'choice' is not the text of a choice") from error

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Choice:
        """The inverse of `to_json`. Raises ValueError for any other text."""
        return TypeAdapter(cls).validate_json(text)


def preferred_method(situation: Situation) -> Choice:
    """The method for a number of labelled cases and unlabelled scans, if there is time for a training."""
    labelled = counted(situation.labelled, "labelled case")
    if situation.uncertain:
        choice = Choice(method=SELF_TRAINING)
        return choice.because(f"{labelled} and {situation.uncertain} with uncertain labels, so these are used too")
    if situation.unlabelled >= ENOUGH_UNLABELLED:
        choice = Choice(method=SELF_TRAINING)
        return choice.because(f"{labelled} and {situation.unlabelled} unlabelled scans, so the unlabelled are used too")
    few = f"only {counted(situation.unlabelled, 'unlabelled scan')}" if situation.unlabelled else "no unlabelled scans"
    return Choice(method=UNET).because(f"{labelled} and {few}, so a U-Net learns from the labels alone")


def with_training(choice: Choice, speed: Speed, minutes: float, smallest: int = SMALLEST_SIDE) -> Choice | None:
    """The choice with as many steps, on slices as large, as there is time for; None if that is too little to train.

    Slices are reduced to `smallest` pixels along the square at most.
    """
    available = 60 * minutes * SHARE_OF_FINAL_FIT / RELATIVE_COST[choice.method]
    side = speed.side
    while available / speed.at(side) < COMFORTABLE_STEPS and side - GRANULE >= smallest:
        side -= GRANULE
    steps = on_ladder(min(available / speed.at(side), MOST_STEPS[choice.method]))
    if steps < FEWEST_STEPS:
        return None
    return dataclasses.replace(choice, steps=steps, side=side if side < speed.side else None)


def paced(choice: Choice, seconds_per_step: float, seconds_left: float) -> Choice:
    """The choice with as many steps as fit into the time left, at the speed that was measured in the check."""
    steps = on_ladder(min(max(seconds_left / seconds_per_step, FEWEST_STEPS), MOST_STEPS[choice.method]))
    return dataclasses.replace(choice, steps=steps)


def training_reason(choice: Choice, side: int, minutes: float) -> str:
    """The size of a training, in one phrase; `side` is the number of pixels that the method chooses."""
    reduced = f" (reduced from {side}, because there is no time for more)" if choice.side else ""
    chosen = choice.side or side
    return f"{choice.steps:,} training steps on {chosen} × {chosen} pixels{reduced}, within {minutes:g} min"


def on_ladder(steps: float) -> int:
    """The largest of the usual numbers of steps that is not above `steps`."""
    if steps < 1:
        return 0
    power = 10.0 ** math.floor(math.log10(steps))
    return round(power * max(rung for rung in LADDER if rung * power <= steps))
