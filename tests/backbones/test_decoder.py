"""The mask decoder in thin products and without transposed convolutions: masks and gradients are transformers'."""

import pytest
import torch

from handful.backbones.base import Backbone, PromptEmbeddings
from handful.backbones.decoder import no_mask


@pytest.mark.parametrize("prompts", [2, 40], ids=["few tokens", "more tokens than channels"])
@pytest.mark.parametrize("multimask", [False, True], ids=["one mask", "the best of several"])
def test_masks_and_gradients_are_those_of_transformers(backbone: Backbone, prompts: int, multimask: bool) -> None:
    seeded = torch.Generator().manual_seed(0)
    image = backbone.encode(torch.rand(2, 1, 48, 64, generator=seeded))
    tokens = torch.randn(2, 3, prompts, backbone.channels, generator=seeded)
    decoder = backbone.mask_decoder.requires_grad_(True)
    levels = {"high_resolution_features": list(image.features[:-1])} if len(image.features) > 1 else {}
    masks, iou, *others = decoder(
        image_embeddings=image.main + backbone.no_memory(),
        image_positional_embeddings=backbone.position_encoding().expand(2, -1, -1, -1),
        sparse_prompt_embeddings=tokens,
        dense_prompt_embeddings=no_mask(backbone.prompt_encoder).expand_as(image.main),
        multimask_output=multimask,
        **levels,
    )
    best = iou.argmax(dim=2)[..., None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
    expected = masks.gather(2, best)[:, :, 0]
    found = backbone.decode_square(image, PromptEmbeddings(tokens), multimask)

    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.iou, iou.amax(dim=2), atol=1e-5, rtol=1e-4)
    if others:
        torch.testing.assert_close(found.object_score, others[1][..., 0], atol=1e-5, rtol=1e-4)
    weights = [decoder.transformer.layers[1].cross_attn_image_to_token.q_proj.weight, decoder.upscale_conv1.weight]
    weights += [decoder.transformer.layers[0].cross_attn_token_to_image.v_proj.weight, decoder.upscale_conv2.bias]
    own, theirs = (torch.autograd.grad(logits.square().sum(), weights) for logits in (found.logits, expected))
    for mine, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)
