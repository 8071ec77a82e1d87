"""MONAI Label's protocol, so that 3D Slicer's and OHIF's plugins work with a cohort as they are.

After the requests that their clients send (MONAI Label 0.8). Two models are offered: `handful`, what was learned, and
`handful-clicks`, which segments from clicks. Points are voxel indices of the scan that the viewer has got.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from numpy.typing import NDArray
from starlette.datastructures import FormData, UploadFile

from handful.backbones.base import Backbone
from handful.checkpoint.model import SavedModel, open_model
from handful.data.cases import Case
from handful.data.dicom.series import series_uid
from handful.data.files import read_label_map, read_volume, write_label_map
from handful.data.volume import Geometry, LabelMap, Labels, Volume
from handful.errors import BusyError, HandfulError, InputError, LabelError
from handful.methods.base import Segmenter
from handful.service.annotation import Annotations
from handful.service.jobs import Job, Jobs
from handful.service.uploads import safe_name, store_scan
from handful.service.workspace import Workspace, id_of
from handful.session.session import Session, SessionConfig

LEARNED, CLICKS = "handful", "handful-clicks"
STATES = {"running": "RUNNING", "done": "DONE", "failed": "ERROR", "cancelled": "STOPPED", "interrupted": "STOPPED"}
RAW = "label.bin"
"""Name under which OHIF sends a label map: one byte per voxel, the first axis runs fastest."""
SESSION_S = 3600
"""Seconds that an uploaded scan is kept. It is refused after them, and removed within a minute more."""


class MonaiLabel:
    """The protocol on the parts of a service."""

    def __init__(self, workspace: Workspace, annotations: Annotations, jobs: Jobs, device: str) -> None:
        self.workspace, self.annotations, self.jobs, self.device = workspace, annotations, jobs, device
        self._segmenter: tuple[str, Segmenter] | None = None
        self._clicked: OrderedDict[str, Session] = OrderedDict()
        self._series: dict[str, str] = {}
        self._lock = threading.RLock()

    def info(self) -> dict[str, Any]:
        """What the server offers; a top-level "config" would make 3D Slicer stop, and "labels" as a dict OHIF."""
        labels, entries = self._labels(), self.workspace.entries()
        learned = self.jobs.last_done("learn")
        dice = (learned.result or {}).get("dice_left_out", {}).values() if learned else ()
        models: dict[str, Any] = {
            CLICKS: self._model("deepedit", "Segments from clicks inside and outside a label", labels),
        }
        if self.workspace.has_model:
            models = {LEARNED: self._model("segmentation", "What was learned from the labelled cases", labels)} | models
        return {
            "name": "handful",
            "description": "Label a handful of slices; get the whole cohort segmented.",
            "version": "0.8.0",
            "labels": list(labels),
            "models": models,
            "trainers": {LEARNED: {"name": LEARNED, "description": "Learns from all labelled cases", "config": {}}},
            "strategies": {"next": {"description": "The case whose label helps most"}},
            "scoring": {},
            "train_stats": {LEARNED: {"best_metric": sum(dice) / len(dice)} if dice else {}},
            "datastore": {
                "total": len(entries),
                "completed": sum(entry.status == "labelled" for entry in entries),
                "label_tags": {"final": sum(entry.status == "labelled" for entry in entries)},
                "train": [],
            },
        }

    def next_sample(self) -> dict[str, Any]:
        """The case to label next; empty if all are labelled. A scan that cannot be read is left out.

        The page lists it with the reason. Raises InputError if none can be read.
        """
        entries = {entry.id: entry for entry in self.workspace.entries() if entry.status != "labelled"}
        suggested = self.jobs.last_done("suggest")
        order = [one["id"] for one in (suggested.result or {}).get("suggestions", [])] if suggested else []
        candidates = [self.workspace.case(one) for one in dict.fromkeys([*order, *entries]) if one in entries]
        case = next((case for case in candidates if self.workspace.is_readable(case)), None)
        if case is None and candidates:
            reason = self.workspace.unreadable(candidates)[id_of(candidates[0])]
            raise InputError(f"no scan without labels of {len(candidates)} can be read; the first: {reason}")
        return {} if case is None else _sample(case)

    def datastore(self) -> dict[str, Any]:
        """All cases, with the names of the labels that each labelled one may hold."""
        names, objects = self._labels(), {}
        for case in self.workspace.cohort().cases:
            labels = {"final": {"ext": "", "info": {"params": {"label_names": names}}}} if case.reference else {}
            objects[id_of(case)] = {"image": {"ext": "", "info": {"name": case.name}}, "labels": labels}
        return {"name": "cohort", "description": "", "objects": objects}

    def save_label(self, image: str, name: str, content: UploadFile, params: Mapping[str, Any]) -> dict[str, str]:
        """Keep a label map as that of a case; names of its labels may come with it, and tell its values.

        One without any label says that all of the scan is background.
        """
        case, labels = self.case(image), self.workspace.labels()
        if labels is None:
            raise InputError("no label has a name yet; name them on the page first")
        with _passing(self.workspace, name if name == RAW else safe_name(name)) as file:
            with file.open("wb") as target:
                shutil.copyfileobj(content.file, target)
            found = _raw(file, case.read_geometry()) if file.suffix == ".bin" else _label_map(file, labels)
        case.read_geometry().require_same(found.geometry, "the scan and the label map")
        stated = {int(one["idx"]): str(one["name"]) for one in params.get("label_info", []) if "idx" in one}
        names = {value: stated.get(value, labels.as_dict().get(value, "")) for value in _values_in(found.array)}
        value_of = {known: value for value, known in labels.as_dict().items()}
        if unknown := [f"{value} ({named})" for value, named in names.items() if named not in value_of]:
            raise InputError(f"values that are no label: {', '.join(unknown)}; labels are {list(value_of)}")
        array = np.zeros_like(found.array)
        for value, named in names.items():
            array[found.array == value] = value_of[named]
        self.annotations.replace_labels(case, LabelMap(array, found.geometry, labels))
        return {"image": image, "label": image}

    def infer(self, model: str, volume: Volume, key: str, params: Mapping[str, Any]) -> LabelMap:
        """The segmentation of a scan by the learned model, or from clicks.

        Raises UnsupportedInput for a scan that the learned model cannot be used for, such as one in colour.
        """
        if model == LEARNED:
            saved = open_model(self.workspace.model)
            usable = saved.arranged(volume)
            return self._segmenter_of(saved).predict(usable)
        if model != CLICKS:
            raise HTTPException(404, f"there is no model {model}")
        labels = self.workspace.labels()
        if labels is None:
            raise InputError("no label has a name yet; name them on the page first")
        with self._lock:
            session = self._clicked.pop(key, None)
            if session is None or session.labels != labels:
                quiet = SessionConfig(background=False)
                session = Session(volume, self._backbone, labels, config=quiet)
            self._clicked[key] = session
            while len(self._clicked) > 2:
                self._clicked.popitem(last=False)[1].close()
            return _from_clicks(session, params)

    def start(self, kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Start learning or segmenting all. Raises BusyError while a job runs."""
        options = {"method": str(params.get("method", "auto")), "minutes": params.get("minutes")}
        return as_task(self.jobs.start("learn", options) if kind == "learn" else self.jobs.start("segment", {}))

    def volume_of(self, image: str, session: str | None) -> tuple[Volume, str]:
        """A scan of the cohort or an uploaded one, and a key that tells it from others."""
        if session:
            file = self.session_file(session)
            return read_volume(file), session
        case = self.case(image)
        return self.workspace.read_image(case), id_of(case)

    def case(self, image: str) -> Case:
        """A case by its id, or by its SeriesInstanceUID, which viewers of DICOM send. Raises KeyError for neither."""
        for case in self.workspace.cohort().cases if "." in image else ():
            if case.is_dicom and isinstance(case.image, Path) and self._series_of(case, case.image) == image:
                return case
        return self.workspace.case(image)

    def _series_of(self, case: Case, path: Path) -> str:
        """SeriesInstanceUID of a case; empty for a series that cannot be read."""
        if case.name not in self._series:
            try:
                self._series[case.name] = series_uid(path, case.choice)
            except HandfulError:
                self._series[case.name] = ""
        return self._series[case.name]

    def create_session(self, name: str, content: UploadFile) -> str:
        """Keep a scan for a while that is none of the cohort."""
        self.remove_uploads(SESSION_S)
        folder, token = self._uploads, uuid.uuid4().hex
        (folder / token).mkdir(parents=True)
        with (folder / token / safe_name(name)).open("wb") as target:
            shutil.copyfileobj(content.file, target)
        return token

    def remove_session(self, token: str) -> None:
        shutil.rmtree(self.session_file(token).parent)

    def session_file(self, token: str) -> Path:
        """The scan of a session. Raises HTTPException for one that is unknown or has expired."""
        self.remove_uploads(SESSION_S)
        folder = self._uploads / token
        file = next(folder.iterdir(), None) if token.isalnum() and len(token) == 32 and folder.is_dir() else None
        if file is None:
            raise HTTPException(404, f"there is no such session; an uploaded scan is kept for {SESSION_S} seconds")
        return file

    def remove_uploads(self, min_age_s: float = 0.0) -> None:
        """Remove the uploaded scans that are at least so old; by default all of them."""
        for old in self._uploads.iterdir() if self._uploads.is_dir() else ():
            with suppress(FileNotFoundError):  # another viewer has just ended its session
                if time.time() - old.stat().st_mtime >= min_age_s or not min_age_s:
                    shutil.rmtree(old, ignore_errors=True)

    @property
    def _uploads(self) -> Path:
        return self.workspace.own / "uploads"

    def _segmenter_of(self, saved: SavedModel) -> Segmenter:
        """The segmenter of the model, loaded once."""
        with self._lock:
            if self._segmenter is None or self._segmenter[0] != saved.sha256:
                self._segmenter = saved.sha256, saved.open(self.device)
            return self._segmenter[1]

    @cached_property
    def _backbone(self) -> Backbone:
        return self.annotations.backbone

    def _labels(self) -> dict[str, int]:
        labels = self.workspace.labels()
        return {name: value for value, name in labels.as_dict().items()} if labels else {}

    @staticmethod
    def _model(kind: str, description: str, labels: Mapping[str, int]) -> dict[str, Any]:
        return {"type": kind, "labels": dict(labels), "dimension": 3, "description": description, "config": {}}


