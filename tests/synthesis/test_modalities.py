"""Every modality gives images in range that show the structures."""

import pytest
import torch

from handful.synthesis import bodies
from handful.synthesis.anatomy import Kind, View
from handful.synthesis.modalities import MODALITIES, burnt_in, ct_contrast, frame
from handful.synthesis.rng import Rng
from handful.synthesis.scans import Scanner, render


def _rng(seed: int) -> Rng:
    return Rng.of(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODALITIES)
def test_images_of_a_modality_are_finite_in_range_and_not_constant(name: str) -> None:
    modality = MODALITIES[name]
    view = View((0.0, 0.0, 0.0), 1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    for seed in range(5):
        rng = _rng(seed)
        anatomy = bodies.random_anatomy(rng)
        labels = anatomy.at(view.points(48, [0.0, 0.05], rng))
        contrast = modality.contrast(anatomy, rng)
        images = render(labels, contrast, Scanner.random(rng), rng, torch.tensor(anatomy.kinds), modality.finish)
        assert images.shape == (2, contrast.brightness.shape[1], 48, 48)
        assert images.isfinite().all()
        assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_labels_of_one_appearance_have_one_brightness_in_every_modality() -> None:
    anatomy = bodies.two_part(_rng(1))
    appearance = torch.tensor(anatomy.appearance)
    assert (appearance != torch.arange(anatomy.labels)).any()
    for name, modality in MODALITIES.items():
        if modality.frame == "full" and name != "microscopy":
            contrast = modality.contrast(anatomy, _rng(2))
            assert torch.equal(contrast.brightness, contrast.brightness[appearance])


def test_bone_is_the_brightest_and_air_the_darkest_in_ct() -> None:
    anatomy = bodies.head(_rng(0))
    brightness = ct_contrast(anatomy, _rng(1)).brightness[:, 0]
    bone = anatomy.kinds.index(Kind.BONE)
    assert brightness[bone] == brightness.max()
    assert brightness[0] == brightness.min()


def test_the_noise_of_a_scanner_follows_the_contrast_of_the_picture() -> None:
    picture = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    quiet = Scanner(0.0, 1.0, 0.0, 0.0, False, 0.0, (1.0, 1.0), 0.0, False, 0.0)
    loud = Scanner(0.0, 1.0, 0.0, 0.5, False, 0.0, (1.0, 1.0), 0.0, False, 0.0)
    torch.testing.assert_close(quiet(picture, _rng(0)), picture)
    assert (loud(picture, _rng(0)) - picture).std() > 0.05
    torch.testing.assert_close(loud(picture, _rng(0)), loud(0.1 * picture, _rng(0)), atol=1e-4, rtol=1e-3)


def test_fans_and_circles_leave_the_lower_corners_dark() -> None:
    for seed in range(4):
        for name in ("fan", "circle"):
            inside = frame(name, 64, _rng(seed))
            assert not inside[-1, 0]
            assert not inside[-1, -1]
            assert inside[32, 32]


def test_burnt_in_letters_cover_little_and_leave_the_original_alone() -> None:
    picture = torch.zeros(2, 1, 128, 128)
    written = burnt_in(picture, _rng(0))
    assert 0 < float(written.mean()) < 0.1
    assert float(picture.max()) == 0
