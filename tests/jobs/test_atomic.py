"""Whatever happens while a file or folder is written, what is there is the old one or the new one, whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handful.jobs.atomic import (
    remove_leftovers,
    remove_leftovers_of,
    replacing,
    replacing_folder,
    write_atomically,
    write_json,
)
from small_cohort import files_below

WHILE_WRITING_A_FILE = """
with replacing(path) as temporary:
    temporary.write_bytes(b"half")
    kill()
"""
WHILE_WRITING_A_FOLDER = """
with replacing_folder(path) as fresh:
    (fresh / "half").touch()
    kill()
"""
BETWEEN_THE_TWO_RENAMES = """
rename = Path.replace
Path.replace = lambda one, other: kill() if one.name.startswith(".") else rename(one, other)
with replacing_folder(path) as fresh:
    (fresh / "new").touch()
"""


written: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and written is not None and any(letter in str(arguments[1] or "") for letter in "wax+"):
        written.append(Path(str(arguments[0])).name)


sys.addaudithook(_note)  # cannot be taken off again; it does nothing while `written` is None


def test_a_file_is_never_written_under_its_own_name(tmp_path: Path):
    global written
    written = []
    try:
        write_atomically(tmp_path / "scores.csv", b"whole")
        write_json(tmp_path / "record.json", {"whole": True})
    finally:
        names, written = written, None
    assert len(set(names)) == 2
    assert not {"scores.csv", "record.json"} & set(names)
    assert files_below(tmp_path) == ["record.json", "scores.csv"]


def test_a_long_name_has_room_for_one_temporary_name_also_where_two_functions_write_it(tmp_path: Path):
    path = tmp_path / f"{'a' * 220}.json"
    with replacing(path) as outer, replacing(outer) as inner:
        inner.write_bytes(b"whole")
        assert inner != outer
    assert path.read_bytes() == b"whole"
    assert files_below(tmp_path) == [path.name]


def killed(work: str, path: Path) -> None:
    """Does the work in a process of its own, which kills itself in it."""
    begin = """
import os, signal, sys
from pathlib import Path
from handful.jobs.atomic import replacing, replacing_folder
path = Path(sys.argv[1])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", begin + work, str(path)]).returncode == -signal.SIGKILL


def fail_while_writing_a_file(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError


def fail_while_writing_a_folder(path: Path) -> None:
    with replacing_folder(path) as fresh:
        (fresh / "new").touch()
        raise RuntimeError


def test_a_file_is_written_and_replaced_and_nothing_else_stays(tmp_path: Path):
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "new folder" / "a", content)
        assert (tmp_path / "new folder" / "a").read_bytes() == content
    write_atomically(tmp_path / "b", b"not synchronised", sync=False)
    assert files_below(tmp_path) == ["b", "new folder/a"]


def test_json_is_written_as_people_read_it(tmp_path: Path):
    write_json(tmp_path / "a.json", {"name": "né", "values": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "name": "né",\n  "values": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["values"] == [1]


def test_the_temporary_name_keeps_the_suffix_and_is_hidden(tmp_path: Path):
    with replacing(tmp_path / "a.b.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith("a.b.nii.gz")
        temporary.touch()
    assert files_below(tmp_path) == ["a.b.nii.gz"]


def test_a_file_stays_as_it_was_when_writing_fails(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(RuntimeError):
        fail_while_writing_a_file(tmp_path / "a")
    assert files_below(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_a_killed_write_of_a_file_leaves_the_old_one_and_its_leftovers_can_be_removed(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"before")
    killed(WHILE_WRITING_A_FILE, tmp_path / "a")
    assert len(files_below(tmp_path)) == 2
    assert (tmp_path / "a").read_bytes() == b"before"
    remove_leftovers(tmp_path)
    assert files_below(tmp_path) == ["a"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file, where new ones are to be put."""
    (tmp_path / "parent" / "f").mkdir(parents=True)
    (tmp_path / "parent" / "f" / "old").touch()
    return tmp_path / "parent" / "f"


def test_a_folder_is_replaced_whole(folder: Path):
    with replacing_folder(folder) as fresh:
        (fresh / "below").mkdir()
        (fresh / "below" / "new").touch()
        assert files_below(folder) == ["old"]
    assert files_below(folder.parent) == ["f/below/new"]


def test_a_folder_is_made_where_there_was_none(tmp_path: Path):
    with replacing_folder(tmp_path / "parent" / "f") as fresh:
        (fresh / "new").touch()
    assert files_below(tmp_path) == ["parent/f/new"]


def test_a_folder_stays_as_it_was_when_writing_fails(folder: Path):
    with pytest.raises(RuntimeError):
        fail_while_writing_a_folder(folder)
    assert files_below(folder.parent) == ["f/old"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="no"), replacing_folder(folder) as fresh:
        (fresh / "new").touch()
    assert files_below(folder.parent) == ["f/old"]


@pytest.mark.parametrize("work", [WHILE_WRITING_A_FOLDER, BETWEEN_THE_TWO_RENAMES], ids=["writing", "renaming"])
def test_a_killed_write_of_a_folder_leaves_the_old_one(folder: Path, work: str):
    killed(work, folder)
    assert len(list(folder.parent.iterdir())) == 2
    remove_leftovers(folder.parent, lambda name: name == "other")
    assert len(list(folder.parent.iterdir())) == 2
    remove_leftovers(folder.parent, lambda name: name == "f")
    assert files_below(folder.parent) == ["f/old"]


def test_young_leftovers_and_those_with_similar_names_stay(tmp_path: Path):
    mine = tmp_path / ".0123456789ab.tmp.a"
    alike = [".tmp.a", ".0123456789ab.tmp.", ".0123456789ag.tmp.a", "0123456789ab.tmp.a", ".0123456789ab.new.a"]
    for name in (mine.name, *alike):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, min_age_s=60)
    assert mine.exists()
    os.utime(mine, (time.time() - 61, time.time() - 61))
    remove_leftovers(tmp_path, min_age_s=60)
    assert files_below(tmp_path) == sorted(alike)


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path):
    remove_leftovers(tmp_path / "nowhere")


def test_leftovers_of_some_targets_are_removed_and_others_stay(tmp_path: Path):
    kept = tmp_path / ".0123456789ab.tmp.other.json"
    for path in (kept, tmp_path / ".0123456789ab.tmp.a.json", tmp_path / ".ba9876543210.tmp.b.json"):
        path.write_text("half")
    remove_leftovers_of(tmp_path / "a.json", tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == [kept]