def as_task(job: Job) -> dict[str, Any]:
    """A job as the protocol describes tasks."""
    return {
        "id": str(job.number),
        "status": STATES[job.state],
        "start_ts": int(job.started),
        "end_ts": int(job.ended) if job.ended else None,
        "details": [job.error] if job.error else [job.note],
    }


def add_monai_label(app: FastAPI, protocol: MonaiLabel) -> None:
    """The routes."""
    _add_reading(app, protocol)
    _add_writing(app, protocol)
    _add_tasks(app, protocol)


def _add_reading(app: FastAPI, protocol: MonaiLabel) -> None:
    workspace = protocol.workspace

    @app.get("/auth/")
    def authentication() -> dict[str, bool]:
        return {"enabled": False}

    @app.get("/info/")
    def info() -> dict[str, Any]:
        return protocol.info()

    @app.post("/activelearning/{strategy}")
    def next_sample(strategy: str) -> dict[str, Any]:
        return protocol.next_sample()

    @app.get("/datastore/")
    def datastore(output: str = "all") -> dict[str, Any]:
        return protocol.info()["datastore"] if output == "stats" else protocol.datastore()

    @app.get("/datastore/image")
    def image(image: str) -> FileResponse:
        file = _file(workspace.case(image))
        return FileResponse(file, filename=f"{image}{_suffixes(file)}")

    @app.api_route("/datastore/label", methods=["GET", "HEAD"])
    def label(label: str, tag: str = "final") -> FileResponse:
        case = workspace.case(label)
        found = case.reference if tag == "final" else workspace.prediction(case)
        if not isinstance(found, Path):
            raise HTTPException(404, "this case has no such label")
        return FileResponse(found, filename=f"{label}{_suffixes(found)}")


