"""The routes of the page, a few lines each; what they do is in `workspace`, `annotation` and `jobs`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from handful.data.cases import Case, Cohort
from handful.data.label_colours import label_colours
from handful.data.volume import LabelMap, Volume
from handful.errors import BusyError, HandfulError, InputError
from handful.jobs.digests import digest_of
from handful.methods.catalog import build_method
from handful.methods.cost import estimate_fit
from handful.reports.viewer import nifti_bytes
from handful.service.annotation import Annotations, InUseError, OpenCase, unpacked
from handful.service.export import exported
from handful.service.jobs import Job, Jobs, Kind
from handful.service.monai import SESSION_S, MonaiLabel, add_monai_label
from handful.service.nninteractive import NnInteractive, add_nninteractive
from handful.service.pictures import overlay, thumbnail
from handful.service.security import Access, Guard
from handful.service.uploads import store_scan
from handful.service.workspace import CaseEntry, Workspace, id_of, state_of_scan
from handful.session.session import Session

STATIC = Path(__file__).parent / "static"
KINDS: tuple[Kind, ...] = ("learn", "segment", "suggest")
UPLOADS_S = 60.0
"""Seconds between two removals of uploaded scans that have expired."""
SETTLED = ("labelled", "accepted")
"""States of a case in which it no longer matters that a job could not use it."""
Annotator = Annotated[str, Header(alias="x-annotator", max_length=64)]
Number = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a service is started with."""

    cohort: Path
    backbone: str = "handful-tiny"
    device: str = "auto"
    access: Access
    learning: bool = False
    """Whether masks from prompts also depend on the slices that were finished before."""


MAY_TEACH = ("accept", "undo", "redo")
"""Kinds of steps that may change what was learned from finished slices."""


