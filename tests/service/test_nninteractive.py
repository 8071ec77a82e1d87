"""nnInteractive's protocol, with the requests of its clients, and with its real client where that is installed."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

import tiny_models
from handful.data.files import write_volume
from handful.data.volume import Geometry, Volume
from handful.errors import InputError
from handful.service.annotation import Annotations
from handful.service.nninteractive import IDLE_S, SESSIONS, SILENT_S, NnInteractive
from handful.service.packed_arrays import packed, unpacked_array
from handful.service.prompted_object import STROKES, ObjectSession, Prompt, geometry_of
from handful.service.workspace import Workspace
from phantoms import phantom

ARRAYS = [np.zeros((3, 5), np.uint8), np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4), np.ones((9, 9, 9), bool)]


@pytest.mark.parametrize("array", [*ARRAYS, np.random.default_rng(0).random((40, 30, 20)).astype(np.float32)])
def test_arrays_are_the_same_after_packing(array: np.ndarray):
    found = unpacked_array(packed(array), 2**20)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def declared(shape: tuple[int, ...], name: bytes = b"uint8", chunks: bytes = struct.pack("<I", 0)) -> bytes:
    return struct.pack(f"<4sBBBB{len(name)}s{len(shape)}q", b"NNIA", 1, 1, len(shape), len(name), name, *shape) + chunks


def cut(array: np.ndarray, **changed: int) -> bytes:
    """A packed array with bytes of its only chunk's header replaced."""
    content = bytearray(packed(array))
    start = 8 + len(array.dtype.name) + 8 * array.ndim + 4 + 16
    for place, value in changed.items():
        content[start + int(place[1:])] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "ends early"),
        (b"PK\x03\x04" + bytes(60), "format NNIA"),
        (declared((10**4, 10**4, 10**4)), "bytes; the most is"),  # 1 TB
        (declared((2**62, 2**62)), "bytes; the most is"),
        (declared((-1, 5)), "at least one voxel"),
        (declared((5,), b"object"), "of type"),
        (declared((5, 5)), "another size than its shape"),
        (declared((5, 5), chunks=struct.pack("<I", 2**32 - 1)), "ends early"),
        (declared((2**20,), chunks=struct.pack("<IQQ", 1, 2**62, 2**62)), "impossible size"),
        (declared((100,), chunks=packed(np.zeros(50, np.uint8))[21:]), "another size than its shape"),
        (packed(np.zeros((3, 3)))[:-3], "impossible size"),
        (packed(np.zeros((3, 3))) + b"x", "another size than its shape"),
        (cut(np.arange(99, dtype=np.uint8), _4=98), "contradicts its header"),
        (cut(np.arange(99, dtype=np.uint8), _16=200), "unusual compression"),  # a filter of a plugin
        (cut(np.arange(99, dtype=np.uint8), _22=40), "unusual compression"),  # a codec of a plugin
        (cut(np.arange(99, dtype=np.uint8), _31=8), "unusual compression"),  # voxels in another file
        (cut(np.arange(99, dtype=np.uint8), _31=64), "unusual compression"),  # memory that nobody has set
    ],
)
def test_arrays_that_lie_about_their_size_or_need_other_code_are_refused(content: bytes, part: str):
    with pytest.raises(InputError, match=part):
        unpacked_array(content, 2**30)


def test_damaged_arrays_are_refused_or_have_the_declared_shape():
    rng = np.random.default_rng(0)
    content = packed(rng.integers(0, 9, (30, 20, 10), dtype=np.int16))
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        try:
            found = unpacked_array(bytes(damaged), 2**20)
        except InputError:
            continue
        assert found.nbytes <= 2**20


@pytest.mark.parametrize(
    ("shape", "spacing", "across"),
    [
        ((20, 30, 40), (5.0, 1.0, 1.0), 0),
        ((30, 40, 20), (1.0, 1.0, 5.0), 2),
        ((30, 20, 40), (1.0, 5.0, 1.0), 1),
        ((20, 30, 40), (1.0, 1.0, 1.0), 0),
        ((20, 30, 1), (1.0, 1.0, 1.0), 2),
    ],
)
def test_slices_lie_across_the_largest_spacing(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], across: int
):
    geometry = geometry_of(shape, spacing)
    assert np.argmax(np.abs(geometry.affine[2, :3])) == across
    assert geometry.spacing == pytest.approx(spacing)


def test_a_spacing_that_cannot_be_is_refused():
    for spacing in ((0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, 1e9, 1.0)):
        with pytest.raises(InputError, match="spacing"):
            geometry_of((3, 3, 3), spacing)


