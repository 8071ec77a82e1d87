from pathlib import Path

import pytest

from handful.errors import InputError
from handful.jobs.json_file import read_json


def test_the_content_and_the_bytes_are_returned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', "utf-8")
    assert read_json(tmp_path / "a.json") == ({"a": [1, "é"]}, '{"a": [1, "é"]}'.encode())


@pytest.mark.parametrize(
    ("content", "finding"), [(b"[" * 100_000, "nested too deeply"), (b"{", "not JSON"), (b'"\xff"', "not JSON")]
)
def test_what_cannot_be_parsed_is_named(content: bytes, finding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=finding):
        read_json(tmp_path / "a.json")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "a.json")
