"""Hiera without the attention weights that are computed and dropped: embeddings, names and gradients stay."""

import torch
from transformers import Sam2VideoModel

import tiny_models
from handful.backbones.hiera import HieraAttention
from handful.backbones.sam2_video import Sam2VideoBackbone


def test_the_encoder_gives_what_transformers_gives():
    torch.manual_seed(0)
    model = Sam2VideoModel(tiny_models.sam2_video_config(tiny_models.SIDE)).eval()
    names = set(model.state_dict())
    pixels = torch.randn(2, 3, tiny_models.SIDE, tiny_models.SIDE, generator=torch.Generator().manual_seed(0))
    weight = model.vision_encoder.backbone.blocks[0].attn.qkv.weight

    def embedded() -> tuple[list[torch.Tensor], torch.Tensor]:
        levels = list(model.vision_encoder(pixels).fpn_hidden_states)
        (gradient,) = torch.autograd.grad(levels[-1].square().sum(), weight)
        return levels, gradient

    expected, expected_gradient = embedded()
    backbone = Sam2VideoBackbone(model, "test")
    weight.requires_grad_(True)
    found, gradient = embedded()

    assert sum(isinstance(module, HieraAttention) for module in backbone.modules()) == len(
        model.vision_encoder.backbone.blocks
    )
    assert set(model.state_dict()) == names
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)
