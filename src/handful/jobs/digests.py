"""Hexadecimal SHA-256 digests of arrays, tensors, files and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from handful.jobs.files import open_file
from handful.jobs.scratch import row_major_blocks

Part = str | bytes | NDArray[Any] | Tensor
"""Text is hashed as UTF-8, arrays and tensors as their elements in row-major order, without shape and type."""

_PIECE = 2**20


class Digest:
    """The digest of parts that are added one after the other."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, *parts: Part) -> None:
        """Add parts in this order."""
        for part in parts:
            for block in _blocks(_plain(part)):
                self._sha.update(block)

    def add_file(self, path: Path) -> None:
        """Add the bytes of a file. Raises InputError if it cannot be read."""
        with open_file(path) as file:
            while piece := file.read(_PIECE):
                self._sha.update(piece)

    def hex(self) -> str:
        """The digest of all parts added so far."""
        return self._sha.hexdigest()


def digest_of(*parts: Part) -> str:
    """The digest of all parts in this order."""
    digest = Digest()
    digest.add(*parts)
    return digest.hex()


def digest_of_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """The digest of names, shapes, types and elements."""
    digest = Digest()
    for name, tensor in named:
        digest.add(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}", tensor)
    return digest.hex()


def digest_of_file(path: str | Path) -> str:
    """The digest of the bytes of a file. Raises InputError if it cannot be read."""
    digest = Digest()
    digest.add_file(Path(path))
    return digest.hex()


def digest_of_json(content: object) -> str:
    """The digest of JSON values; the order of keys does not matter."""
    return digest_of(json.dumps(content, sort_keys=True))


def _plain(part: Part) -> bytes | NDArray[Any]:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, Tensor):  # as bytes, since NumPy does not have all of PyTorch's types
        return part.detach().cpu().contiguous().as_strided((part.numel(),), (1,)).view(torch.uint8).numpy()
    return part


def _blocks(part: bytes | NDArray[Any]) -> Iterator[bytes | memoryview]:
    if isinstance(part, bytes):
        yield part
    elif part.flags.c_contiguous:
        yield part.data
    else:
        yield from (block.data for block in row_major_blocks(part))