def _add_writing(app: FastAPI, protocol: MonaiLabel) -> None:
    @app.put("/datastore/")
    @app.put("/datastore/image")
    async def add_image(request: Request, image: str = "") -> dict[str, str]:
        async with request.form(max_files=1, max_fields=4) as form:
            file = _uploaded(form, "file")
            name = f"{image}{_suffixes(Path(_base(file)))}" if image else _base(file)
            return {"image": await run_in_threadpool(store_scan, protocol.workspace, name, file.file)}

    @app.put("/datastore/label")
    async def add_label(request: Request, image: str, tag: str = "final") -> dict[str, str]:
        async with request.form(max_files=1, max_fields=4) as form:
            file = _uploaded(form, "label")
            return await run_in_threadpool(protocol.save_label, image, _base(file), file, _params(form))

    @app.put("/session/")
    async def create_session(request: Request) -> dict[str, Any]:
        async with request.form(max_files=1, max_fields=16) as form:
            file = _uploaded(form, "files")
            token = await run_in_threadpool(protocol.create_session, _base(file), file)
            return {"session_id": token, "session_info": {"expiry": SESSION_S}}

    @app.get("/session/{token}")
    def session(token: str) -> dict[str, Any]:
        protocol.session_file(token)
        return {"session_id": token, "expiry": SESSION_S}

    @app.delete("/session/{token}")
    def remove_session(token: str) -> dict[str, Any]:
        protocol.remove_session(token)
        return {}

    @app.post("/infer/{model}")
    async def infer(request: Request, model: str, image: str = "", session_id: str = "", output: str = "") -> Response:
        async with request.form(max_files=2, max_fields=4) as form:
            params = _params(form)
        return await run_in_threadpool(_inferred, protocol, model, image, session_id, output, params)


