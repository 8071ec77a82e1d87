"""Notes about finished work, stored in the output folder, so that a job can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from handful.jobs.atomic import write_atomically

NOTES = ".handful"
"""Folder inside the output folder, with the lock, one note per case, and outputs that were changed by hand."""

Note = TypeVar("Note")


class Notes(Generic[Note]):
    """Notes in a folder, one JSON file per name; `kind` is their dataclass."""

    def __init__(self, folder: Path, kind: type[Note]) -> None:
        self.folder = folder
        self._kind = TypeAdapter(kind)

    def path(self, name: str) -> Path:
        """The file of the note of that name."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> Note | None:
        """The note of that name; None if there is none or it cannot be read."""
        try:
            return self._kind.validate_python(json.loads(self.path(name).read_text("utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def find(self, name: str, **made_of: object) -> Note | None:
        """The note of that name, if these fields have these values; else None."""
        note = self.read(name)
        same = note is not None and all(getattr(note, field) == value for field, value in made_of.items())
        return note if same else None

    def write(self, name: str, note: Note) -> None:
        """Write the note of that name, completely or not at all; numbers may be nan."""
        text = json.dumps(self._kind.dump_python(note), indent=2, ensure_ascii=False)
        write_atomically(self.path(name), (text + "\n").encode())

    def items(self) -> Iterator[tuple[str, Note]]:
        """All readable notes with their names, in the order of names."""
        for path in sorted(self.folder.glob("[!.]*.json")):
            note = self.read(path.stem)
            if note is not None:
                yield path.stem, note
