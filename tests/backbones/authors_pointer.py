"""Transformers' video session, with the object pointer of a labelled frame as the authors of SAM 2 take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from transformers import EdgeTamVideoModel, Sam2VideoModel


@contextmanager
def pointers_of_the_single_mask(model: Sam2VideoModel | EdgeTamVideoModel) -> Iterator[None]:
    """The authors' `_use_mask_as_output` leaves `multimask_output` at False; transformers' at True.

    Only frames with a mask prompt are decoded with `input_masks`, so only they change.
    """
    forward = model._single_frame_forward

    def with_the_authors_default(*args: object, **kwargs: object) -> object:
        labelled = kwargs.get("input_masks") is not None
        return (partial(forward, multimask_output=False) if labelled else forward)(*args, **kwargs)

    model._single_frame_forward = with_the_authors_default
    yield
    del model._single_frame_forward
