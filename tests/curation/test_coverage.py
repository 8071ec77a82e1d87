"""The greedy choice of slices, on descriptors drawn by hand."""

import numpy as np
import pytest
import torch

from handful.backbones.base import ImageEmbeddings
from handful.curation.coverage import EncodedCase, Pool, SliceName, choose, descriptor
from handful.curation.disagreement import SegmentedCase
from handful.data.volume import Labels
from handful.errors import InputError


def case(name: str, places: list[float], labelled: str = "", doubt: list[float] | None = None) -> EncodedCase:
    """Slices at places along a line; `labelled` has an x where one is, `doubt` what the segmenter contradicts."""
    n = len(places)
    segmented = None
    if doubt is not None:
        segmented = SegmentedCase(Labels((1,), ("ball",)), np.array(doubt)[:, None], (b"",) * n, (1, 1))
    return EncodedCase(
        name=name,
        plane="axial",
        axis=2,
        index=np.arange(n),
        descriptors=torch.tensor(places)[:, None].half(),
        labelled=np.array([mark == "x" for mark in labelled.ljust(n)]),
        has_signal=np.ones(n, dtype=bool),
        segmented=segmented,
    )


def chosen(*cases: EncodedCase, count: int = 9, whole_cases: bool = False) -> list[str]:
    pool = Pool.of("some", list(cases), whole_cases)
    return [str(pool.slices_of(one.group)[0].slice(pool.at[one.row][1])) for one in choose(pool, count)]


def test_the_slice_farthest_from_the_labels_that_stands_for_others_comes_first():
    assert chosen(case("a", [0.0, 0.2, 5.0, 5.1, 9.0], "x")) == [
        "a, slice 3", "a, slice 4", "a, slice 1", "a, slice 2",
    ]  # fmt: skip


def test_what_is_chosen_first_lowers_what_its_neighbours_add():
    pool = Pool.of("some", [case("a", [0.0, 4.0, 4.0, 4.0], "x")], False)
    found = list(choose(pool, 9))
    assert [one.coverage for one in found] == [1.0, 0.0, 0.0]
    assert [one.share for one in found] == [1.0, 0.0, 0.0]


def test_the_nearest_labelled_slice_may_be_of_another_case():
    pool = Pool.of("some", [case("a", [0.0], "x"), case("b", [1.0, 3.0, 4.0], "  x")], False)
    assert pool.nearest == [SliceName("a", 0, 0, 1), SliceName("b", 2, 2, 3)]
    assert pool.newness is not None
    assert pool.newness.tolist() == [1.0, 1.0]


def test_without_labels_the_middle_comes_first():
    pool = Pool.of("some", [case("a", [0.0, 1.0, 2.0])], False)
    assert pool.newness is None
    assert pool.nearest == [None] * 3
    assert chosen(case("a", [0.0, 1.0, 2.0]))[0] == "a, slice 1"


def test_a_contradiction_doubles_what_would_count_alike_at_most():
    doubted = case("a", [0.0, 2.0, -2.0], "x", [0.0, 0.1, 0.6])
    assert chosen(doubted)[0] == "a, slice 2"
    first, second = choose(Pool.of("some", [doubted], False), 9)
    assert (first.disagreement, second.disagreement) == (0.6, 0.1)
    assert first.score == pytest.approx(first.coverage)
    assert second.score == pytest.approx(second.coverage / 2)
    assert (first.inconsistent, second.inconsistent) == (True, False)


def test_whole_cases_are_groups_and_a_case_with_any_label_is_none():
    cases = case("a", [0.0, 1.0], "x"), case("b", [3.0, 3.1, 9.0]), case("c", [4.0])
    pool = Pool.of("some", list(cases), True)
    assert [rows.tolist() for rows in pool.groups] == [[0, 1, 2], [3]]
    assert [pool.slices_of(one.group)[0].name for one in choose(pool, 9)] == ["b", "c"]


def test_no_candidate_is_an_error_that_names_the_cohort():
    with pytest.raises(InputError, match="'some' has no unlabelled slice left"):
        Pool.of("some", [case("a", [0.0], "x")], False)


def test_a_descriptor_is_a_unit_vector_whatever_the_scale_of_the_features():
    main = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = descriptor(ImageEmbeddings((main,), (64, 64))), descriptor(ImageEmbeddings((7 * main,), (64, 64)))
    assert one.shape == (3, 8 + 16 * 8)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(3))


def test_a_slice_is_named_by_its_index_in_the_array_and_a_picture_has_no_number():
    assert str(SliceName("a", 0, 4, 5)) == "a, slice 4"
    assert str(SliceName("a", 0, 0, 1)) == "a"
