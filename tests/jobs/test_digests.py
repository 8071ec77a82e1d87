"""Digests are SHA-256 over the bytes that a copy in row-major order would have."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from handful.errors import InputError
from handful.jobs.digests import Digest, digest_of, digest_of_file, digest_of_json, digest_of_tensors

STORED = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "array",
    [
        STORED,
        np.asfortranarray(STORED),
        STORED.transpose(0, 3, 2, 1),
        STORED[:, ::-1, ::2],
        STORED[0, 0].T,
        STORED[0, 0, :, 1],
        STORED.astype(">f4"),
        STORED > 7,
        STORED[:0],
        np.asfortranarray(STORED)[:, :0],
        np.float16(1.5),
    ],
    ids=[
        "contiguous",
        "fortran",
        "transposed",
        "strided",
        "plane",
        "line",
        "big-endian",
        "bool",
        "empty",
        "empty-strided",
        "scalar",
    ],
)
def test_an_array_has_the_digest_of_its_elements_in_row_major_order(array: np.ndarray):
    assert digest_of(np.asarray(array)) == hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_a_tensor_has_the_digest_of_the_same_array(dtype: torch.dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype).transpose(0, 2)
    assert digest_of(tensor) == digest_of(tensor.numpy())


def test_a_tensor_may_have_a_type_that_numpy_lacks_need_gradients_and_have_no_dimension():
    tensor = torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True)
    assert digest_of(tensor) == hashlib.sha256(bytes.fromhex("c03f")).hexdigest()


def test_parts_count_in_their_order_however_they_are_given():
    digest = Digest()
    digest.add("née", b"\0")
    digest.add(STORED)
    assert digest.hex() == digest_of("née", b"\0", STORED)
    assert digest.hex() == hashlib.sha256("née\0".encode() + STORED.tobytes()).hexdigest()
    assert digest_of(b"\0", "née", STORED) != digest.hex()


def test_named_tensors_differ_by_name_shape_and_type():
    one = torch.zeros(2, 3)
    expected = hashlib.sha256(b"a:(2, 3):torch.float32" + bytes(24)).hexdigest()
    assert digest_of_tensors([("a", one)]) == expected
    others = [("b", one), ("a", one.T), ("a", one.view(torch.int32))]
    assert len({expected, *(digest_of_tensors([other]) for other in others)}) == 4


def test_json_has_one_digest_whatever_the_order_of_its_keys():
    assert digest_of_json({"b": [1, None], "a": "é"}) == digest_of_json({"a": "é", "b": [1, None]})
    assert digest_of_json({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path):
    path = tmp_path / "scan"
    path.write_bytes(bytes(range(256)) * 5000)
    assert digest_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="no such file"):
        digest_of_file(tmp_path / "other")


def test_a_single_number_of_a_tensor_with_gaps_has_the_digest_of_that_number():
    first, _ = torch.tensor([[5, 6]]).unbind(1)  # its stride is 2
    assert digest_of(first) == digest_of(torch.tensor([5]))
