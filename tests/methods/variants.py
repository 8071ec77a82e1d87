"""Every method, in each form that takes a path of its own through the code, small enough to be fitted in no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

import tiny_models
from handful.backbones.base import Backbone, MemoryBackbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import IGNORE
from handful.jobs.progress import Run
from handful.methods.base import Method, Segmenter
from handful.methods.catalog import build_method
from phantoms import LABELS, phantom_case

SIDE = 64
STEPS = {"batch": 2, "train.iterations": 4, "train.learning_rate": 2e-3}
"""Enough to be killed half-way."""
NET = STEPS | {"channels": 4, "side": 32, "encoder": "none"}
STACKS = NET | {"dims": 3, "depth": 4}


@dataclass(frozen=True)
class Variant:
    """A method with settings, and the kind of backbone that it is fitted on."""

    method: str
    settings: Mapping[str, object]
    backbone: str = "sam"
    seed: str | None = "train.seed"
    """The setting that decides all that is random; None where nothing is."""
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Questions of the contract that do not apply, and why not."""

    def build(self, **further: object) -> Method:
        """The method; grey values are windowed by fixed numbers, so that a changed slice changes no other."""
        plain = {"slicer.window": "0,350", "roi_margin": "none", "largest_piece": "none"}
        return build_method(self.method, {**plain, **self.settings, **further})

    def reseeded(self, seed: int) -> Method:
        """The same method with another seed."""
        assert self.seed is not None
        return self.build(**{self.seed: seed})

    def longer(self, iterations: int) -> Method:
        """The same method, trained for so many steps, at a rate that shows."""
        return self.build(**{"train.iterations": iterations, "train.learning_rate": 5e-3, "batch": 4})


def auto_sam(**settings: object) -> dict[str, object]:
    return {"views": 2} | STEPS | settings


def few_shot(**settings: object) -> dict[str, object]:
    return {"views": 2} | STEPS | settings


def interactive(**settings: object) -> dict[str, object]:
    return {"rounds": 1} | STEPS | settings


OWN_ENCODER = {"cached": "the encoder that learns is no longer the one whose embeddings are kept"}
NO_ENCODER = {"cached": "the backbone is not asked for embeddings that a cache keeps"}
LAST_DIGITS = {
    "exactly": "embeddings out of a cache lie in memory in another order, so that sums differ in the last digit"
}
INSIDE = {"falls": "it trains as the method without it"}
NEIGHBOURS = {
    "unlabelled": "the neighbours of a labelled slice are part of its stack",
    "alone": "a slice is seen with its neighbours",
}
OWN_LABELS = {"unlabelled": "it learns from slices that nobody labelled"}
ACROSS = {"unlabelled": "slices of another plane cut through labelled and unlabelled ones"}

