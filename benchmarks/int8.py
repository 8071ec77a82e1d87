"""What 8-bit integers could gain: the linear layers of an encoder in float32, bfloat16 and int8, by core-seconds.

torch quantises linear layers only ("dynamic": weights in advance, inputs as they come), so the rest of an encode stays
as it is, and "an encode, at best" is the encode with the linear layers in int8 and nothing lost elsewhere.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from handful.backbones.base import Backbone
from material import sam2_tiny, sam_vit_b, slices
from measure import Section, Spread, Table, Timing, interleaved

Shape = tuple[int, int, int]
"""Rows of the input, its columns, and columns of the output."""
COLUMNS = (
    "",
    "an encode, core-s",
    "its linear layers, float32",
    "bfloat16",
    "int8",
    "int8, times faster",
    "an encode, at best",
)


@torch.inference_mode()
def measure(rounds: int) -> Section:
    rows = []
    for backbone in (sam2_tiny(1024), sam_vit_b()):
        encode, layers = in_parts(backbone, rounds)
        whole, single = Spread.of(encode.core), Spread.of(layers["float32"].core)
        faster = layers["float32"].over(layers["int8"])
        best = whole.median / (whole.median - single.median + Spread.of(layers["int8"].core).median)
        shorter = (Spread.of(layers[name].core) for name in ("bfloat16", "int8"))
        rows.append((backbone.name, whole, single, *shorter, faster, f"{best:.2f} times faster"))
    return Section((Table("linear layers of an encode at 1024 px, in turn", COLUMNS, tuple(rows)),))


def in_parts(backbone: Backbone, rounds: int) -> tuple[Timing, dict[str, Timing]]:
    """Times of an encode, and of all its linear layers in each precision."""
    shown = slices(1, backbone.side)
    shapes = linear_shapes(backbone, shown)
    work: dict[str, Callable[[], object]] = {
        precision: partial(carry_out, [(build(shape), input_of(shape, precision), times) for shape, times in shapes])
        for precision, build in BUILDERS.items()
    }
    times = interleaved(work | {"encode": partial(backbone.encode, shown)}, rounds)
    return times.pop("encode"), times


def linear_shapes(backbone: Backbone, shown: Tensor) -> list[tuple[Shape, int]]:
    """The linear layers that an encode of these slices runs, and how often each."""
    found: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        found[(inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features)] += 1

    hooks = [one.register_forward_hook(note) for one in backbone.modules() if isinstance(one, nn.Linear)]
    backbone.encode(shown)
    for hook in hooks:
        hook.remove()
    return list(found.items())


def carry_out(layers: list[tuple[nn.Module, Tensor, int]]) -> None:
    for layer, given, times in layers:
        for _ in range(times):
            layer(given)


def input_of(shape: Shape, precision: str) -> Tensor:
    given = torch.randn(shape[0], shape[1])
    return given.bfloat16() if precision == "bfloat16" else given


def _int8(shape: Shape) -> nn.Module:
    layer = nn.Sequential(nn.Linear(shape[1], shape[2]).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao is to replace it; nothing else here needs that package
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    return quantised


BUILDERS: dict[str, Callable[[Shape], nn.Module]] = {
    "float32": lambda shape: nn.Linear(shape[1], shape[2]).eval(),
    "bfloat16": lambda shape: nn.Linear(shape[1], shape[2]).eval().bfloat16(),
    "int8": _int8,
}