def test_sessions_end_when_the_client_is_silent_or_idle_and_make_room(cohort: Path):
    now = [0.0]
    protocol = NnInteractive(Annotations(Workspace(cohort), "handful-tiny", "cpu"), "handful-tiny", lambda: now[0])
    tokens = [protocol.claim()["lease_token"] for _ in range(SESSIONS)]
    with pytest.raises(HTTPException) as full:
        protocol.claim()
    assert (full.value.status_code, full.value.headers) == (503, {"retry-after": "10"})
    now[0] += SILENT_S - 1
    protocol.client(tokens[0])
    now[0] += 2
    protocol.claim()  # in place of one that was silent
    with pytest.raises(HTTPException) as ended:
        protocol.client(tokens[1])
    assert ended.value.status_code == 410
    for _ in range(20):
        now[0] += SILENT_S / 2
        if now[0] - IDLE_S < 0:
            protocol.client(tokens[0])  # signs of life, but no prompt
    with pytest.raises(HTTPException):
        protocol.client(tokens[0])


class Caller:
    """The requests of a client, by hand."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.lease = {"x-lease-token": client.post("/claim").json()["lease_token"]}
        self.buffer = np.zeros(0, np.uint8)

    def open(self, array: np.ndarray, spacing: list[float]) -> None:
        meta = {"image_properties": {"spacing": spacing}}
        assert self.send("/set_image", array, meta).json() == {"original_image_shape": list(array.shape)}
        self.buffer = np.zeros(array.shape[1:], np.uint8)
        self.post("/set_target_buffer", {"shape": list(self.buffer.shape), "dtype": "uint8"})

    def post(self, path: str, body: object, status: int = 200) -> Any:
        answer = self.client.post(path, json=body, headers=self.lease)
        assert answer.status_code == status, answer.text
        return self._applied(answer)

    def send(self, path: str, array: np.ndarray, meta: object, status: int = 200) -> Any:
        headers = self.lease | {"x-meta": json.dumps(meta)}
        answer = self.client.post(path, content=packed(array), headers=headers)
        assert answer.status_code == status, answer.text
        return self._applied(answer)

    def _applied(self, answer: Any) -> Any:
        meta = json.loads(answer.headers.get("x-meta", "{}"))
        if meta.get("bbox"):
            self.buffer[tuple(slice(*edges) for edges in meta["bbox"])] = unpacked_array(answer.content, 2**20)
        return answer


@pytest.fixture
def caller(client: TestClient) -> Caller:
    found = Caller(client)
    volume = phantom(0)[0]
    found.open(volume.array, [float(one) for one in volume.geometry.spacing])
    return found


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


BALL = phantom(0)[1].array == 1
CENTRE = [int(one) for one in np.argwhere(BALL)[BALL.sum() // 2]]


def test_a_point_gives_the_object_in_3d_and_undo_and_reset_take_it_back(caller: Caller):
    caller.post("/add_point_interaction", {"coordinates": CENTRE, "include_interaction": True})
    assert caller.buffer[tuple(CENTRE)] == 1
    assert dice(caller.buffer > 0, BALL) > 0.5
    first = caller.buffer.copy()
    outside = [CENTRE[0], CENTRE[1], CENTRE[2] + 9]
    caller.post("/add_point_interaction", {"coordinates": outside, "include_interaction": False})
    assert not np.array_equal(caller.buffer, first)
    answer = caller.post("/undo", {})
    assert json.loads(answer.headers["x-meta"])["ran_prediction"] is True
    assert np.array_equal(caller.buffer, first)
    caller.post("/undo", {})
    assert not caller.buffer.any()
    assert json.loads(caller.post("/undo", {}).headers["x-meta"]) == {"ran_prediction": False, "bbox": None}
    caller.post("/add_point_interaction", {"coordinates": CENTRE, "include_interaction": True})
    caller.buffer.fill(0)  # as the client does
    caller.post("/reset_interactions", {})
    caller.post("/add_point_interaction", {"coordinates": CENTRE, "include_interaction": True})
    assert np.array_equal(caller.buffer, first)


def test_prompts_wait_until_a_prediction_is_wanted(caller: Caller):
    point = {"coordinates": CENTRE, "include_interaction": True, "run_prediction": False}
    answer = caller.post("/add_point_interaction", point)
    assert json.loads(answer.headers["x-meta"]) == {"ran_prediction": False, "bbox": None}
    assert not caller.buffer.any()
    caller.post("/predict", {"force_full_refine": False})
    assert caller.buffer[tuple(CENTRE)] == 1


def box_of(mask: np.ndarray, axis: int) -> list[list[int]]:
    """The box of a mask on the slice in its middle across an axis, half open."""
    at = int(np.median(np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))))
    places = np.argwhere(np.take(mask, [at], axis))
    edges = [[int(a), int(b) + 1] for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True)]
    edges[axis] = [at, at + 1]
    return edges


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_box_across_any_axis_finds_the_object(caller: Caller, axis: int):
    caller.post("/add_bbox_interaction", {"bbox_coords": box_of(BALL, axis), "include_interaction": True})
    assert dice(caller.buffer > 0, BALL) > 0.5


def test_scribbles_and_lassos_in_a_part_of_the_scan(caller: Caller):
    edges = box_of(BALL, 1)
    part = BALL[tuple(slice(*edge) for edge in edges)].astype(np.uint8)
    line = np.zeros_like(part)
    line[len(line) // 2] = part[len(line) // 2]
    meta = {"include_interaction": True, "run_prediction": True, "interaction_bbox": edges}
    caller.send("/add_scribble_interaction", line, meta)
    assert dice(caller.buffer > 0, BALL) > 0.5
    caller.buffer.fill(0)
    caller.post("/reset_interactions", {})
    caller.send("/add_lasso_interaction", part, meta)
    assert dice(caller.buffer > 0, BALL) > 0.5
    caller.send("/add_lasso_interaction", part, meta | {"include_interaction": False})
    assert not caller.buffer[tuple(slice(*edge) for edge in edges)][part > 0].any()


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
def test_a_prompt_across_many_slices_is_used_from_its_first_to_its_last_one(kind: Any):
    array = np.random.default_rng(0).random((1, 16, 16, 20)).astype(np.float32)
    mask = np.zeros((16, 16, 20), bool)
    mask[4:8, 4:8] = True
    found = ObjectSession(array, (1.0, 1.0, 3.0), tiny_models.tiny_sam(side=64))
    found.prompt(Prompt(kind, True, (0, 0, 0), mask), run=True)
    prompted = found._session.prompted
    assert (prompted[0], prompted[-1], len(prompted)) == (0, 19, STROKES)


def test_a_first_segmentation_is_kept_but_for_the_slice_that_is_corrected(caller: Caller):
    caller.send("/add_initial_seg_interaction", BALL.astype(np.uint8), {"run_prediction": False})
    caller.buffer[:] = BALL  # as the client does
    outside = [CENTRE[0], CENTRE[1], 0]
    caller.post("/add_point_interaction", {"coordinates": outside, "include_interaction": False})
    others = [n for n in range(BALL.shape[1]) if n != CENTRE[1]]
    assert np.array_equal(caller.buffer[:, others] > 0, BALL[:, others])
    caller.post("/undo", {})
    assert np.array_equal(caller.buffer > 0, BALL)
    caller.post("/undo", {})
    assert not caller.buffer.any()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/add_point_interaction", {"coordinates": [99, 0, 0], "include_interaction": True}),
        ("/add_point_interaction", {"coordinates": [-1, 0, 0], "include_interaction": True}),
        ("/add_bbox_interaction", {"bbox_coords": [[0, 9], [0, 3], [0, 9]], "include_interaction": True}),
        ("/add_bbox_interaction", {"bbox_coords": [[5, 5], [0, 1], [0, 9]], "include_interaction": True}),
        ("/set_target_buffer", {"shape": [10**6, 10**6, 10**6], "dtype": "uint8"}),
        ("/set_target_buffer", {"shape": [24, 6, 28], "dtype": "object"}),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(caller: Caller, path: str, body: dict[str, object]):
    assert caller.post(path, body, 400).json()["detail"]
    for wrong in ({}, {"coordinates": "x", "bbox_coords": [1], "shape": None}):
        assert caller.post(path, wrong, 422)


def test_masks_of_another_shape_or_without_a_voxel_are_refused(caller: Caller):
    good = {"include_interaction": True}
    for path in ("/add_scribble_interaction", "/add_lasso_interaction"):
        caller.send(path, np.ones((2, 2, 2), np.uint8), good, 400)
        caller.send(path, np.zeros(BALL.shape, np.uint8), good, 400)
        caller.send(path, np.ones((2, 2, 2), np.uint8), good | {"interaction_bbox": [[0, 2], [5, 7], [0, 2]]}, 400)
        caller.send(path, BALL, {"include_interaction": [[]]}, 400)
    caller.send("/add_initial_seg_interaction", np.ones((2, 2, 2), np.uint8), {}, 400)
    caller.send("/set_image", np.ones((2, 2, 2), np.uint8), {}, 400)
    caller.send("/set_image", np.ones((2, 2, 2, 2), np.uint8), {}, 400)


def test_without_a_session_or_a_scan_nothing_is_done(client: TestClient):
    point = {"coordinates": [0, 0, 0], "include_interaction": True}
    assert client.post("/add_point_interaction", json=point).status_code == 410
    assert client.post("/set_image", content=b"", headers={"x-lease-token": "x"}).status_code == 410
    answer = client.post("/add_point_interaction", json=point, headers=Caller(client).lease)
    assert (answer.status_code, "set_image" in answer.json()["detail"]) == (400, True)


def test_the_licence_is_that_of_the_weights_that_answer(client: TestClient):
    assert client.get("/capabilities").json()["license"] == "Apache-2.0 (handful-tiny, not nnInteractive's weights)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server process."""
    cohort = tmp_path_factory.mktemp("cohort")
    command = [sys.executable, "-c", "from handful.cli import main; main()", "serve", str(cohort), "--port", "0"]
    secret = dict(os.environ) | {"HANDFUL_TOKEN": "secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=secret) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].partition("?")[0]
        process.terminate()


def oblique(angle: float = 0.35) -> np.ndarray:
    """A turn about two axes."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def stored_as(direction: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A phantom whose voxels are stored along other directions, and its ball; slices lie along the last axis."""
    volume, truth = phantom(0)
    array, ball = volume.array.transpose(0, 1, 3, 2), (truth.array == 1).transpose(0, 2, 1)
    affine = np.eye(4)
    affine[:3, :3] = direction @ np.diag([1.1, 0.9, 5.0])
    affine[:3, 3] = [-12.0, 31.0, 7.5]
    return Volume(np.ascontiguousarray(array), Geometry(ball.shape, affine), modality="MR"), ball


@pytest.mark.process
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(
    "direction", [np.diag([1.0, 1, 1]), np.diag([-1.0, -1, 1]), oblique()], ids=["RAS", "LPS", "oblique"]
)
def test_the_real_client_segments_the_voxels_that_it_has_marked(
    server: str, tmp_path: Path, direction: np.ndarray, order: tuple[int, int, int]
):
    remote = pytest.importorskip("nnInteractive.inference.remote", reason="nnInteractive's client is not installed")
    from handful.data.files import read_volume

    volume, ball = stored_as(direction)
    write_volume(tmp_path / "scan.nii.gz", volume)
    scan = read_volume(tmp_path / "scan.nii.gz")
    assert np.allclose(scan.geometry.affine, volume.geometry.affine, atol=1e-4)
    ball = ball.transpose(order)
    spacing = [float(scan.geometry.spacing[axis]) for axis in order]
    with remote.nnInteractiveRemoteInferenceSession(server, api_key="secret", read_timeout=600.0) as session:
        session.set_image(scan.array.transpose(0, *(axis + 1 for axis in order)), {"spacing": spacing})
        buffer = np.zeros(ball.shape, np.uint8)
        session.set_target_buffer(buffer)
        axis = order.index(2)
        edges = box_of(ball, axis)
        inside = [sum(edge) // 2 for edge in edges]
        part = ball[tuple(slice(*edge) for edge in edges)].astype(np.uint8)

        def found(prompt: Callable[[], object]) -> np.ndarray:
            session.reset_interactions()
            prompt()
            assert dice(buffer > 0, ball) > 0.5
            return buffer.copy()

        point = found(lambda: session.add_point_interaction(inside, True))
        assert point[tuple(inside)] == 1
        found(lambda: session.add_bbox_interaction(edges, True))
        found(lambda: session.add_scribble_interaction(part, True, interaction_bbox=edges))
        lasso = found(lambda: session.add_lasso_interaction(part, True, interaction_bbox=edges))
        session.add_lasso_interaction(part, False, interaction_bbox=edges)
        assert not buffer[tuple(slice(*edge) for edge in edges)][part > 0].any()
        assert session.undo()
        assert np.array_equal(buffer, lasso)
        session.add_initial_seg_interaction(ball.astype(np.uint8))
        assert np.array_equal(buffer > 0, ball)
        session.add_point_interaction(inside, True)
        assert dice(buffer > 0, ball) > 0.9
        assert session.license.startswith("Apache-2.0")
        with pytest.raises(Exception, match="400"):
            session.add_point_interaction([999, 0, 0], True)


@pytest.mark.process
def test_the_real_client_hears_that_all_sessions_are_in_use_and_that_one_has_ended(server: str):
    remote = pytest.importorskip("nnInteractive.inference.remote", reason="nnInteractive's client is not installed")
    module = sys.modules[remote.nnInteractiveRemoteInferenceSession.__module__]
    with pytest.raises(Exception, match="401"):
        remote.nnInteractiveRemoteInferenceSession(server, api_key="wrong")
    sessions = [remote.nnInteractiveRemoteInferenceSession(server, api_key="secret") for _ in range(SESSIONS)]
    with pytest.raises(module.ServerAtCapacityError, match="in use"):
        remote.nnInteractiveRemoteInferenceSession(server, api_key="secret")
    assert sessions[0].ping()
    assert sessions[0].lease_status()["remaining_seconds"] > 0
    sessions[0]._http.post("/release")
    with pytest.raises(module.SessionExpiredError):
        sessions[0].heartbeat()
    for session in sessions:
        session.close()