VARIANTS: dict[str, Variant] = {
    "auto": Variant(
        "auto",
        {f"unet.{key}": value for key, value in NET.items()} | {"check": False},
        seed="seed",
        exempt=NO_ENCODER,
    ),
    "auto, checked": Variant(
        "auto",
        {f"unet.{key}": value for key, value in NET.items()},
        "video",
        seed=None,
        exempt=LAST_DIGITS | INSIDE | {"unlabelled": "its check segments all slices of a case that is left out"},
    ),
    "auto-sam": Variant("auto-sam", auto_sam(), "sam2"),
    "auto-sam-unet": Variant("auto-sam-unet", auto_sam()),
    "auto-sam-unet, embeddings alone": Variant("auto-sam-unet", auto_sam(), "fine sam2"),
    "auto-sam, vit, a pass a class": Variant("auto-sam", auto_sam(head="vit", shared_pass=False)),
    "auto-sam, vit as published": Variant("auto-sam", auto_sam(head="vit", as_published=True)),
    "auto-sam, cnn": Variant("auto-sam", auto_sam(head="cnn"), "sam2", exempt=LAST_DIGITS),
    "auto-sam, cnn as published": Variant("auto-sam", auto_sam(head="cnn", as_published=True), exempt=LAST_DIGITS),
    "auto-sam, linear": Variant("auto-sam", auto_sam(head="linear"), exempt=LAST_DIGITS),
    "auto-sam, linear as published": Variant(
        "auto-sam",
        auto_sam(head="linear", as_published=True),
        exempt=LAST_DIGITS | {"falls": "by the published ReLU classes die"},
    ),
    "auto-sam, a patient held out": Variant(
        "auto-sam",
        auto_sam(head="linear", validate_from=2, rare_class_weight=0)
        | {"train.iterations": 12, "train.learning_rate": 1.0, "train.warmup": 0, "train.schedule": "constant"},
        exempt=LAST_DIGITS | INSIDE,
    ),
    "ensemble": Variant(
        "ensemble",
        {f"auto_sam_unet.{key}": value for key, value in auto_sam().items()}
        | {f"unet.{key}": value for key, value in NET.items()},
        "video",
        seed="seed",
        exempt=LAST_DIGITS,
    ),
    "fate": Variant("fate", {}, "video", seed=None, exempt=LAST_DIGITS),
    "fate, fused": Variant(
        "fate",
        {"fuse": True, "similarity": "l1"},
        "video",
        seed=None,
        exempt=LAST_DIGITS,
    ),
    "fate, two sweeps": Variant(
        "fate",
        {"second_sweep": True, "allow_empty": True},
        "video",
        seed=None,
        exempt=LAST_DIGITS,
    ),
    "few-shot-prompts": Variant("few-shot-prompts", few_shot()),
    "few-shot-prompts, query": Variant("few-shot-prompts", few_shot(variant="query"), "sam2"),
    "few-shot-prompts, every option": Variant(
        "few-shot-prompts",
        few_shot(location=True, parts=2, adapter=True, type_embedding=True, background=False, target="soft"),
    ),
    "interactive": Variant("interactive", interactive()),
    "interactive, clicks": Variant("interactive", interactive(prompts="centre"), "sam2"),
    "interactive, pruned": Variant(
        "interactive",
        interactive(error_head=True) | {"pruning.rule": "cbdp", "pruning.draws": 10, "train.iterations": 10},
    ),
    "interactive, encoder": Variant(
        "interactive", interactive(encoder_rank=2, error_head=True), "sam2", exempt=OWN_ENCODER
    ),
    "know-sam": Variant("know-sam", NET, exempt=OWN_ENCODER | OWN_LABELS),
    "know-sam, answered by the sam": Variant(
        "know-sam",
        NET | {"answer": "sam", "mirror": True, "mixing": 0.5, "train.iterations": 6},
        "sam2",
        exempt=OWN_ENCODER | OWN_LABELS | INSIDE,
    ),
    "lora": Variant("lora", STEPS | {"rank": 2}, exempt=OWN_ENCODER),
    "lora, adapter": Variant("lora", STEPS | {"rank": 2, "variant": "adapter"}, "sam2", exempt=OWN_ENCODER),
    "lora, video": Variant("lora", STEPS | {"rank": 2}, "video", exempt=OWN_ENCODER | INSIDE),
    "nearest-slice": Variant("nearest-slice", {}, seed=None, exempt=NO_ENCODER),
    "nearest-slice, embeddings": Variant("nearest-slice", {"similarity": "embedding"}, seed=None, exempt=LAST_DIGITS),
    "unet": Variant("unet", NET, exempt=NO_ENCODER),
    "unet, one exit, own side": Variant(
        "unet",
        NET | {"side": None, "deep_supervision": False, "augmentation": "always", "elastic": 0.05},
        exempt=NO_ENCODER,
    ),
    "unet, imagenet, mirrored": Variant("unet", NET | {"encoder": "imagenet", "mirror": True}, exempt=NO_ENCODER),
    "unet, simclr": Variant(
        "unet",
        NET | {"pretrain": "simclr", "contrast_batch": 4, "contrast.iterations": 3},
        exempt=NO_ENCODER | {"unlabelled": "SimCLR learns from all slices of the support"},
    ),
    "unet, stacks": Variant("unet", STACKS, exempt=NO_ENCODER | NEIGHBOURS),
    "self-training": Variant("self-training", NET | {"initial": "nearest-slice"}, exempt=NO_ENCODER | OWN_LABELS),
    "self-training, no first labels": Variant(
        "self-training",
        NET | {"initial": "none", "train.iterations": 6, "mirror": True},
        exempt=NO_ENCODER | OWN_LABELS | INSIDE,
    ),
    "volume-adapter": Variant(
        "volume-adapter", STEPS | {"rank": 2, "width": 4, "depth": 3}, exempt=OWN_ENCODER | NEIGHBOURS
    ),
    "volume-adapter, prompt generator": Variant(
        "volume-adapter",
        STEPS | {"rank": 2, "width": 4, "head": "prompt-generator"},
        "sam2",
        exempt=OWN_ENCODER | NEIGHBOURS,
    ),
    "volume-adapter, attention": Variant(
        "volume-adapter",
        STEPS | {"width": 4, "depth": 4, "adapter": "attention", "head": "multi-layer", "clicks": 0},
        exempt=OWN_ENCODER | NEIGHBOURS | INSIDE,
    ),
    "zero-shot": Variant("zero-shot", {}, seed=None),
    "zero-shot, points": Variant(
        "zero-shot", {"prompt": "points-3"}, seed="seed", exempt={"falls": "it trains nothing", "killed": "likewise"}
    ),
    "zero-shot, box_crop": Variant("zero-shot", {"box_crop": True}, seed=None, exempt=NO_ENCODER),
    "roi_margin": Variant("few-shot-prompts", few_shot(roi_margin=1.5), exempt=INSIDE),
    "planes": Variant("nearest-slice", {"planes": "axial,coronal,sagittal"}, seed=None, exempt=NO_ENCODER | ACROSS),
    "seeds": Variant("unet", NET | {"seeds": 3, "train.iterations": 2}, exempt=NO_ENCODER | INSIDE),
    "largest_piece": Variant("nearest-slice", {"largest_piece": "auto"}, seed=None, exempt=NO_ENCODER),
    "seeds, planes, closer": Variant(
        "unet",
        NET
        | {"seeds": 3, "planes": "axial,coronal", "roi_margin": 1.5, "largest_piece": "auto", "train.iterations": 2},
        exempt=NO_ENCODER | INSIDE | ACROSS,
    ),
}