class Action(BaseModel):
    """One step of an annotator on one slice, or on the whole scan."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["click", "box", "scribble", "area", "paint", "accept", "reopen", "undo", "redo", "propagate", "clear"]
    """`area` adds the pixels of `mask` to a label, or removes them if not `positive`; `paint` sets all its pixels."""
    slice: Number = 0
    label: int | None = None
    points: list[tuple[float, float]] = Field(default_factory=list, max_length=10_000)
    box: tuple[float, float, float, float] | None = None
    positive: bool = True
    mask: str | None = Field(default=None, max_length=16_000_000)
    """8 pixels per byte, in base64."""


class LabelNames(BaseModel):
    names: list[Annotated[str, Field(max_length=64)]] = Field(max_length=250)


class JobRequest(BaseModel):
    kind: Kind
    method: str = Field(default="auto", max_length=64)
    minutes: float | None = Field(default=None, gt=0, le=24 * 60)


class CostRequest(BaseModel):
    method: str = Field(max_length=64)


class Verdict(BaseModel):
    verdict: Literal["accept", "send back"]
    state: str | None = Field(default=None, max_length=64)
    """State of the segmentation that was displayed; another one is not accepted."""


class Service:
    """The parts that all routes share."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.workspace = Workspace(config.cohort)
        self.annotations = Annotations(self.workspace, config.backbone, config.device, config.learning)
        self.jobs = Jobs(config.cohort, self.workspace.jobs, config.backbone, config.device)
        self._scan_states: tuple[Cohort, dict[str, str]] | None = None

    def overview(self, annotator: str) -> dict[str, Any]:
        """Everything that the list of cases shows."""
        cohort = self.workspace.cohort()
        labels = cohort.labels
        unreadable = self.workspace.unreadable(cohort.cases)
        scan_states, predictions = self._states_of_scans(cohort), self.workspace.predicted()
        entries = [
            asdict(entry)
            | {"in_use": self.annotations.in_use(entry.id, annotator), "unreadable": unreadable.get(entry.id)}
            | {"scan_state": scan_states[entry.id], "result_state": self._result_state(entry, predictions)}
            for entry in self.workspace.entries(cohort)
        ]
        job = self.jobs.latest()
        return {
            "name": cohort.name,
            "version": version("handful"),
            "labels": [
                {"value": value, "name": name, "colour": colour} for value, name, colour in label_colours(labels)
            ]
            if labels
            else [],
            "cases": entries,
            "model": self._model(),
            "job": as_json(job) if job else None,
            "problems": self._problems({entry["name"]: entry["status"] for entry in entries}),
            "suggestions": self._suggestions({entry["id"] for entry in entries}),
            "curve": self._curve(),
            "dicom": any(case.is_dicom for case in cohort.cases),
            "left_out": [asdict(one) for one in cohort.left_out],
        }

    def judge(self, case: Case, verdict: Verdict) -> None:
        """Accept a segmentation, or take that back.

        Raises HTTPException if it is another one than the displayed one: "Segment all" may have made it again.
        """
        if verdict.verdict == "send back":
            self.workspace.send_back(case)
            return
        self._require_displayed(case, verdict.state)
        self.workspace.accept(case)
        try:
            self._require_displayed(case, verdict.state)
        except HTTPException:  # it was made again just now, so it is not known which one was kept
            self.workspace.send_back(case)
            raise

    def _require_displayed(self, case: Case, displayed: str | None) -> None:
        file = self.workspace.prediction(case)
        if displayed is not None and file is not None and _state_of_file(file) != displayed:
            raise HTTPException(
                409, f"the segmentation of {case.name} has changed since it was displayed; check it again, then accept"
            )

    def _states_of_scans(self, cohort: Cohort) -> dict[str, str]:
        """A text by id of the case that changes with its scan; the workspace gives the same cohort until then."""
        if self._scan_states is None or self._scan_states[0] is not cohort:
            states = {id_of(case): digest_of(str(sorted(state_of_scan(case))))[:16] for case in cohort.cases}
            self._scan_states = cohort, states
        return self._scan_states[1]

    def _result_state(self, entry: CaseEntry, predictions: Mapping[str, Path]) -> str | None:
        """A text that changes with the segmentation to review, or the accepted one; None without either."""
        if entry.status == "accepted":
            accepted = (self.workspace.accepted / entry.id).glob("[!.]*")
            return _state_of_file(next(accepted, None))
        return _state_of_file(predictions.get(entry.name)) if entry.status == "to review" else None

    def _model(self) -> dict[str, Any] | None:
        learned = self.jobs.last_done("learn")
        if learned is None or learned.result is None or not self.workspace.has_model:
            return None
        return learned.result | {"when": learned.ended}

    def _problems(self, states: Mapping[str, str]) -> list[dict[str, Any]]:
        """What went wrong in the last job of each kind: its error, or its cases that still matter."""
        found: list[dict[str, Any]] = []
        for kind in KINDS:
            job = self.jobs.last_ended(kind)
            if job is None or job.dismissed:
                continue
            result = job.result or {}
            settled = () if kind == "learn" else SETTLED  # a labelled case that was not learned from still matters
            open_cases = {case for case, state in states.items() if state not in settled}
            listed = {
                part: [one for one in result.get(part, []) if one["case"] in open_cases]
                for part in ("failures", "warnings")
            }
            if job.error or any(listed.values()):
                found.append({"job": job.number, "kind": kind, "error": job.error} | listed)
        return found

    def _suggestions(self, known: set[str]) -> list[dict[str, Any]]:
        job = self.jobs.last_done("suggest")
        found: list[dict[str, Any]] = job.result["suggestions"] if job and job.result else []
        return [one | {"job": job.number} for one in found if job and one["id"] in known]

    def _curve(self) -> list[dict[str, Any]]:
        """Labelled slices at each learning, with the Dice estimated after it."""
        points: list[dict[str, Any]] = []
        jobs = sorted([*self.jobs.all_done("learn"), *self.jobs.all_done("segment")], key=lambda job: job.number)
        for job in jobs:
            result = job.result or {}
            if job.kind == "learn":
                left_out = result["dice_left_out"].values()
                points.append({"slices": result["slices"], "dice": sum(left_out) / len(left_out) if left_out else None})
            elif points and points[-1]["dice"] is None:
                points[-1]["dice"] = result["estimate"]
        return points


