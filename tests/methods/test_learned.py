"""Learned tensors of a file are taken in their shape, number format and range, or refused by name."""

import pytest
import torch

from handful.errors import SettingsError
from handful.methods.learned import Learned

TENSORS = {
    "vectors": torch.rand(3, 4),
    "classes": torch.tensor([0, 1, 2]),
    "names": torch.tensor(list(b'["a", "b"]'), dtype=torch.uint8),
    "none": torch.zeros(0, dtype=torch.long),
    "yes": torch.tensor(True),
}


def test_tensors_that_fit_are_taken_as_they_are() -> None:
    learned = Learned(TENSORS, c=4)
    assert learned.floats("vectors", "t c", low=0, high=1) is TENSORS["vectors"]
    assert learned.whole("classes", "t", high=2) is TENSORS["classes"]
    assert learned.names("names") == ("a", "b")
    assert len(learned.whole("none", "n?")) == 0
    assert learned.flag("yes")


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (lambda learned: learned.floats("lost", "t"), "'lost' is missing"),
        (lambda learned: learned.floats("vectors", "t"), r"shape \(3, 4\); it must be \(t\)"),
        (lambda learned: learned.floats("vectors", "t 5"), r"must be \(t, 5\)"),
        (lambda learned: learned.floats("classes", "t"), "number format torch.int64"),
        (lambda learned: learned.whole("vectors", "t c"), "number format torch.float32"),
        (lambda learned: learned.whole("classes", "t", high=1), "from 0 to 2; they must be from 0 to 1"),
        (lambda learned: learned.whole("classes", "t", low=1), "from 0 to 2"),
        (lambda learned: learned.whole("none", "n"), r"shape \(0,\)"),
        (lambda learned: learned.flag("classes"), "number format"),
        (lambda learned: learned.names("classes"), "number format"),
    ],
)
def test_others_are_refused_by_name(take, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        take(Learned(TENSORS))


def test_a_letter_stands_for_one_number_in_all_tensors() -> None:
    learned = Learned(TENSORS | {"more": torch.rand(2, 4), "odd": torch.rand(3, 0)})
    learned.floats("vectors", "t c")
    with pytest.raises(SettingsError, match=r"'more' has the shape \(2, 4\); it must be \(3, 4\)"):
        learned.floats("more", "t c")
    with pytest.raises(SettingsError, match="'odd'"):
        learned.floats("odd", "t d")


@pytest.mark.parametrize("text", [b"[1]", b"{}", b"[", b"\xff", b"[" * 5000])
def test_names_are_a_list_of_texts(text: bytes) -> None:
    with pytest.raises(SettingsError, match="'names'"):
        Learned({"names": torch.tensor(list(text), dtype=torch.uint8)}).names("names")
