"""Simulated prompts lie where a careful person would put them."""

import pytest
import torch

from handful.prompts import heuristics
from handful.prompts.heuristics import (
    append_points,
    boxes,
    centre_points,
    corrective_points,
    deepest_corrections,
    ellipses,
    inside_points,
)
from handful.prompts.prompts import PADDING, Prompts


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _masks() -> torch.Tensor:
    masks = torch.zeros(2, 3, 20, 30, dtype=torch.bool)
    masks[0, 0, 4:9, 10:20] = True
    masks[0, 1, 0:2, 0:2] = True
    masks[1, 0, 19, 29] = True
    return masks


@pytest.mark.parametrize("most", [100, 10])
def test_of_more_pixels_than_torch_takes_at_once_those_inside_are_chosen(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heuristics, "MOST_PIXELS", most)  # 2**24: a picture of 4,100 x 4,100 pixels has more
    masks = _masks()
    prompts, again = (inside_points(masks, 5, _rng()) for _ in range(2))
    assert prompts.points is not None
    assert again.points is not None
    assert torch.equal(prompts.points, again.points)
    x, y = prompts.points.long().unbind(-1)
    for n, k in masks.any(dim=(2, 3)).nonzero().tolist():
        assert masks[n, k, y[n, k], x[n, k]].all()
    assert len(prompts.points[0, 0].unique(dim=0)) > 1


def test_points_lie_inside_and_absent_labels_get_padding() -> None:
    masks = _masks()
    prompts = inside_points(masks, 5, _rng())
    assert prompts.points is not None
    assert prompts.point_labels is not None
    x, y = prompts.points.long().unbind(-1)
    for n in range(2):
        for k in range(3):
            if masks[n, k].any():
                assert masks[n, k, y[n, k], x[n, k]].all()
                assert (prompts.point_labels[n, k] == 1).all()
            else:
                assert (prompts.point_labels[n, k] == PADDING).all()


def test_boxes_without_jitter_are_tight() -> None:
    found = boxes(_masks(), 0.0, _rng())
    assert found[0, 0].tolist() == [10, 4, 19, 8]
    assert found[1, 0].tolist() == [29, 19, 29, 19]
    assert found[1, 2].tolist() == [0, 0, 0, 0]


def test_jitter_moves_a_side_by_at_most_its_share_of_the_box() -> None:
    tight, loose = boxes(_masks(), 0.0, _rng()), boxes(_masks(), 0.1, _rng(4))
    moved = (loose - tight).abs()[0, 0]
    assert moved.max() > 0
    assert (moved <= torch.tensor([1.0, 0.5, 1.0, 0.5])).all()


def test_corrections_are_positive_in_missed_and_negative_in_false_positive_regions() -> None:
    truth = _masks()
    shown = torch.zeros_like(truth)
    shown[0, 1] = True
    prompts = corrective_points(shown, truth, _rng())
    assert prompts.points is not None
    assert prompts.point_labels is not None
    assert prompts.point_labels[0, 0, 0] == 1
    assert prompts.point_labels[0, 1, 0] == 0
    x, y = prompts.points[0, 1, 0].long().tolist()
    assert not truth[0, 1, y, x]
    assert prompts.point_labels[1, 2, 0] == PADDING


def _ring() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    radius = ((y - 20) ** 2 + (x - 25) ** 2).sqrt()
    return ((radius > 8) & (radius < 14))[None, None]


def test_a_centre_point_lies_inside_every_mask_also_in_a_ring_and_is_padding_where_there_is_none() -> None:
    speckled = torch.rand(4, 3, 20, 30, generator=_rng()) > 0.6
    for masks in (_masks(), _ring(), speckled, torch.ones(1, 1, 5, 7, dtype=torch.bool)):
        prompts = centre_points(masks)
        assert prompts.points is not None
        assert prompts.point_labels is not None
        for place in masks.flatten(2).any(dim=2).nonzero().tolist():
            n, k = place
            x, y = prompts.points[n, k, 0].long().tolist()
            assert masks[n, k, y, x]
        present = masks.flatten(2).any(dim=2)
        assert torch.equal(prompts.point_labels[..., 0], torch.where(present, 1, PADDING))


def test_a_centre_point_is_the_middle_of_the_largest_part() -> None:
    masks = torch.zeros(1, 1, 30, 40, dtype=torch.bool)
    masks[0, 0, 10:15, 4:25] = True  # the middle row is equally deep from end to end
    masks[0, 0, 20:29, 30:39] = True  # deeper, but smaller
    points = centre_points(masks).points
    assert points is not None
    assert points[0, 0, 0].tolist() == [14, 12]


def test_the_edge_of_the_slice_is_an_edge_of_the_mask() -> None:
    points = centre_points(torch.ones(1, 1, 9, 9, dtype=torch.bool)).points
    assert points is not None
    assert points[0, 0, 0].tolist() == [4, 4]


def test_a_deepest_correction_is_the_middle_of_the_largest_error_with_its_sign() -> None:
    truth = torch.zeros(1, 3, 20, 30, dtype=torch.bool)
    truth[0, :, 5:14, 5:20] = True
    shown = truth.clone()
    shown[0, 0, 5:14, 5:10] = False  # missed: 9 × 5
    shown[0, 0, 16:19, 22:25] = True
    shown[0, 1, 15:20, 20:30] = True  # false_positive: 5 × 10, though more was missed in strewn pixels
    shown[0, 1, 5:14:2, 5:20] = False
    prompts = deepest_corrections(shown, truth)
    assert prompts.points is not None
    assert prompts.point_labels is not None
    assert prompts.point_labels[0, :, 0].tolist() == [1, 0, PADDING]
    assert prompts.points[0, 0, 0].tolist() == [7, 9]
    x, y = prompts.points[0, 1, 0].tolist()
    assert y == 17
    assert 22 <= x <= 27


def test_appended_points_keep_the_box() -> None:
    masks = _masks()
    first = inside_points(masks, 2, _rng())
    first = Prompts(first.points, first.point_labels, boxes(masks, 0.0, _rng()))
    both = append_points(first, inside_points(masks, 1, _rng(1)))
    assert both.points is not None
    assert both.points.shape == (2, 3, 3, 2)
    assert both.boxes is first.boxes


def test_an_ellipse_touches_its_box_on_all_sides_and_there_is_none_without_a_box() -> None:
    box = torch.tensor([[[3.0, 5.0, 12.0, 9.0], [0.0, 0.0, 0.0, 0.0]]])
    inside = ellipses(box, (16, 20))
    rows, columns = inside[0, 0].any(dim=1).nonzero()[:, 0], inside[0, 0].any(dim=0).nonzero()[:, 0]
    assert (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])) == (3, 5, 12, 9)
    assert abs(int(inside[0, 0].sum()) - 3.1416 * 5 * 2.5) < 4
    assert not inside[0, 1].any()