def create_app(config: ServiceConfig) -> FastAPI:
    """The service for one cohort folder. Raises InputError if the folder is none."""
    service = Service(config)
    nninteractive = NnInteractive(service.annotations, config.backbone)
    monai = MonaiLabel(service.workspace, service.annotations, service.jobs, config.device)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        monai.remove_uploads()
        removing = asyncio.create_task(_remove_expired(monai))
        yield
        removing.cancel()
        await run_in_threadpool(monai.remove_uploads)
        await run_in_threadpool(nninteractive.close)
        await run_in_threadpool(service.annotations.close)
        await run_in_threadpool(service.jobs.close)

    app = FastAPI(title="handful", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _answer_errors(app)
    _add_cases(app, service)
    _add_annotation(app, service)
    _add_jobs(app, service)
    add_monai_label(app, monai)
    add_nninteractive(app, nninteractive)
    app.state.cohort = config.cohort
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    app.add_middleware(Guard, access=config.access)
    return app


async def _remove_expired(protocol: MonaiLabel) -> None:
    """Remove uploaded scans in time while the service runs, also if nobody calls."""
    while True:
        await asyncio.sleep(UPLOADS_S)
        with suppress(OSError):
            await run_in_threadpool(protocol.remove_uploads, SESSION_S)


def _state_of_file(file: Path | None) -> str | None:
    """Time and size of a file; None without one, which may have been removed just now."""
    with suppress(OSError):
        if file is not None:
            return f"{file.stat().st_mtime_ns}-{file.stat().st_size}"
    return None


def as_json(job: Job) -> dict[str, Any]:
    """A job as the page shows it, without what the process needs."""
    return {key: value for key, value in asdict(job).items() if key not in ("pid", "part_started")} | {
        "left_s": job.left_s(time.time())
    }


def _answer_errors(app: FastAPI) -> None:
    def answering(status: int) -> Callable[[Request, Exception], JSONResponse]:
        return lambda _, error: JSONResponse({"error": str(error)}, status)

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:3]]
        return JSONResponse({"error": "; ".join(found)}, 422)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HandfulError, answering(400))
    app.add_exception_handler(
        OSError, lambda _, error: JSONResponse({"error": f"this could not be kept: {error}"}, 503)
    )
    app.add_exception_handler(BusyError, answering(409))
    app.add_exception_handler(
        InUseError, lambda *_: JSONResponse({"error": "somebody else is working on this case"}, 423)
    )
    app.add_exception_handler(KeyError, lambda *_: JSONResponse({"error": "there is no such case"}, 404))