def _add_tasks(app: FastAPI, protocol: MonaiLabel) -> None:
    async def start(request: Request, kind: str) -> Response:
        body = await request.body()
        params = json.loads(body) if body else {}
        options = params.get(LEARNED, params) if isinstance(params, dict) else {}
        try:
            return JSONResponse(await run_in_threadpool(protocol.start, kind, options))
        except BusyError as error:
            return JSONResponse({"error": str(error)}, 429)

    def status(kind: str) -> dict[str, Any]:
        job = protocol.jobs.latest()
        if job is None or job.kind != kind:
            raise HTTPException(404, "there is no such task")
        return as_task(job)

    @app.post("/train/")
    @app.post("/train/{model}")
    async def train(request: Request, model: str = LEARNED) -> Response:
        return await start(request, "learn")

    @app.get("/train/")
    def training(check_if_running: bool = False) -> dict[str, Any]:
        task = status("learn")
        if check_if_running and task["status"] != "RUNNING":
            raise HTTPException(404, "no training runs")
        return task

    @app.delete("/train/")
    def stop_training() -> dict[str, Any]:
        return as_task(protocol.jobs.cancel())

    @app.post("/batch/infer/{model}")
    async def batch(request: Request, model: str) -> Response:
        return await start(request, "segment")

    @app.get("/batch/infer/")
    def batch_status() -> dict[str, Any]:
        return status("segment")

    @app.delete("/batch/infer/")
    def stop_batch() -> dict[str, Any]:
        return as_task(protocol.jobs.cancel())

    @app.api_route("/scoring/{rest:path}", methods=["GET", "POST", "DELETE"])
    @app.api_route("/logs/{rest:path}", methods=["GET"])
    @app.api_route("/proxy/{rest:path}", methods=["GET"])
    @app.api_route("/wsi/{rest:path}", methods=["GET", "POST"])
    def not_offered(rest: str = "") -> Response:
        return JSONResponse({"error": "handful does not offer this part of the protocol"}, 501)


def _inferred(
    protocol: MonaiLabel, model: str, image: str, session: str, output: str, params: Mapping[str, Any]
) -> Response:
    began = time.monotonic()
    volume, key = protocol.volume_of(image, session or None)
    found = protocol.infer(model, volume, key, params)
    suffix = str(params.get("result_extension", ".nii.gz"))
    if suffix not in (".nii.gz", ".nii", ".nrrd", ".mha"):
        raise InputError(f"results cannot be {suffix} files; choose .nii.gz, .nii, .nrrd or .mha")
    with _passing(protocol.workspace, f"result{suffix}") as file:
        write_label_map(file, found)
        content = file.read_bytes()
    names = {name: value for value, name in found.labels.as_dict().items()}
    answer = {"label_names": names, "latencies": {"total": round(time.monotonic() - began, 3)}}
    if output == "json":
        return JSONResponse({"params": answer})
    if output == "image":
        disposition = {"content-disposition": f'attachment; filename="result{suffix}"'}
        return Response(content, media_type="application/octet-stream", headers=disposition)
    return _multipart(answer, f"result{suffix}", content)


