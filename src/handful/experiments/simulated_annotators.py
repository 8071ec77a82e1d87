"""Segmentation of test cases in an experiment: automatically, or with prompts simulated from the reference."""

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
from handful.methods.base import UNPROMPTED, PromptableSegmenter, Segmenter, assemble_label_map, to_classes
from handful.methods.promptable import oracle
from handful.prompts.heuristics import centre_points
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL, simulate


def segmentation_function(segmenter: Segmenter, configuration: Configuration, split: int) -> Callable[[Case], LabelMap]:
    """The function that segments a case: `segmenter` by itself, or prompted by the configuration's annotator.

    Raises SettingsError if the segmenter does not take the prompts of this annotator.
    """
    if configuration.annotator is None:
        return lambda case: segmenter.predict(case.read_image())
    clicks = CLICKS.fullmatch(configuration.annotator)
    promptable = segmenter.promptable()
    if promptable is None or (clicks and promptable.encoder is None):
        raise SettingsError(
            f"{configuration.method} does not take the prompts of the annotator {configuration.annotator!r}; "
            "boxes and points are for zero-shot, clicks for interactive"
        )
    if clicks:
        return lambda case: _segment_by_clicks(promptable, case, int(clicks[1]), split)
    return oracle(promptable, configuration.annotator, configuration.jitter, split)  # type: ignore[arg-type]  # checked by Configuration


def _segment_by_clicks(segmenter: PromptableSegmenter, case: Case, clicks: int, split: int) -> LabelMap:
    """One click in the middle of each label on each slice that contains it, then corrections of the largest errors."""
    reference = case.read_reference()
    if reference is None:
        raise InputError(f"case {case.name!r} has no reference to take clicks from; leave it out")
    stack, encoder = segmenter.slicer.view(case.read_image()), segmenter.encoder
    assert encoder is not None, "segmentation_function has checked it"
    truth = stack.of(reference.array)
    masks = torch.from_numpy(np.stack([truth == value for value in segmenter.labels.values], axis=1))
    generator = Generator().manual_seed(split)

    @torch.inference_mode()
    def predictions() -> Iterator[tuple[Sequence[int], Tensor]]:
        for number in torch.nonzero(masks.flatten(1).any(dim=1))[:, 0].tolist():
            slices, truth_masks = stack.take([number]).to(segmenter.backbone.device), masks[number : number + 1]
            image, size = encoder.encode(slices), (slices.shape[-2], slices.shape[-1])
            present = truth_masks.flatten(2).any(dim=2)[0]

            def decode(prompts: Prompts, image: ImageEmbeddings = image) -> Tensor:
                return segmenter.decode(image, prompts)

            rounds = simulate(
                decode,
                truth_masks[:, present],
                centre_points(truth_masks[:, present]),
                CAREFUL,
                clicks - 1,
                generator,
            )
            logits = torch.full((1, len(present), *size), UNPROMPTED)
            logits[:, present] = rounds.logits.cpu()
            yield [number], to_classes(logits)

    return assemble_label_map(stack, segmenter.labels, predictions())