def _add_cases(app: FastAPI, service: Service) -> None:
    workspace = service.workspace

    @app.get("/api/state")
    def state(annotator: Annotator = "") -> dict[str, Any]:
        return service.overview(annotator)

    @app.put("/api/labels")
    def name_labels(labels: LabelNames) -> dict[str, Any]:
        named = workspace.name_labels(labels.names)
        service.annotations.renew()
        return {"labels": named.as_dict()}

    @app.post("/api/cases")
    async def add_case(request: Request) -> dict[str, str]:
        async with request.form(max_files=1, max_fields=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InputError("no file was sent; send one, called file")
            return {"id": await run_in_threadpool(store_scan, workspace, file.filename or "", file.file)}

    @app.get("/api/cases/{case_id}/thumbnail.png")
    def small_picture(case_id: str) -> Response:
        return Response(thumbnail(workspace, workspace.case(case_id)), media_type="image/png")

    @app.get("/api/cases/{case_id}/overlay.png")
    def picture_with_labels(case_id: str) -> Response:
        return Response(overlay(workspace, workspace.case(case_id)), media_type="image/png")

    @app.get("/api/cases/{case_id}/image.nii.gz")
    def image(case_id: str) -> Response:
        return _voxels(workspace.read_image(workspace.case(case_id)))

    @app.post("/api/cases/{case_id}/verdict")
    def judge(case_id: str, verdict: Verdict) -> dict[str, str]:
        service.judge(workspace.case(case_id), verdict)
        return {"verdict": verdict.verdict}

    @app.get("/api/export/{form}")
    def export(form: Literal["nifti", "nnunet", "dicom-seg", "report"]) -> FileResponse:
        file = exported(workspace, form)
        return FileResponse(file, filename=file.name)


def _add_annotation(app: FastAPI, service: Service) -> None:
    annotations = service.annotations

    @app.get("/api/cases/{case_id}")
    def open_case(case_id: str, annotator: Annotator = "") -> dict[str, Any]:
        opened = annotations.open(case_id, annotator)
        proposed = annotations.propose(opened)
        return described(opened, case_id) | {"proposed": proposed}

    @app.post("/api/cases/{case_id}/stay")
    def stay(case_id: str, annotator: Annotator = "") -> dict[str, bool]:
        annotations.open(case_id, annotator)
        return {"stayed": True}

    @app.post("/api/cases/{case_id}/leave")
    def leave(case_id: str, annotator: Annotator = "") -> dict[str, bool]:
        annotations.release(case_id, annotator)
        return {"left": True}

    @app.get("/api/cases/{case_id}/slices/{number}")
    def pixels(case_id: str, number: int, annotator: Annotator = "") -> Response:
        opened = annotations.open(case_id, annotator)
        opened.session.look_at(number)
        return Response(opened.pixels(number).tobytes(), media_type="application/octet-stream")

    @app.get("/api/cases/{case_id}/slices/{number}/classes")
    def classes(case_id: str, number: int, annotator: Annotator = "") -> Response:
        return _segmentation(annotations.open(case_id, annotator), number, [])

    @app.post("/api/cases/{case_id}/actions")
    def act(case_id: str, action: Action, annotator: Annotator = "") -> Response:
        opened = annotations.open(case_id, annotator)
        changed = annotations.act(opened, lambda session: carry_out(session, action), action.kind in MAY_TEACH)
        return _segmentation(opened, action.slice, changed)

    @app.get("/api/cases/{case_id}/segmentation.nii.gz")
    def segmentation(case_id: str, annotator: Annotator = "") -> Response:
        opened = annotations.open(case_id, annotator)
        return _voxels(opened.session.export())


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.get("/api/job")
    def job() -> dict[str, Any]:
        latest = service.jobs.latest()
        return {"job": as_json(latest) if latest else None}

    @app.post("/api/job")
    def start(request: JobRequest) -> dict[str, Any]:
        if request.kind == "segment" and not service.workspace.has_model:
            raise InputError("nothing is learned yet; press Learn first")
        options = {"method": request.method, "minutes": request.minutes} if request.kind == "learn" else {}
        return {"job": as_json(service.jobs.start(request.kind, options))}

    @app.post("/api/jobs/{number}/dismiss")
    def dismiss(number: Number) -> dict[str, int]:
        service.jobs.dismiss(number)
        return {"dismissed": number}

    @app.post("/api/cost")
    def cost(request: CostRequest) -> dict[str, str | None]:
        found = estimate_fit(
            build_method(request.method, {}), service.workspace.support(), service.annotations.backbone
        )
        return {"cost": str(found) if found else None}

    @app.delete("/api/job")
    def cancel() -> dict[str, Any]:
        return {"job": as_json(service.jobs.cancel())}


def described(opened: OpenCase, case_id: str) -> dict[str, Any]:
    """What a display needs to know of an open case."""
    session, grid = opened.session, opened.grid
    return {
        "id": case_id,
        "name": opened.case.name,
        "slices": len(session),
        "size": list(session.size),
        "spacing": list(grid.spacing),
        "unit": grid.geometry.unit,
        "plane": grid.plane,
        "axis": grid.axis,
        "channels": len(opened.session.displayed),
        "range": list(opened.range),
        "window": list(session.window),
        "modality": opened.volume.modality,
        "flipped": grid.index_in_array(0) != 0,
        **_marks(session),
    }


def carry_out(session: Session, action: Action) -> Sequence[int]:
    """Carry out a step of a page; returns the slices that it has changed."""
    number = action.slice
    match action.kind:
        case "undo":
            return session.undo()
        case "redo":
            return session.redo()
        case "accept":
            session.accept(number)
            return [number]
        case "reopen":
            session.reopen(number)
            return [number]
        case "propagate":
            return session.propagate()
    if action.label is None:
        raise InputError(f"{action.kind} is for one label; choose a label")
    if number in session.accepted:
        raise InputError(f"slice {number + 1} is finished; press “Slice is not finished” to change it")
    match action.kind:
        case "box":
            if action.box is None:
                raise InputError("a box has four corners; give x0, y0, x1, y1")
            session.box(number, action.label, action.box)
        case "click" | "scribble":
            session.scribble(number, action.label, action.points, action.positive)
        case "area":
            area, mask = unpacked(_decoded(action.mask), session.size), session.mask_of(number, action.label)
            session.paint(number, action.label, mask | area if action.positive else mask & ~area)
        case "clear":
            session.paint(number, action.label, np.zeros(session.size, bool))
        case "paint":
            session.paint(number, action.label, unpacked(_decoded(action.mask), session.size))
    return [number]


def _decoded(mask: str | None) -> bytes:
    try:
        return base64.b64decode(mask or "", validate=True)
    except binascii.Error as error:
        raise InputError(f"a mask that is no base64 ({error}); send 8 pixels per byte in base64") from error


def _voxels(volume: Volume | LabelMap) -> Response:
    """A scan or a label map as .nii.gz; every how many voxels of a large one are sent stands in X-Meta."""
    content, step = nifti_bytes(volume)
    return Response(content, media_type="application/gzip", headers={"x-meta": json.dumps({"step": step})})


def _segmentation(opened: OpenCase, number: int, changed: Sequence[int]) -> Response:
    """The segmentation of a slice, one byte per pixel; which slices have changed stands in X-Meta."""
    meta = {"changed": list(changed), **_marks(opened.session)}
    headers = {"x-meta": json.dumps(meta, separators=(",", ":"))}
    return Response(opened.classes(number).tobytes(), media_type="application/octet-stream", headers=headers)


def _marks(session: Session) -> dict[str, list[int]]:
    return {"accepted": list(session.accepted), "prompted": list(session.prompted)}
