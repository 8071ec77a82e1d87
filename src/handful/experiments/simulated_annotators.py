"""Who asks a fitted segmenter in an experiment: nobody, or a simulated annotator who looks at the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from handful.backbones.base import ImageEmbeddings
from handful.data.cases import Case
from handful.data.volume import LabelMap
from handful.errors import InputError, SettingsError
from handful.experiments.plan import CLICKS, Configuration
from handful.methods.base import NOT_ASKED, PromptableSegmenter, Segmenter, assemble_label_map, to_classes
from handful.methods.promptable import oracle
from handful.prompts.heuristics import centre_points
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL, simulate


def asked(segmenter: Segmenter, configuration: Configuration, split: int) -> Callable[[Case], LabelMap]:
    """What segments a case: the segmenter on its own, or with the configuration's annotator.

    SettingsError where the segmenter cannot be asked in the annotator's way.
    """
    if configuration.annotator is None:
        return lambda case: segmenter.predict(case.read_image())
    clicks = CLICKS.fullmatch(configuration.annotator)
    promptable = segmenter.promptable()
    if promptable is None or (clicks and promptable.encoder is None):
        raise SettingsError(
            f"annotator {configuration.annotator!r} cannot ask {configuration.method}; "
            "boxes and points are for zero-shot, clicks for interactive"
        )
    if clicks:
        return lambda case: _clicked(promptable, case, int(clicks[1]), split)
    return oracle(promptable, configuration.annotator, configuration.jitter, split)  # type: ignore[arg-type]  # checked by Configuration


def _clicked(segmenter: PromptableSegmenter, case: Case, clicks: int, split: int) -> LabelMap:
    """A click in the middle of each label on each slice that holds it, then corrections of the largest errors."""
    reference = case.read_reference()
    if reference is None:
        raise InputError(f"case {case.name!r} has no reference to click into; leave it out")
    stack, encoder = segmenter.slicer.view(case.read_image()), segmenter.encoder
    assert encoder is not None  # `asked` has made sure
    truth = stack.of(reference.array)
    masks = torch.from_numpy(np.stack([truth == value for value in segmenter.labels.values], axis=1))
    generator = Generator().manual_seed(split)

    @torch.inference_mode()
    def answers() -> Iterator[tuple[Sequence[int], Tensor]]:
        for number in torch.nonzero(masks.flatten(1).any(dim=1))[:, 0].tolist():
            slices, wanted = stack.take([number]).to(segmenter.backbone.device), masks[number : number + 1]
            image, size = encoder.encode(slices), (slices.shape[-2], slices.shape[-1])
            there = wanted.flatten(2).any(dim=2)[0]

            def ask(prompts: Prompts, image: ImageEmbeddings = image) -> Tensor:
                return segmenter.answer_encoded(image, prompts)

            rounds = simulate(
                ask,
                wanted[:, there],
                centre_points(wanted[:, there]),
                CAREFUL,
                clicks - 1,
                generator,
            )
            logits = torch.full((1, len(there), *size), NOT_ASKED)
            logits[:, there] = rounds.logits.cpu()
            yield [number], to_classes(logits)

    return assemble_label_map(stack, segmenter.labels, answers())
