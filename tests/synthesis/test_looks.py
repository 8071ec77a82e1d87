"""Every modality gives pictures in range that show what is there."""

import pytest
import torch

from handful.synthesis import bodies
from handful.synthesis.anatomy import Kind, View
from handful.synthesis.draw import Draw
from handful.synthesis.looks import LOOKS, burnt_in, ct_contrast, frame
from handful.synthesis.scans import Scanner, render


def _draw(seed: int) -> Draw:
    return Draw.of(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_gives_finite_pictures_in_range_that_show_something(name: str) -> None:
    look = LOOKS[name]
    view = View((0.0, 0.0, 0.0), 1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    for seed in range(5):
        draw = _draw(seed)
        anatomy = bodies.random_anatomy(draw)
        labels = anatomy.at(view.points(48, [0.0, 0.05], draw))
        contrast = look.contrast(anatomy, draw)
        images = render(labels, contrast, Scanner.random(draw), draw, torch.tensor(anatomy.kinds), look.finish)
        assert images.shape == (2, contrast.brightness.shape[1], 48, 48)
        assert images.isfinite().all()
        assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_labels_that_are_alike_get_one_brightness_in_every_look() -> None:
    anatomy = bodies.two_part(_draw(1))
    alike = torch.tensor(anatomy.alike)
    assert (alike != torch.arange(anatomy.labels)).any()
    for name, look in LOOKS.items():
        if look.frame == "full" and name != "microscopy":
            contrast = look.contrast(anatomy, _draw(2))
            assert torch.equal(contrast.brightness, contrast.brightness[alike])


def test_bone_is_the_brightest_and_air_the_darkest_in_ct() -> None:
    anatomy = bodies.head(_draw(0))
    brightness = ct_contrast(anatomy, _draw(1)).brightness[:, 0]
    bone = anatomy.kinds.index(Kind.BONE)
    assert brightness[bone] == brightness.max()
    assert brightness[0] == brightness.min()


def test_the_noise_of_a_scanner_follows_the_contrast_of_the_picture() -> None:
    picture = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    quiet = Scanner(0.0, 1.0, 0.0, 0.0, False, 0.0, (1.0, 1.0), 0.0, False, 0.0)
    loud = Scanner(0.0, 1.0, 0.0, 0.5, False, 0.0, (1.0, 1.0), 0.0, False, 0.0)
    torch.testing.assert_close(quiet(picture, _draw(0)), picture)
    assert (loud(picture, _draw(0)) - picture).std() > 0.05
    torch.testing.assert_close(loud(picture, _draw(0)), loud(0.1 * picture, _draw(0)), atol=1e-4, rtol=1e-3)


def test_fans_and_circles_leave_the_lower_corners_dark() -> None:
    for seed in range(4):
        for name in ("fan", "circle"):
            seen = frame(name, 64, _draw(seed))
            assert not seen[-1, 0]
            assert not seen[-1, -1]
            assert seen[32, 32]


def test_burnt_in_letters_cover_little_and_leave_the_original_alone() -> None:
    picture = torch.zeros(2, 1, 128, 128)
    written = burnt_in(picture, _draw(0))
    assert 0 < float(written.mean()) < 0.1
    assert float(picture.max()) == 0
