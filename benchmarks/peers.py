"""Encoders of the authors' own packages, of transformers and of handful: equal embeddings, and core-seconds of each.

    python benchmarks/run.py --only peers

Rows are left out for packages that are not installed: `pip install segment-anything` and `pip install sam2`. With
`--no-deps`, sam2 also needs hydra-core and iopath. torchvision is not needed: both packages import it for what comes
before and after a model, and a stand-in without functions takes its place. Weights are random, and the same in all
three. The slice has the size of the model's input, 1024 x 1024.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from handful.backbones.base import Backbone
from handful.backbones.official import from_official_state
from material import sam2_tiny, sam_vit_b
from measure import Cell, Check, Section, Spread, Table, interleaved

SIDE = 1024
CLOSE = 1e-4
MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TORCHVISION = {
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
    "torchvision.transforms": ("Normalize", "Resize", "ToTensor"),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
}
"""What the two packages import of torchvision, and no encode calls."""


@torch.inference_mode()
def measure(rounds: int) -> Section:
    rows: list[tuple[Cell, ...]] = []
    checks, notes = [], []
    for package, (build, features_of, stock) in PEERS.items():
        if find_spec(package.replace("-", "_")) is None:
            notes.append(f"not measured: {package} is not installed (pip install {package})")
            continue
        torch.manual_seed(0)
        official = build().eval()
        fill_positions(official)
        backbone = from_official_state(dict(official.state_dict()), package)
        row, check = compared(
            package, lambda x, model=official, of=features_of: of(model, x), stock(), backbone, rounds
        )
        rows.append(row)
        checks.append(check)
    columns = ("", "authors, core-s", "transformers, core-s", "handful, core-s", "handful / authors")
    tables = (
        (Table("an encode at 1024 px, in turn", (*columns, "handful / transformers"), tuple(rows)),) if rows else ()
    )
    return Section(tables, tuple(checks), tuple(notes))


def compared(
    package: str, authors: Callable[[Tensor], Tensor], stock: nn.Module, backbone: Backbone, rounds: int
) -> tuple[tuple[Cell, ...], Check]:
    grey = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pixels = (grey.expand(-1, 3, -1, -1) - MEAN) / STD
    times = interleaved(
        {
            "authors": lambda: authors(pixels),
            "transformers": lambda: stock(pixels),
            "handful": lambda: backbone.encode(grey),
        },
        rounds,
    )
    own = times["handful"]
    figures = [Spread.of(one.core) for one in times.values()]
    row = (backbone.name, *figures, own.over(times["authors"]), own.over(times["transformers"]))
    error = float((authors(pixels) - backbone.encode_exact(grey).main).abs().max())
    return row, Check(f"{package}: handful's embedding is the authors' ({error:.1e})", error < CLOSE)


def fill_positions(model: nn.Module) -> None:
    """Random position codes, which are zeros in a new model, so that they count in the comparison."""
    for name, parameter in model.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:
            nn.init.normal_(parameter, std=0.02)


@contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Within it torchvision can be imported; what is absent is an object that fails when it is called."""
    if find_spec("torchvision") is not None:
        yield
        return
    for module, names in TORCHVISION.items():
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(dict.fromkeys(names))
    try:
        yield
    finally:
        for module in TORCHVISION:
            del sys.modules[module]


def segment_anything() -> nn.Module:
    with torchvision_or_stand_in():
        from segment_anything import sam_model_registry

    model: nn.Module = sam_model_registry["vit_b"]()
    return model


def sam2() -> nn.Module:
    with torchvision_or_stand_in():
        from sam2.build_sam import build_sam2

    model: nn.Module = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    return model


def sam_features(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model.image_encoder(pixels)
    return found


def sam2_features(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model.forward_image(pixels)["vision_features"]
    return found


PEERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "segment-anything": (segment_anything, sam_features, lambda: sam_vit_b(SIDE).model.vision_encoder.eval()),
    "sam2": (sam2, sam2_features, lambda: sam2_tiny(SIDE).model.vision_encoder.eval()),
}
"""Of each package: its model, the encoder's features in it, and the encoder of transformers."""
