"""Methods compute in single precision: Apple's GPUs (MPS) have no float64."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.variants import BACKBONES, VARIANTS, support

DOUBLE = (torch.float64, torch.complex128)


class NoDouble(TorchDispatchMode):
    """While active, an operation of PyTorch on double precision fails, as it does on MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.dtype in DOUBLE:
                raise TypeError(f"{func} on {value.dtype}")
        return result


@pytest.mark.parametrize("name", ["fate", "few-shot-prompts", "interactive, pruned", "nearest-slice", "unet"])
def test_fit_and_predict_and_confidence_use_no_float64(name: str) -> None:
    variant = VARIANTS[name]
    backbone, cases = BACKBONES[variant.backbone](), support()
    image = cases.cases[0].read_image()
    with NoDouble():
        segmenter = variant.build().fit(cases, backbone)
        prediction = segmenter.predict(image)
        segmenter.confidence(image, prediction)


def test_the_check_finds_float64() -> None:
    with NoDouble(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()
