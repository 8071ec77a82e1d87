"""Errors with a message for the user: what was wrong, the value, and how to fix it.

HandfulError
├── InputError                  an input that cannot be used as it is
│   ├── GeometryMismatch        two voxel grids that should be equal
│   ├── DamagedFile             a file that is truncated, corrupt, or too large
│   ├── UnsupportedInput        4D images, unsupported voxel types, unknown file suffixes
│   ├── LabelError              label values that are not whole numbers, unknown, or missing
│   └── SettingsError           an unknown method, backbone or option; a value out of range
├── ArchiveError                a DICOMweb server that refuses, fails, or gives a wrong answer
├── ClusterError                a Dask scheduler that cannot be reached, or was lost
├── CheckpointError             a model file that cannot be loaded, or belongs to another backbone
└── BusyError                   another process works in the same output folder
"""

import dataclasses
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class HandfulError(Exception):
    """Base class of all errors below; the command line prints their message without a traceback."""


class InputError(HandfulError):
    """An input that cannot be used as it is."""


class PathError(InputError, OSError):
    """A path that the system cannot look up; an OSError, too, as Python itself raises for it."""


class GeometryMismatch(InputError):
    """Two voxel grids that should be equal but differ."""


class DamagedFile(InputError):
    """A file that is truncated, corrupt, or larger than allowed."""


class UnsupportedInput(InputError):
    """A kind of file or array that handful cannot read."""


class LabelError(InputError):
    """Label values that are not whole numbers, unknown, or missing."""


class SettingsError(InputError):
    """An unknown method, backbone or option, or a value out of range."""


class ArchiveError(HandfulError):
    """A DICOMweb server that refuses a request, fails, cannot be reached, or gives a wrong answer."""


class ClusterError(HandfulError):
    """A Dask scheduler that cannot be reached, or was lost; what is done is kept."""


class CheckpointError(HandfulError):
    """A segmenter or backbone that cannot be loaded, or belongs to another model."""


class TrainingError(HandfulError):
    """A training that cannot continue: no finite gradients, or a process that shares it has ended."""


class BusyError(HandfulError):
    """Another process works in the same output folder."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The phrase "did you mean 'X'? " with the most similar known word, for an error message; "" if none is similar."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def refuse_without_effect(settings: Any, names: Iterable[str], because: str) -> None:
    """Raise SettingsError if one of these settings of a dataclass is not at its default, since it has no effect."""
    for field in dataclasses.fields(settings):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        value = getattr(settings, field.name)
        if field.name in names and value != default:
            raise SettingsError(f"{field.name} = {value!r} has no effect, because {because}; leave it out")


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, up to 300 characters; its class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def reason_of(error: Exception) -> str:
    """The message of an error, with its class unless it is a `HandfulError`, whose messages are for the user."""
    if isinstance(error, HandfulError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    return f"{type(error).__name__}: {error}".removesuffix(": ")
