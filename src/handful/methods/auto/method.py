"""Auto: the method, its training and the size of its slices are chosen for the labelled and unlabelled scans at hand.

The rules are in `choice`. If there are two or more labelled patients, the choice is checked on some that are left out.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from handful.backbones.base import Backbone, MemoryBackbone
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import Labels
from handful.errors import SettingsError
from handful.jobs.atomic import write_atomically
from handful.jobs.digests import digest_of_json
from handful.jobs.progress import Run, silent
from handful.methods.auto.check import Check, Stopwatch, scores_of
from handful.methods.auto.choice import (
    CLEARLY,
    COMFORTABLE_STEPS,
    FEWEST_STEPS,
    SELF_TRAINING,
    SMALLEST_SIDE,
    UNET,
    Choice,
    Rival,
    Situation,
    Speed,
    paced,
    preferred_method,
    training_reason,
    with_training,
)
from handful.methods.base import Held, Method, Segmenter, Work, below
from handful.methods.fate.method import Fate
from handful.methods.left_out import mean_dice, scores_on
from handful.methods.nearest_slice import NearestSlice
from handful.methods.self_training.method import SelfTraining
from handful.methods.unet.method import UNet
from handful.methods.wrappers.base import DelegatingSegmenter, Wrapper

FATE, NEAREST_SLICE = "fate", "nearest-slice"
TIMED_STEPS = 6
"""Training steps to measure the speed of this machine."""
CHECK_SHARE = 4
"""The check trains a quarter of the steps."""
NOTE = "choice.json"
"""File of the choice among half-done work, so that a resumed fit does not measure and choose again."""


@dataclass(frozen=True, kw_only=True)
class Auto(Wrapper):
    """Chooses among the other methods for the scans at hand, checks the choice on labelled cases, and says why."""

    when = "whenever you are in doubt; the default"
    minutes = "30 min, or as many as you give"

    slicer: Slicer = Slicer()
    """Slice plane and intensity window, used for fitting and predicting."""
    budget_minutes: float = 30.0
    """Minutes that the fit may take, roughly, on this machine."""
    check: bool = True
    """Compare the chosen method with methods without training on labelled cases that are left out, if there are two
    labelled patients or more; a quarter of the time goes into it."""
    self_training: SelfTraining = SelfTraining(initial="none")
    """Settings of self-training, if it is chosen."""
    unet: UNet = UNet()
    """Settings of the U-Net, if it is chosen."""
    seed: int = 0
    """Random seed, added to those of methods that train."""

    def __post_init__(self) -> None:
        if not 0 < self.budget_minutes < float("inf"):
            raise SettingsError(f"budget_minutes must be above 0, got {self.budget_minutes}")
        for name, member in (("self_training", self.self_training), ("unet", self.unet)):
            if member.slicer != Slicer():
                raise SettingsError(f"{name}.slicer is set, but all methods use the same slices; set slicer instead")
        if self.unet.pretrain != "none":
            raise SettingsError(
                f"unet.pretrain is {self.unet.pretrain!r}, whose time auto does not plan; name the method unet for it"
            )

    @property
    def uses_all_sequences(self) -> bool:
        return True

    @property
    def uses_unlabelled(self) -> bool:
        return True

    @property
    def uses_uncertain_labels(self) -> bool:
        return True

    def fit(self, support: SupportSet, backbone: Backbone, run: Run = Run()) -> AutoSegmenter:  # noqa: B008
        slicer = self.resolved_slicer(support)
        with support.held() as held:
            name = self._fingerprint(held, slicer, backbone)
            run = dataclasses.replace(run, scratch=run.scratch and run.scratch / name)
            choice = _noted(run.scratch) or self._choice(held, slicer, backbone, run)
            if run.scratch:
                write_atomically(run.scratch / NOTE, choice.to_json().encode())
            segmenter = self._built(choice, slicer).fit(held, backbone, run.part(choice.method))
            if (rival := choice.rival) is not None:
                choice = after_training(choice, rival, self._own_dice(rival, segmenter, held))
                if choice.method == rival.method:
                    segmenter = self._built(choice, slicer).fit(held, backbone, run.part(choice.method))
            return AutoSegmenter(segmenter, choice)

    def work(self, support: SupportSet, backbone: Backbone) -> tuple[Work, ...]:
        """None, since it is unknown before the choice; the fit takes about `budget_minutes`."""
        return ()

    def needs_backbone(self, learned: Mapping[str, Tensor]) -> bool:
        choice = Choice.unpack(learned["choice"])
        return self._built(choice, self.slicer).needs_backbone(below(choice.method, learned))

    def restore(self, labels: Labels, slicer: Slicer, backbone: Backbone, learned: dict[str, Tensor]) -> AutoSegmenter:
        choice = Choice.unpack(learned["choice"])
        if choice.method not in (SELF_TRAINING, UNET, FATE, NEAREST_SLICE):
            raise SettingsError(f"tensor 'choice' names the method {choice.method[:40]!r}, which auto does not choose")
        method = self._built(choice, slicer)
        return AutoSegmenter(method.restore(labels, slicer, backbone, below(choice.method, learned)), choice)

    def resolved(self, backbone: Backbone) -> Auto:
        return dataclasses.replace(
            self, self_training=self.self_training.resolved(backbone), unet=self.unet.resolved(backbone)
        )

    def _fingerprint(self, support: SupportSet, slicer: Slicer, backbone: Backbone) -> str:
        """Identifies the fit by all that its result depends on, apart from the speed of the machine."""
        scans = [(facts.image_sha256, facts.labels_sha256) for facts in support.facts]
        names = [case.name for case in support.unlabelled.cases]
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        further = [names, support.unlabelled.labels_digest, backbone.digest()]
        return digest_of_json([settings, repr(slicer), scans, *further])[:16]

    def _choice(self, support: SupportSet, slicer: Slicer, backbone: Backbone, run: Run) -> Choice:
        """The choice for a support set, after a check if there are labelled patients enough."""
        began = time.monotonic()
        choice, speed = preferred_method(Situation.of(support)), None
        if self._trained(choice.method).train.iterations is None:
            timed = _unet_of(self._trained(choice.method))
            speed = _speed(timed.with_slicer(slicer), support, slicer, backbone, run)
            smallest = SMALLEST_SIDE if timed.side is None else timed.side
            trained = with_training(choice, speed, self.budget_minutes, smallest)
            choice = trained or self._without_time(choice, support, backbone)
        checks = self.check and not support.scribbled
        found = self._checked(choice, support, slicer, backbone, run) if checks else None
        if found and found.seconds_per_step and choice.steps:
            choice = paced(choice, found.seconds_per_step, 60 * self.budget_minutes - (time.monotonic() - began))
        if speed and choice.steps:
            choice = choice.because(training_reason(choice, speed.side, self.budget_minutes))
        if support.scribbled:
            return choice.because("not checked, because scribbles show no Dice")
        return after_check(choice, found) if self.check else choice

    def _without_time(self, choice: Choice, support: SupportSet, backbone: Backbone) -> Choice:
        """The choice if there is no time to train; scribbles are learned from in any case, as nothing else can."""
        reason = f"there is no time for {FEWEST_STEPS} training steps within {self.budget_minutes:g} min"
        if support.scribbled:
            return dataclasses.replace(choice, steps=FEWEST_STEPS).because(f"{reason}, but scribbles need a training")
        instead = _untrained(backbone)[0]
        return dataclasses.replace(choice, method=instead).because(f"{reason}, so {instead} is used, without training")

    def _checked(
        self, choice: Choice, support: SupportSet, slicer: Slicer, backbone: Backbone, run: Run
    ) -> Check | None:
        """The chosen method, with a shorter training, and the methods without training on cases that are left out."""
        short = choice
        if choice.steps:
            short = dataclasses.replace(choice, steps=max(FEWEST_STEPS, choice.steps // CHECK_SHARE))
        names = dict.fromkeys([choice.method, *_untrained(backbone)])
        candidates = {
            name: self._built(short if name == choice.method else Choice(method=name), slicer) for name in names
        }
        return scores_of(choice.method, short.steps, candidates, support, backbone, run)

    def _own_dice(self, rival: Rival, segmenter: Segmenter, support: SupportSet) -> float:
        """Mean Dice of the trained method on the cases that the rival was scored on."""
        cases = [case for case in support.cases if case.name in rival.cases]
        return mean_dice(scores_on(cases, segmenter, support))

    def _built(self, choice: Choice, slicer: Slicer) -> Method:
        if choice.method in (SELF_TRAINING, UNET):
            method = self._trained(choice.method)
            train = dataclasses.replace(method.train, iterations=choice.steps or method.train.iterations)
            built: Method = dataclasses.replace(method, side=choice.side or method.side, train=train)
            return built.with_slicer(slicer).seeded(self.seed)
        return (Fate() if choice.method == FATE else NearestSlice()).with_slicer(slicer)

    def _trained(self, name: str) -> UNet:
        return self.self_training if name == SELF_TRAINING else self.unet


class AutoSegmenter(DelegatingSegmenter):
    """The segmenter of the chosen method, with the reasons for the choice."""

    def __init__(self, chosen: Segmenter, choice: Choice) -> None:
        super().__init__({choice.method: chosen})
        self.choice = choice

    @property
    def decisions(self) -> tuple[str, ...]:
        return (f"chosen: {self.choice.method}", *self.choice.reasons, *super().decisions)

    @property
    def holds(self) -> frozenset[Held]:
        return super().holds | {"names"}  # the reasons name the case of the check

    def learned(self) -> dict[str, Tensor]:
        return super().learned() | {"choice": self.choice.pack()}

    def extend(self, support: SupportSet) -> AutoSegmenter:
        return AutoSegmenter(self.inner.extend(support), self.choice)


def _unet_of(method: UNet) -> UNet:
    """A U-Net with the settings that self-training shares with it, or the U-Net itself."""
    return UNet(**{field.name: getattr(method, field.name) for field in dataclasses.fields(UNet)})


def _speed(unet: UNet, support: SupportSet, slicer: Slicer, backbone: Backbone, run: Run) -> Speed:
    """The time of a training step, measured on a few of them."""
    side = unet.plan(support, slicer, backbone).side
    train = dataclasses.replace(unet.train, iterations=TIMED_STEPS)
    run.report(0, TIMED_STEPS, "measuring the speed of this machine")
    watch = Stopwatch(silent, TIMED_STEPS)
    dataclasses.replace(unet, side=side, train=train).fit(support, backbone, Run(report=watch))
    assert watch.seconds_per_step is not None
    return Speed(side=side, seconds=max(1e-6, watch.seconds_per_step))


def _untrained(backbone: Backbone) -> list[str]:
    """Methods without training that the backbone allows, the better one first."""
    return [FATE, NEAREST_SLICE] if isinstance(backbone, MemoryBackbone) else [NEAREST_SLICE]


def _noted(scratch: Path | None) -> Choice | None:
    if scratch is None or not (scratch / NOTE).exists():
        return None
    return Choice.from_json((scratch / NOTE).read_text("utf-8"))


def after_check(choice: Choice, found: Check | None) -> Choice:
    """The choice with the result of its check; another method if that is clearly better."""
    if found is None:
        return choice.because("not checked, because no labelled patient can be left out")
    best = found.best()
    is_better = best != choice.method and found.dice[best] > found.dice[choice.method] + CLEARLY
    is_early = (choice.steps or 0) >= COMFORTABLE_STEPS
    final, then = choice, ""
    if is_better and is_early:
        final = dataclasses.replace(choice, rival=Rival(method=best, dice=found.dice[best], cases=found.cases))
        then = f"; {choice.method} is compared again after its whole training"
    elif is_better:
        final = Choice(method=best, reasons=choice.reasons)
        then = f"; so {best} is used in place of {choice.method}"
    short = f" ({choice.method} with a shorter training)" if choice.steps else ""
    scores = ", ".join(f"{name} {dice:.2f}" for name, dice in found.dice.items())
    return final.because(f"Dice on {', '.join(found.cases)}, left out{short}: {scores}{then}")


def after_training(choice: Choice, rival: Rival, dice: float) -> Choice:
    """The choice after a long training with this Dice on the rival's cases, which it has learned from.

    A training that is worse on cases that it knows than the rival on cases left out has come to nothing.
    """
    compared = f"{choice.method} has a Dice of {dice:.2f} on {', '.join(rival.cases)} after its whole training"
    if dice >= rival.dice:
        return dataclasses.replace(choice, rival=None).because(f"{compared}, so it is kept")
    replaced = Choice(method=rival.method, reasons=choice.reasons)
    return replaced.because(f"{compared}, so {rival.method} is used in its place")