@dataclass(frozen=True, eq=False)
class Before:
    """How backbone and scans were before the fit."""

    weights: str
    trainable: list[bool]
    pixels: list[np.ndarray]
    labels: list[np.ndarray]

    @classmethod
    def of(cls, backbone: Backbone, cases: SupportSet) -> Before:
        references = [case.read_reference() for case in cases.cases]
        return cls(
            backbone.digest(),
            [parameter.requires_grad for parameter in backbone.parameters()],
            [case.read_image().array.copy() for case in cases.cases],
            [reference.array.copy() for reference in references if reference is not None],
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """A variant that was fitted once, undisturbed."""

    method: Method
    backbone: Backbone
    support: SupportSet
    before: Before
    segmenter: Segmenter
    reports: int
    """How often the fit reported how far it was."""

    @classmethod
    def of(cls, variant: Variant, backbone: Backbone) -> Fit:
        method, cases = variant.build(), support()
        before = Before.of(backbone, cases)
        notes: list[str] = []
        run = Run(report=lambda step, total, note: notes.append(note))
        return cls(method, backbone, cases, before, method.fit(cases, backbone, run), len(notes))

    @property
    def learned(self) -> dict[str, torch.Tensor]:
        return self.segmenter.learned()


Fits = Callable[[str], Fit]
"""The fit of the variant of that name."""

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "sam": lambda: tiny_models.tiny_sam(side=SIDE),
    "sam2": lambda: tiny_models.tiny_sam2(side=SIDE),
    "fine sam2": lambda: tiny_models.tiny_sam2(side=2 * SIDE),
    "video": lambda: believing(tiny_models.tiny_sam2_video(side=SIDE)),
}


def believing(backbone: MemoryBackbone) -> MemoryBackbone:
    """A random SAM 2 that takes each object to be there, as far as its memory does not forbid it."""
    with torch.no_grad():
        backbone.model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
    return backbone


def support(unlabelled: Callable[[np.ndarray], np.ndarray] = lambda slices: slices) -> SupportSet:
    """Two patients whose slices differ in size, labelled in part; `unlabelled` changes the slices without labels."""
    cases = (phantom_case(0), narrower(phantom_case(1)))
    return SupportSet(tuple(partly_labelled(case, unlabelled) for case in cases), LABELS)


def partly_labelled(case: Case, unlabelled: Callable[[np.ndarray], np.ndarray]) -> Case:
    """The case with labels on three of its slices (counted along j); `unlabelled` changes the pixels of the others."""
    image, reference = case.read_image(), case.read_reference()
    assert reference is not None
    pixels, labels = image.array.copy(), np.full_like(reference.array, IGNORE)
    labels[:, 1:4] = reference.array[:, 1:4]
    for j in (0, 4, 5):
        pixels[:, :, j] = unlabelled(pixels[:, :, j])
    return dataclasses.replace(
        case,
        image=dataclasses.replace(image, array=pixels),
        reference=dataclasses.replace(reference, array=labels),
    )


def narrower(case: Case) -> Case:
    """The case without four of its columns (along i)."""
    image, reference = case.read_image(), case.read_reference()
    assert reference is not None
    geometry = dataclasses.replace(image.geometry, shape=(image.geometry.shape[0] - 4, *image.geometry.shape[1:]))
    return dataclasses.replace(
        case,
        image=dataclasses.replace(image, array=image.array[:, :-4], geometry=geometry),
        reference=dataclasses.replace(reference, array=reference.array[:-4], geometry=geometry),
    )
