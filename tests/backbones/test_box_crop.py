"""An object looked at in a window round its box: seen as if the window were the slice, put back where it belongs."""

import torch

from handful.backbones.box_crop import OUTSIDE, decode_box_crop
from handful.prompts.prompts import Prompts
from tiny_models import SIDE, tiny_sam2_video

SLICES = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_a_window_as_large_as_the_slice_is_a_plain_question() -> None:
    backbone = tiny_sam2_video()
    box = torch.tensor([[[30.0, 20.0, 90.0, 70.0]]])
    rough = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for mask in (None, rough):
        prompts = backbone.embed(Prompts(boxes=box, masks=mask), (SIDE, SIDE))
        plain = backbone.decode(backbone.encode_exact(SLICES), prompts)
        torch.testing.assert_close(
            decode_box_crop(backbone, SLICES, box, mask, context=100), plain, atol=1e-4, rtol=1e-4
        )


def test_the_window_is_segmented_as_its_own_slice_and_the_rest_is_background() -> None:
    backbone = tiny_sam2_video()
    box = torch.tensor([[[40.0, 50.0, 59.0, 69.0]]])  # 20 pixels wide, so the window is 40: 30..70, 40..80
    seen = decode_box_crop(backbone, SLICES, box, context=2)
    rows, columns = (seen[0, 0] > OUTSIDE).any(dim=1).nonzero()[:, 0], (seen[0, 0] > OUTSIDE).any(dim=0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    assert (top, left) == (40, 30)
    assert (bottom - top, right - left) == (41, 41)
    cut = SLICES[:, :, top:bottom, left:right]
    own = torch.tensor([[[10.0, 10.0, 29.0, 29.0]]])
    alone = decode_box_crop(backbone, cut, own, context=100)
    torch.testing.assert_close(seen[:, :, top:bottom, left:right], alone, atol=1e-4, rtol=1e-4)


def test_every_label_has_its_window_and_a_box_of_zeros_is_no_prompt() -> None:
    backbone = tiny_sam2_video()
    boxes = torch.tensor([[[10.0, 10.0, 20.0, 20.0], [0.0] * 4], [[100.0, 90.0, 127.0, 127.0], [5.0, 5.0, 6.0, 6.0]]])
    seen = decode_box_crop(backbone, SLICES.expand(2, -1, -1, -1), boxes)
    assert seen.shape == (2, 2, SIDE, SIDE)
    assert (seen[0, 1] == OUTSIDE).all()
    for row, label, x, y in ((0, 0, 15, 15), (1, 0, 110, 110), (1, 1, 5, 5)):
        assert seen[row, label, y, x] > OUTSIDE
        assert seen[row, label, 120, 2] == OUTSIDE
