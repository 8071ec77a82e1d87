"""Segmentation of test cases in an experiment: automatically, or with prompts simulated from the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from handful.backbones.base import Backbone, ImageEmbeddings
from handful.data.cases import Case
from handful.data.slicing import SliceView
from handful.data.volume import LabelMap
from handful.errors import InputError, SettingsError
from handful.experiments.plan import BY_SLICE, CLICKS, Configuration
from handful.methods.base import UNPROMPTED, PromptableSegmenter, Segmenter, assemble_label_map, to_classes
from handful.methods.everything import everything
from handful.methods.promptable import oracle
from handful.prompts.heuristics import boxes, centre_points
from handful.prompts.prompts import Prompts
from handful.prompts.simulation import CAREFUL, simulate

CERTAIN = 10.0
"""Logit of a pixel inside an object that was taken as it is."""
Answer = Callable[[PromptableSegmenter, SliceView, int, Tensor], Tensor]
"""Returns logits (k, h, w) for one slice of a stack and the true masks (k, h, w) of the labels that it contains."""


def segmentation_function(segmenter: Segmenter, configuration: Configuration, split: int) -> Callable[[Case], LabelMap]:
    """The function that segments a case: `segmenter` by itself, or prompted by the configuration's annotator.

    Raises SettingsError if the segmenter does not take the prompts of this annotator.
    """
    if configuration.annotator is None:
        return lambda case: segmenter.predict(case.read_image())
    by_slice = configuration.annotator in BY_SLICE or CLICKS.fullmatch(configuration.annotator)
    promptable = segmenter.promptable()
    if promptable is None or (by_slice and promptable.encoder is None):
        raise SettingsError(
            f"{configuration.method} does not take the prompts of the annotator {configuration.annotator!r}; "
            "boxes, points and everything are for zero-shot, clicks for interactive, volume-adapter and zero-shot"
        )
    if by_slice:
        return lambda case: _segment_slices(promptable, case, _answer(configuration, Generator().manual_seed(split)))
    return oracle(promptable, configuration.annotator, configuration.jitter, split)  # type: ignore[arg-type]  # checked by Configuration


def _answer(configuration: Configuration, generator: Generator) -> Answer:
    if clicks := CLICKS.fullmatch(configuration.annotator or ""):
        return partial(_by_clicks, clicks=int(clicks[1]), generator=generator)
    if configuration.annotator == "boxes":
        return partial(_by_boxes, jitter=configuration.jitter, generator=generator)
    return _best_objects


def _segment_slices(segmenter: PromptableSegmenter, case: Case, answer: Answer) -> LabelMap:
    """Segment each slice that contains a label, with the help of the reference."""
    reference = case.read_reference()
    if reference is None:
        raise InputError(f"case {case.name!r} has no reference to take prompts from; leave it out")
    stack = segmenter.slicer.view(case.read_image())
    truth = stack.of(reference.array)
    masks = torch.from_numpy(np.stack([truth == value for value in segmenter.labels.values], axis=1))

    @torch.inference_mode()
    def predictions() -> Iterator[tuple[Sequence[int], Tensor]]:
        for number in torch.nonzero(masks.flatten(1).any(dim=1))[:, 0].tolist():
            present = masks[number].flatten(1).any(dim=1)
            logits = torch.full(masks[number].shape, UNPROMPTED)[None]
            logits[0, present] = answer(segmenter, stack, number, masks[number, present]).cpu()
            yield [number], to_classes(logits)

    return assemble_label_map(stack, segmenter.labels, predictions())


def _encoded(encoder: Backbone, stack: SliceView, number: int) -> ImageEmbeddings:
    """Embeddings of one slice, with the neighbours that they depend on."""
    slices, place = stack.around(number, encoder.reach)
    return encoder.encode(slices.to(encoder.device))[place]


def _best_objects(segmenter: PromptableSegmenter, stack: SliceView, number: int, truth: Tensor) -> Tensor:
    """For each label, the object of the "everything" mode that is most like it."""
    objects = everything(stack.take([number]), segmenter.backbone).masks.cpu()
    if not len(objects):
        return torch.full(truth.shape, UNPROMPTED)
    both = (objects[None] & truth[:, None]).sum(dim=(2, 3))
    either = (objects[None] | truth[:, None]).sum(dim=(2, 3))
    iou, best = (both / either).max(dim=1)
    return torch.where(objects[best] & (iou > 0)[:, None, None], CERTAIN, UNPROMPTED)


def _by_boxes(
    segmenter: PromptableSegmenter, stack: SliceView, number: int, truth: Tensor, jitter: float, generator: Generator
) -> Tensor:
    """One box around each connected piece of each label."""
    encoder = segmenter.encoder
    assert encoder is not None, "segmentation_function has checked it"
    image, found = _encoded(encoder, stack, number), []
    for mask in truth.numpy():
        numbered, count = ndimage.label(mask)
        pieces = torch.from_numpy(np.stack([numbered == number for number in range(1, count + 1)]))[None]
        logits = segmenter.decode(image, Prompts(boxes=boxes(pieces, jitter, generator)).to(encoder.device))
        found.append(logits[0].amax(dim=0))
    return torch.stack(found)


def _by_clicks(
    segmenter: PromptableSegmenter, stack: SliceView, number: int, truth: Tensor, clicks: int, generator: Generator
) -> Tensor:
    """One click in the middle of each label, then corrections of the largest errors."""
    encoder = segmenter.encoder
    assert encoder is not None, "segmentation_function has checked it"
    image, masks = _encoded(encoder, stack, number), truth[None]

    def decode(prompts: Prompts) -> Tensor:
        return segmenter.decode(image, prompts)

    return simulate(decode, masks, centre_points(masks), CAREFUL, clicks - 1, generator).logits[0]
