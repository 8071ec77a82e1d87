"""What is measured: handful-tiny, a SAM 2 at half its size, and phantoms as support; everything from fixed seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel, SamConfig, SamModel

from handful.backbones.base import Backbone, PromptEmbeddings
from handful.backbones.catalog import load_backbone
from handful.backbones.names import BACKBONES
from handful.backbones.sam import SamBackbone
from handful.backbones.sam2 import Sam2Backbone
from handful.backbones.sam2_video import Sam2VideoBackbone
from handful.data.cases import Case
from handful.data.support import SupportSet
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.pretraining.architecture import initialise, tiny_config
from handful.synthesis.episodes import phantom_cohort


def tiny() -> Backbone:
    """The embedded model; where it is not there, its architecture with random weights, which runs just as fast."""
    source = BACKBONES["handful-tiny"].source
    if isinstance(source, Path) and source.is_dir():
        return load_backbone("handful-tiny")
    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_config(256))
    initialise(model)
    return Sam2VideoBackbone(model, "handful-tiny, random weights")


def sam_vit_b(side: int = 1024, layers: int = 12) -> SamBackbone:
    """SAM ViT-B, 94 million parameters, with random weights of usual size, and of its encoder so many layers.

    SamConfig's own 1e-10 makes numbers so small that a processor takes eight times as long for them.
    """
    torch.manual_seed(0)
    vision = {"image_size": side, "num_hidden_layers": layers, "initializer_range": 0.02}
    if layers < 12:
        vision["global_attn_indexes"] = []
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": side}))
    return SamBackbone(model, f"SAM ViT-B at {side}, random weights")


def sam2_tiny(side: int = 512) -> Backbone:
    """SAM 2's smallest, 39 million parameters, with random weights and a square of `side` pixels."""
    torch.manual_seed(0)
    cells = side // 16
    config = Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [side, side]},
            "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
        },
        prompt_encoder_config={"image_size": side},
    )
    return Sam2Backbone(Sam2Model(config), f"SAM 2 Hiera-T at {side}, random weights")


def sam2_video_tiny(side: int) -> Sam2VideoBackbone:
    """SAM 2.1 Hiera-tiny with its memory, random weights; its object score says yes, so that masks differ."""
    torch.manual_seed(0)
    cells = side // 16
    config = Sam2VideoConfig(
        image_size=side,
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [side, side]},
            "backbone_feature_sizes": [[4 * cells] * 2, [2 * cells] * 2, [cells] * 2],
        },
        prompt_encoder_config={"image_size": side},
        memory_attention_rope_feat_sizes=[cells, cells],
    )
    model = Sam2VideoModel(config)
    initialise(model)
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
    return Sam2VideoBackbone(model, f"SAM 2.1 Hiera-tiny at {side}, random weights")


def slices(count: int, side: int) -> torch.Tensor:
    """Grey slices (n, 1, h, w) of noise in [0, 1]."""
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


def prompt(count: int, labels: int, channels: int, tokens: int = 8) -> PromptEmbeddings:
    """Random class embeddings for `count` slices × `labels`, as few-shot prompts ask with."""
    sparse = torch.randn(count, labels, tokens, channels, generator=torch.Generator().manual_seed(0))
    return PromptEmbeddings(sparse)


def of_labels(prompt: PromptEmbeddings, start: int, stop: int) -> PromptEmbeddings:
    """The prompt for some of its labels."""
    return dataclasses.replace(prompt, sparse=prompt.sparse[:, start:stop])


def support(cases: int = 2, shape: tuple[int, int, int] = (96, 88, 12), values: tuple[int, ...] = (1, 4)) -> SupportSet:
    """Labelled phantoms of which the organs `values` are to be learned."""
    labelled, labels = [], None
    for phantom in phantom_cohort(cases, seed=0, shape=shape):
        geometry, known = Geometry(shape, phantom.affine), Labels.of(phantom.names)
        labels = Labels.of({value: phantom.names[value] for value in values})
        volume = Volume(phantom.image[None], geometry)
        labelled.append(Case(phantom.name, volume, LabelMap(phantom.labels, geometry, known), known))
    assert labels is not None
    return SupportSet(tuple(labelled), labels)
