"""Each family of weights gets the pixels that its authors trained it on, and masks find their way back."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import tiny_models
from handful.backbones.base import Backbone
from handful.backbones.families import FAMILIES
from handful.prompts.prompts import Prompts

SIDE = 128


def _picture() -> np.ndarray:
    """An 8-bit slice of 40 × 60 pixels with two bright spots."""
    rows, columns = np.mgrid[0:40, 0:60]
    spots = 150 * np.exp(-((rows - 15) ** 2 + (columns - 22) ** 2) / 60)
    spots += 60 * np.exp(-((rows - 28) ** 2 + (columns - 44) ** 2) / 30)
    return (40 + spots + 3 * np.sin(columns / 3)).astype(np.uint8)


def _as_slices(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture / 255).float()[None, None]


def _seen(backbone: Backbone, slices: Tensor) -> Tensor:
    """What the image encoder is given."""
    seen: list[Tensor] = []
    handle = backbone.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone.encode(slices)
    handle.remove()
    return seen[0]


def _as_medsams_authors(picture: np.ndarray) -> np.ndarray:
    """The lines of MedSAM_Inference.py; skimage's cubic resize is this call of SciPy, clipped to the slice's range."""
    zoom = (SIDE / picture.shape[0], SIDE / picture.shape[1])
    stretched = ndimage.zoom(picture.astype(float), zoom, order=3, mode="mirror", grid_mode=True)
    eight_bit = np.clip(stretched, picture.min(), picture.max()).astype(np.uint8)
    return (eight_bit - eight_bit.min()) / np.clip(eight_bit.max() - eight_bit.min(), 1e-8, None)


def test_medsam_gets_the_slice_stretched_and_scaled_to_the_unit_range_as_its_authors_do() -> None:
    picture = _picture()
    pixels = _seen(tiny_models.tiny_medsam(), _as_slices(picture))
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)
    difference = np.abs(pixels[0].numpy() - _as_medsams_authors(picture))
    assert difference.max() < 0.01  # 8 bits alone are 0.007 of the range here
    assert difference.mean() < 0.004


def test_the_unit_range_is_that_of_all_channels_of_one_slice_together() -> None:
    grey = _as_slices(_picture())
    colour = torch.cat([grey, grey / 2, 1 - grey], dim=1)
    pixels = _seen(tiny_models.tiny_medsam(), torch.cat([colour, colour / 4]))
    torch.testing.assert_close(pixels[0], pixels[1])
    assert pixels[0].amax() == 1
    assert pixels[0, 1].amax() < 0.6
    assert not _seen(tiny_models.tiny_medsam(), torch.full((1, 1, 20, 30), 0.4)).any()


@pytest.mark.parametrize("family", ["sam", "mobile-sam"])
def test_sam_and_mobile_sam_get_imagenets_normalisation_and_zeros_below(family: str) -> None:
    build = {"sam": tiny_models.tiny_sam, "mobile-sam": tiny_models.tiny_mobile_sam}[family]
    pixels = _seen(build(), torch.full((1, 1, 40, 80), 0.485))
    assert pixels[..., SIDE // 2 :, :].abs().max() == 0
    torch.testing.assert_close(pixels[0, 1, 0, 0], torch.tensor((0.485 - 0.456) / 0.224))


@pytest.mark.parametrize("build", [tiny_models.tiny_sam_med2d, tiny_models.tiny_sam2])
def test_sam_med2d_and_sam_2_get_imagenets_normalisation_stretched(build: object) -> None:
    pixels = _seen(build(), torch.full((1, 1, 40, 80), 0.485))  # type: ignore[operator]
    torch.testing.assert_close(pixels[0, 2], torch.full((SIDE, SIDE), (0.485 - 0.406) / 0.225))


def test_boxes_of_medsam_are_scaled_along_each_axis() -> None:
    """The authors' box * [1024 / W, 1024 / H], but for the half pixel that keeps the centres of pixels."""
    medsam, size = tiny_models.tiny_medsam(), (40, 80)
    scale = torch.tensor([SIDE / 80, SIDE / 40] * 2)
    box = torch.tensor([[[10.0, 7.0, 30.0, 20.0]]])
    expected, _ = medsam.prompt_encoder(None, None, (box + 0.5) * scale - 0.5, None)
    torch.testing.assert_close(medsam.embed(Prompts(boxes=box), size).sparse, expected)
    assert ((box + 0.5) * scale - 0.5 - box * scale).abs().max() <= scale.max() / 2  # half a pixel of the slice


def test_a_map_of_the_square_is_stretched_back_onto_the_slice() -> None:
    medsam = tiny_models.tiny_medsam()
    columns = torch.linspace(-1, 1, medsam.mask_side).expand(1, 1, medsam.mask_side, -1)
    back = medsam.to_image_frame(columns, (20, 90))
    assert back.shape == (1, 1, 20, 90)
    # a cell of the square is 90 / 32 pixels wide, and the outermost are half a cell inside the slice
    wide = 90 / medsam.mask_side
    expected = ((torch.arange(90) + 0.5) / wide - 0.5).clamp(0, medsam.mask_side - 1) / (medsam.mask_side - 1) * 2 - 1
    torch.testing.assert_close(back, expected.expand(1, 1, 20, -1), atol=1e-5, rtol=0)


def test_weights_on_other_pixels_have_another_digest_and_say_what_they_get() -> None:
    sam, medsam = tiny_models.tiny_sam(), tiny_models.tiny_medsam()
    assert sam.digest() != medsam.digest()
    assert medsam.input_description() == {
        "side": SIDE,
        "resize": "stretch",
        "interpolation": "bicubic",
        "min_max": True,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }


def test_the_digest_of_weights_on_their_usual_pixels_is_that_of_the_weights() -> None:
    """Results that were recorded before there were families stay valid."""
    from handful.jobs.digests import digest_of_tensors

    sam = tiny_models.tiny_sam()
    assert sam.digest() == digest_of_tensors(sorted(sam.state_dict().items()))
    other = dataclasses.replace(FAMILIES["sam"], defaults=FAMILIES["handful-tiny"].defaults)
    sam.family = other
    assert sam.digest() == tiny_models.tiny_sam().digest()
