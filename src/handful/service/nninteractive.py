"""nnInteractive's protocol (version 2), so that its clients in 3D Slicer, napari and MITK segment with handful.

After the requests of its client library (2.6). A client claims a session, sends a scan, and then prompts; each answer
has the box of voxels that have changed. Scans come without an orientation, as arrays [channel, x, y, z] in any order of
the axes; coordinates and answers are in that order. Nothing of a scan is kept once its session ends, except the
embeddings of its slices in the cohort's cache.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handful.backbones.names import BACKBONES
from handful.errors import HandfulError, InputError
from handful.service.annotation import Annotations
from handful.service.packed_arrays import packed, unpacked_array
from handful.service.prompted_object import Kind, ObjectSession, Prompt

SESSIONS = 3
"""Clients at a time, as the protocol's own server has it."""
IDLE_S, SILENT_S = 600.0, 60.0
"""Seconds without a prompt, and without any sign of the client, after which its session ends."""
MOST_BYTES = 2**30
"""Largest scan: 512 x 512 x 1024 voxels of 4 bytes."""
UNKNOWN_LICENCE = "!!MISSING!!"
"""What the protocol has for weights of an unknown licence."""
OCTETS = "application/octet-stream"

Finite = Annotated[float, Field(ge=-(2**31), le=2**31)]
Lease = Annotated[str, Header(alias="x-lease-token", max_length=64)]
Meta = Annotated[str, Header(alias="x-meta", max_length=10_000)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class PromptBody(Body):
    include_interaction: bool
    run_prediction: bool = True


class PointBody(PromptBody):
    coordinates: tuple[Finite, Finite, Finite]


class BoxBody(PromptBody):
    bbox_coords: Annotated[list[tuple[Finite, Finite]], Field(min_length=3, max_length=3)]


class MaskMeta(PromptBody):
    interaction_bbox: Annotated[list[tuple[int, int]], Field(min_length=3, max_length=3)] | None = None


class InitialMeta(Body):
    run_prediction: bool = False


class ImageProperties(Body):
    spacing: tuple[Finite, Finite, Finite] = (1.0, 1.0, 1.0)


class ImageMeta(Body):
    image_properties: ImageProperties = ImageProperties()


class TargetBody(Body):
    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    dtype: str = Field(max_length=16)


class PredictBody(Body):
    force_full_refine: bool = False


@dataclass(eq=False)
class ClientSession:
    """A client and what it works on."""

    active: float
    """When it sent its last prompt."""
    heard: float
    """When it last sent anything."""
    object: ObjectSession | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        with self.lock:
            if self.object is not None:
                self.object.close()
                self.object = None


class NnInteractive:
    """The protocol on the parts of a service."""

    def __init__(self, annotations: Annotations, backbone: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.annotations, self.backbone_name, self._clock = annotations, backbone, clock
        self._clients: dict[str, ClientSession] = {}
        self._lock = threading.Lock()

    def capabilities(self) -> dict[str, Any]:
        """What the server can do, as clients expect it described."""
        channels = {"prev_seg": 0, "bbox2d": [1, 2], "lasso": [1, 2], "points": [3, 4], "scribble": [5, 6]}
        return {
            "supported_interactions": {
                "points": True, "bbox2d": True, "bbox3d": False, "scribble": True, "lasso": True,
            },
            "channel_mapping": channels,
            "num_interaction_channels": 7,
            "supports_initial_label": True,
            "supports_zero_shot_label_refinement": False,
            "preferred_scribble_thickness": [1, 1, 1],
            "interaction_decay": None,
            "patch_size": None,
            "do_autozoom": False,
            "inference_session_version": "2.6.0",
            "license": self.licence(),
            "supports_undo": True,
        }  # fmt: skip

    def licence(self) -> str:
        """Licence of the weights that answer, and whose they are, for the client to show."""
        entry = BACKBONES.get(self.backbone_name)
        return f"{entry.licence} ({self.backbone_name}, not nnInteractive's weights)" if entry else UNKNOWN_LICENCE

    def claim(self) -> dict[str, Any]:
        """Begin a session. Raises HTTPException 503 while as many as possible are in use."""
        self._end_abandoned()
        now, token = self._clock(), uuid.uuid4().hex
        with self._lock:
            if len(self._clients) >= SESSIONS:
                raise HTTPException(503, f"all {SESSIONS} sessions are in use", {"retry-after": "10"})
            self._clients[token] = ClientSession(now, now)
        timeouts = {"idle_timeout_seconds": IDLE_S, "liveness_timeout_seconds": SILENT_S}
        return {"lease_token": token, **timeouts, "max_sessions": SESSIONS}

    def client(self, token: str, acts: bool = False) -> ClientSession:
        """The session of a token; `acts` where a person did something. Raises HTTPException 410 for an ended one."""
        self._end_abandoned()
        now = self._clock()
        with self._lock:
            found = self._clients.get(token)
            if found is None:
                raise HTTPException(410, "this session has ended or never began; connect again")
            found.heard = now
            if acts:
                found.active = now
            return found

    def remaining_s(self, token: str) -> float:
        """Seconds until a session ends for lack of prompts."""
        with self._lock:
            found = self._clients.get(token)
        if found is None:
            raise HTTPException(410, "this session has ended or never began; connect again")
        return max(0.0, IDLE_S - (self._clock() - found.active))

    def release(self, token: str) -> None:
        with self._lock:
            found = self._clients.pop(token, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """End all sessions."""
        for token in list(self._clients):
            self.release(token)

    def set_image(self, client: ClientSession, content: bytes, meta: ImageMeta) -> dict[str, Any]:
        """Take the scan of a session in place of an earlier one."""
        array = unpacked_array(content, MOST_BYTES)
        if array.ndim != 4:
            raise InputError(f"a scan with {array.ndim} axes; send [channel, x, y, z]")
        numbers = array.astype(np.uint8) if array.dtype == np.bool_ else array
        spacing = meta.image_properties.spacing
        opened = ObjectSession(numbers, spacing, self.annotations.backbone)
        with client.lock:
            if client.object is not None:
                client.object.close()
            client.object = opened
        return {"original_image_shape": list(array.shape)}

    def answer(self, client: ClientSession, action: Callable[[ObjectSession], bool]) -> Response:
        """Carry out an action and answer with what it has changed."""
        with on_object(client) as current:
            ran = action(current)
            found = current.changes() if ran else None
        meta: dict[str, Any] = {"ran_prediction": ran, "bbox": None}
        if found is None:
            return Response(b"", headers={"x-meta": json.dumps(meta)}, media_type=OCTETS)
        box, voxels = found
        meta |= {"bbox": box, "dtype": str(voxels.dtype), "shape": list(voxels.shape)}
        return Response(packed(voxels), headers={"x-meta": json.dumps(meta)}, media_type=OCTETS)

    def _end_abandoned(self) -> None:
        now = self._clock()
        with self._lock:
            ended = [t for t, c in self._clients.items() if now - c.heard > SILENT_S or now - c.active > IDLE_S]
        for token in ended:
            self.release(token)


@contextmanager
def on_object(client: ClientSession) -> Iterator[ObjectSession]:
    """The object of a client, for one request at a time."""
    with client.lock:
        if client.object is None:
            raise InputError("there is no scan yet; call set_image first")
        yield client.object


@contextmanager
def in_words() -> Iterator[None]:
    """Errors as the clients show them, in `detail`."""
    try:
        yield
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
        raise HTTPException(400, "; ".join(found)) from error
    except HandfulError as error:
        raise HTTPException(400, str(error)) from error


def point_prompt(body: PointBody, shape: tuple[int, int, int]) -> Prompt:
    """A click. Raises InputError for one outside of the scan."""
    x, y, z = (round(one) for one in body.coordinates)
    if not all(0 <= one < length for one, length in zip((x, y, z), shape, strict=True)):
        raise InputError(f"a point {[x, y, z]} that is no voxel of a scan of {shape} voxels")
    return Prompt("point", body.include_interaction, (x, y, z), np.ones((1, 1, 1), bool))


def box_prompt(body: BoxBody, shape: tuple[int, int, int]) -> Prompt:
    """A flat box, cut to the scan. Raises InputError for an empty one and for one that spans voxels on all axes."""
    edges = [(max(0, round(a)), min(length, round(b))) for (a, b), length in zip(body.bbox_coords, shape, strict=True)]
    sizes = [stop - start for start, stop in edges]
    if min(sizes) < 1:
        raise InputError(f"a box {body.bbox_coords} without a voxel of the scan; give [start, stop] for each axis")
    if min(sizes) > 1:
        raise InputError(f"a box of {sizes} voxels; give a flat one, of one voxel along one axis")
    x, y, z = (start for start, _ in edges)
    return Prompt("box", body.include_interaction, (x, y, z), np.ones(sizes, bool))


def mask_prompt(kind: Kind, content: bytes, meta: MaskMeta, shape: tuple[int, int, int]) -> Prompt:
    """A scribble or a lasso in a box of the scan. Raises InputError for a box outside, or another shape."""
    edges = meta.interaction_bbox or [(0, length) for length in shape]
    if not all(0 <= start < stop <= length for (start, stop), length in zip(edges, shape, strict=True)):
        raise InputError(f"interaction_bbox {edges} does not lie in a scan of {shape} voxels")
    sizes = tuple(stop - start for start, stop in edges)
    mask = unpacked_array(content, MOST_BYTES, sizes) != 0
    x, y, z = (start for start, _ in edges)
    return Prompt(kind, meta.include_interaction, (x, y, z), mask)


def add_nninteractive(app: FastAPI, protocol: NnInteractive) -> None:
    """The routes."""
    _add_sessions(app, protocol)
    _add_prompts(app, protocol)
    _add_masks(app, protocol)


def _add_sessions(app: FastAPI, protocol: NnInteractive) -> None:
    @app.get("/healthz")
    def healthy() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/capabilities")
    def capabilities() -> dict[str, Any]:
        return protocol.capabilities()

    @app.post("/claim")
    def claim() -> dict[str, Any]:
        return protocol.claim()

    @app.post("/release")
    def release(lease: Lease = "") -> dict[str, bool]:
        protocol.release(lease)
        return {"released": True}

    @app.post("/heartbeat")
    def heartbeat(lease: Lease = "") -> dict[str, float]:
        protocol.client(lease)
        return {"remaining_seconds": protocol.remaining_s(lease)}

    @app.get("/lease_status")
    def lease_status(lease: Lease = "") -> dict[str, float]:
        return {"remaining_seconds": protocol.remaining_s(lease), "idle_timeout_seconds": IDLE_S}

    @app.post("/set_target_buffer")
    def set_target(body: TargetBody, lease: Lease = "") -> dict[str, Any]:
        client = protocol.client(lease, acts=True)
        with in_words(), on_object(client) as current:
            current.set_target(body.shape, body.dtype)
        return {}

    @app.post("/set_do_autozoom")
    def set_autozoom(lease: Lease = "") -> dict[str, Any]:
        protocol.client(lease, acts=True)  # slices are segmented whole, so there is nothing to zoom
        return {}


def _add_prompts(app: FastAPI, protocol: NnInteractive) -> None:
    @app.post("/reset_interactions")
    def reset(lease: Lease = "") -> dict[str, Any]:
        client = protocol.client(lease, acts=True)
        with in_words(), on_object(client) as current:
            current.reset()
        return {}

    @app.post("/undo")
    def undo(lease: Lease = "") -> Response:
        client = protocol.client(lease, acts=True)
        with in_words():
            return protocol.answer(client, lambda current: current.undo())

    @app.post("/predict")
    def predict(body: PredictBody, lease: Lease = "") -> Response:
        client = protocol.client(lease, acts=True)
        with in_words():
            return protocol.answer(client, lambda current: current.predict())

    @app.post("/add_point_interaction")
    def add_point(body: PointBody, lease: Lease = "") -> Response:
        client = protocol.client(lease, acts=True)
        with in_words():
            return protocol.answer(
                client, lambda current: current.prompt(point_prompt(body, current.shape), body.run_prediction)
            )

    @app.post("/add_bbox_interaction")
    def add_box(body: BoxBody, lease: Lease = "") -> Response:
        client = protocol.client(lease, acts=True)
        with in_words():
            return protocol.answer(
                client, lambda current: current.prompt(box_prompt(body, current.shape), body.run_prediction)
            )


def _add_masks(app: FastAPI, protocol: NnInteractive) -> None:
    def marked(kind: Kind, content: bytes, text: str, lease: str) -> Response:
        client = protocol.client(lease, acts=True)
        with in_words():
            meta = MaskMeta.model_validate_json(text or "{}")
            return protocol.answer(
                client,
                lambda current: current.prompt(mask_prompt(kind, content, meta, current.shape), meta.run_prediction),
            )

    def begun(content: bytes, text: str, lease: str) -> Response:
        client = protocol.client(lease, acts=True)

        def begin(current: ObjectSession) -> bool:
            current.begin_with(unpacked_array(content, MOST_BYTES, current.shape) != 0)
            return meta.run_prediction

        with in_words():
            meta = InitialMeta.model_validate_json(text or "{}")
            return protocol.answer(client, begin)

    def set_scan(content: bytes, text: str, lease: str) -> dict[str, Any]:
        client = protocol.client(lease, acts=True)
        with in_words():
            return protocol.set_image(client, content, ImageMeta.model_validate_json(text or "{}"))

    @app.post("/set_image")
    async def set_image(request: Request, meta: Meta = "", lease: Lease = "") -> dict[str, Any]:
        protocol.client(lease)
        return await run_in_threadpool(set_scan, await request.body(), meta, lease)

    @app.post("/add_scribble_interaction")
    async def add_scribble(request: Request, meta: Meta = "", lease: Lease = "") -> Response:
        protocol.client(lease)
        return await run_in_threadpool(marked, "scribble", await request.body(), meta, lease)

    @app.post("/add_lasso_interaction")
    async def add_lasso(request: Request, meta: Meta = "", lease: Lease = "") -> Response:
        protocol.client(lease)
        return await run_in_threadpool(marked, "lasso", await request.body(), meta, lease)

    @app.post("/add_initial_seg_interaction")
    async def add_initial(request: Request, meta: Meta = "", lease: Lease = "") -> Response:
        protocol.client(lease)
        return await run_in_threadpool(begun, await request.body(), meta, lease)
