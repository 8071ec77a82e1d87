"""A note is found by its name and by what it was made of, and a damaged one counts as none."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from handful.jobs.notes import Notes


@dataclass(frozen=True)
class Done:
    made_of: str
    score: float | None
    by_label: dict[int, str]


@pytest.fixture
def notes(tmp_path: Path) -> Notes[Done]:
    return Notes(tmp_path / "notes", Done)


def test_a_note_is_read_as_it_was_written(notes: Notes[Done]):
    for name, note in {"é.1": Done("a", 0.5, {2: "né"}), "none": Done("b", None, {})}.items():
        notes.write(name, note)
        assert notes.read(name) == note
    assert [name for name, _ in notes.items()] == ["none", "é.1"]


def test_a_number_may_be_undefined(notes: Notes[Done]):
    notes.write("one", Done("a", math.nan, {}))
    found = notes.read("one")
    assert found is not None
    assert found.score is not None
    assert math.isnan(found.score)


def test_a_note_is_found_only_if_it_was_made_of_the_same(notes: Notes[Done]):
    note = Done("a", None, {})
    notes.write("one", note)
    assert notes.find("one", made_of="a") == notes.find("one", made_of="a", score=None) == note
    assert notes.find("one", made_of="b") is None
    assert notes.find("two", made_of="a") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"made_of": "a"}', b'{"made_of": 1, "score": 1, "by_label": {}}']
)
def test_a_damaged_note_counts_as_none(notes: Notes[Done], content: bytes):
    notes.write("whole", Done("a", 1.0, {}))
    notes.path("one").write_bytes(content)
    assert notes.read("one") is None
    assert [name for name, _ in notes.items()] == ["whole"]


def test_a_half_written_note_is_none(notes: Notes[Done]):
    notes.write("one", Done("a", 1.0, {}))
    notes.path("one").rename(notes.folder / ".0123456789ab.tmp.one.json")
    assert list(notes.items()) == []


def test_a_folder_that_is_not_there_has_no_notes(notes: Notes[Done]):
    assert list(notes.items()) == []
