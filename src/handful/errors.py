"""The caller's mistakes, as a small tree; each message says what was wrong, the value, and the mend.

HandfulError
├── InputError                  something the caller handed over cannot be used as it is
│   ├── GeometryMismatch        two grids that should be one
│   ├── DamagedFile             truncated, corrupt, or larger than it may be
│   ├── UnsupportedInput        4D, wrong kind of voxels, unknown suffix
│   ├── LabelError              float labels, unknown values, an empty or missing label
│   └── SettingsError           unknown method, backbone or option; a value out of range
├── CheckpointError             a segmenter or backbone file that cannot be loaded, or made for another model
└── BusyError                   another process works in the same output folder
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HandfulError(Exception):
    """Any mistake handful explains; the command line prints its message without a traceback."""


class InputError(HandfulError):
    """Something the caller handed over cannot be used as it is."""


class GeometryMismatch(InputError):
    """Two grids that should be one."""


class DamagedFile(InputError):
    """A file that is truncated, corrupt, or larger than it may be."""


class UnsupportedInput(InputError):
    """A kind of file or array that handful does not read."""


class LabelError(InputError):
    """Labels that are not whole numbers, not known, or not there."""


class SettingsError(InputError):
    """An unknown method, backbone or option, or a value out of range."""


class CheckpointError(HandfulError):
    """A segmenter or backbone that cannot be loaded, or was made for another model."""


class BusyError(HandfulError):
    """Another process works in the same output folder."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words of a message that name the likeliest of what is known, and a space; nothing where none is like it."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