@contextmanager
def _passing(workspace: Workspace, name: str) -> Iterator[Path]:
    """A file that exists until the context ends."""
    folder = workspace.own / "uploads" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder / name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_clicks(session: Session, params: Mapping[str, Any]) -> LabelMap:
    """The segmentation from all clicks of a request: by slice, then carried to the other slices.

    Clicks in the background correct the slices that they are on, also those that a label was only carried to. It is one
    step of the session, which the next request takes back.
    """
    session.undo()
    points = {name: params.get(name) or [] for name in session.labels.names}
    if params.get("label") in points:  # the form of one label at a time
        points[str(params["label"])] = params.get("foreground") or []
    inside = {name: _by_slice(session, voxels) for name, voxels in points.items()}
    outside = _by_slice(session, params.get("background") or [])
    with session.one_step():
        for name, slices in inside.items():
            for number, places in slices.items():
                for place in places:
                    session.click(number, name, place)
                for place in outside.get(number, []):
                    session.click(number, name, place, positive=False)
        if session.prompted and len(session) > 1:
            session.propagate()
        for name, slices in inside.items():
            for number in sorted(outside.keys() - slices.keys()):
                mask = session.mask_of(number, name)
                if any(mask[int(row), int(column)] for column, row in outside[number]):
                    for place in outside[number]:
                        session.click(number, name, place, positive=False)
    return session.export()


def _label_map(file: Path, labels: Labels) -> LabelMap:
    """The label map in a file, with its own values; one without any label has `labels`."""
    try:
        return read_label_map(file)
    except LabelError:
        return read_label_map(file, labels)  # refused again for any other reason


def _values_in(array: NDArray[Any]) -> list[int]:
    """The values above 0, in ascending order."""
    return [int(value) for value in np.unique(array) if value > 0]


def _raw(file: Path, geometry: Geometry) -> LabelMap:
    """A label map of one byte per voxel of the scan. Raises InputError for another number of bytes."""
    array = np.fromfile(file, np.uint8)
    if array.size != math.prod(geometry.shape):
        raise InputError(f"{array.size} bytes for a scan of {geometry.shape} voxels; send one byte per voxel")
    labels = Labels.of({value: str(value) for value in _values_in(array) or [1]})
    return LabelMap(array.reshape(geometry.shape, order="F").astype(np.int16), geometry, labels)


def _by_slice(session: Session, voxels: Any) -> dict[int, list[tuple[float, float]]]:
    """Voxel indices as (x, y) on the slices of a session. Raises InputError for what is no voxel of the scan."""
    found: dict[int, list[tuple[float, float]]] = {}
    grid, shape = session.grid, session.volume.geometry.shape
    for voxel in voxels if isinstance(voxels, list) else [voxels]:
        index = _whole(voxel)
        if index is None or not all(0 <= one < size for one, size in zip(index, shape, strict=True)):
            raise InputError(f"a point {voxel!r} that is no voxel of a scan of {shape} voxels; give [i, j, k]")
        number, row, column = grid.place_of(index)
        found.setdefault(number, []).append((float(column), float(row)))
    return found


def _whole(voxel: Any) -> tuple[int, int, int] | None:
    """Three finite numbers as voxel indices."""
    if not isinstance(voxel, list) or len(voxel) != 3:
        return None
    if not all(isinstance(value, int | float) and abs(value) < 2**31 for value in voxel):
        return None
    i, j, k = (int(value) for value in voxel)
    return i, j, k


def _multipart(params: Mapping[str, Any], name: str, content: bytes) -> Response:
    """The form that the clients read: a part `params`, and a part `image` with a file name."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def _uploaded(form: FormData, field: str) -> UploadFile:
    file = form.get(field)
    if not isinstance(file, UploadFile):
        raise InputError(f"no file was sent; send one, called {field}")
    return file


def _params(form: FormData) -> dict[str, Any]:
    """The options of a request. Raises InputError unless they are a JSON object."""
    text = form.get("params")
    try:
        found = json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"params is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError("params must be a JSON object")
    return found


def _base(file: UploadFile) -> str:
    """The last part of the name: clients send the whole path of their own machine."""
    return (file.filename or "").replace("\\", "/").rpartition("/")[2]


def _suffixes(file: Path) -> str:
    return ".nii.gz" if file.name.lower().endswith(".nii.gz") else file.suffix


def _sample(case: Case) -> dict[str, Any]:
    """A scan as the protocol describes one; the checksum of a DICOM series in several files is that of its voxels."""
    changed = max(int(file.stat().st_mtime) for file in case.files)
    checksum = f"SHA256:{case.image_digest()}"
    return {"id": id_of(case), "name": case.name, "weight": 1.0, "ts": changed, "checksum": checksum}


def _file(case: Case) -> Path:
    if not isinstance(case.image, Path) or not case.image.is_file():
        raise InputError("this scan is several files, which the protocol cannot send")
    return case.image
