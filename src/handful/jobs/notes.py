"""Notes of what a job has done, kept beside its outputs, so that the same job does not do it twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from handful.jobs.atomic import write_atomically

NOTES = ".handful"
"""Folder inside the output folder: the lock, a note a case, and outputs that somebody had changed."""

Note = TypeVar("Note")


class Notes(Generic[Note]):
    """Notes of one kind, a dataclass, in a folder: one JSON file for each name."""

    def __init__(self, folder: Path, kind: type[Note]) -> None:
        self.folder = folder
        self._kind = TypeAdapter(kind)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def read(self, name: str) -> Note | None:
        """None where there is no note of that name, or none that can be read."""
        try:
            return self._kind.validate_python(json.loads(self.path(name).read_text("utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def find(self, name: str, **made_of: object) -> Note | None:
        """The note of that name if its fields have these values."""
        note = self.read(name)
        same = note is not None and all(getattr(note, field) == value for field, value in made_of.items())
        return note if same else None

    def write(self, name: str, note: Note) -> None:
        """Writes the file, whole or not at all; numbers may be nan."""
        text = json.dumps(self._kind.dump_python(note), indent=2, ensure_ascii=False)
        write_atomically(self.path(name), (text + "\n").encode())

    def items(self) -> Iterator[tuple[str, Note]]:
        """All notes that can be read, by name; half-written files are none."""
        for path in sorted(self.folder.glob("[!.]*.json")):
            note = self.read(path.stem)
            if note is not None:
                yield path.stem, note
