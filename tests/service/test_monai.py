"""MONAI Label's protocol, with the requests that its clients send, and with its real client where that is installed."""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

import dicom_series as made
import tiny_models
from handful.checkpoint.model import save
from handful.data.files import read_cohort, read_label_map, read_volume, write_label_map, write_volume
from handful.data.made_for import MadeFor
from handful.data.slicing import Slicer
from handful.data.support import SupportSet
from handful.data.volume import LabelMap, Labels
from handful.methods.nearest_slice import NearestSlice
from handful.service import app
from handful.service.app import ServiceConfig, create_app
from handful.service.monai import _from_clicks
from handful.service.security import Access
from handful.session.session import Session, SessionConfig
from phantoms import dot, phantom
from service.conftest import clients

LABELS = Labels.of({1: "ball", 2: "egg"})


def reference(seed: int) -> LabelMap:
    """Of a phantom, with the values that the page gives."""
    shown = phantom(seed)[1]
    array = np.searchsorted([0, *shown.labels.values], shown.array).astype(np.int16)
    return LabelMap(array, shown.geometry, LABELS)


@pytest.fixture
def named(client: TestClient) -> TestClient:
    client.put("/api/labels", json={"names": ["ball", "egg"]})
    return client


def ids(client: TestClient) -> dict[str, str]:
    return {case["name"]: case["id"] for case in client.get("/api/state").json()["cases"]}


def clicks_on(seed: int) -> dict[str, list[list[int]]]:
    """A voxel inside of each label, and one outside of all."""
    truth = reference(seed)
    grid = Slicer().grid(truth.geometry)
    number = next(n for n, classes in enumerate(grid.of(truth.array)) if {1, 2} <= set(np.unique(classes)))
    marked = np.zeros(truth.array.shape, int)
    grid.of(marked)[number] = 1
    inside = {
        name: np.argwhere((truth.array == value) & (marked > 0)).tolist() for value, name in LABELS.as_dict().items()
    }
    found = {name: [voxels[len(voxels) // 2]] for name, voxels in inside.items()}
    return found | {"background": [np.argwhere((truth.array == 0) & (marked > 0))[0].tolist()]}


def test_info_says_what_clients_look_for(named: TestClient):
    info = named.get("/info/").json()
    assert not info.get("config")
    assert info["labels"] == ["ball", "egg"]  # OHIF's plugin appends to this list
    assert info["models"]["handful-clicks"]["labels"] == {"ball": 1, "egg": 2}
    assert info["models"]["handful-clicks"]["type"] == "deepedit"
    assert "handful" not in info["models"]  # nothing is learned yet
    assert info["datastore"]["total"] == 3
    assert named.get("/auth/").json() == {"enabled": False}


def test_clicks_in_voxels_segment_the_voxels_they_are_in(named: TestClient, tmp_path: Path):
    case, clicks = ids(named)["scan_0"], clicks_on(0)
    params = json.dumps(clicks | {"result_extension": ".nii.gz"})
    answer = named.post(f"/infer/handful-clicks?image={case}&output=image", data={"params": params})
    assert answer.status_code == 200, answer.text
    (tmp_path / "found.nii.gz").write_bytes(answer.content)
    found = read_label_map(tmp_path / "found.nii.gz", LABELS)
    assert np.allclose(found.geometry.affine, phantom(0)[0].geometry.affine, atol=1e-4)
    for name, value in (("ball", 1), ("egg", 2)):
        assert found.array[tuple(clicks[name][0])] == value
    assert found.array[tuple(clicks["background"][0])] == 0


def test_a_request_takes_back_all_clicks_of_the_one_before_however_many():
    quiet = SessionConfig(background=False, history=2)
    with Session(phantom(0)[0], tiny_models.tiny_sam(side=64), LABELS, config=quiet) as session:
        _from_clicks(session, clicks_on(0))
        assert session.prompted
        found = _from_clicks(session, {})
        assert (session.prompted, found.array.any()) == ((), False)


def test_a_click_in_the_background_removes_what_was_carried_too_far(named: TestClient, tmp_path: Path):
    case, truth = ids(named)["scan_0"], reference(0).array == 2
    grid = Slicer().grid(phantom(0)[0].geometry)
    sizes = grid.of(truth).sum(axis=(1, 2))
    clicked = np.argwhere(truth & slices_of(truth, [int(sizes.argmax())]))

    def egg(background: list[list[int]]) -> np.ndarray:
        clicks = {"egg": [clicked[len(clicked) // 2].tolist()], "background": background}
        data = {"params": json.dumps(clicks | {"result_extension": ".nii.gz"})}
        answer = named.post(f"/infer/handful-clicks?image={case}&output=image", data=data)
        assert answer.status_code == 200, answer.text
        (tmp_path / "found.nii.gz").write_bytes(answer.content)
        return read_label_map(tmp_path / "found.nii.gz", LABELS).array == 2

    first = egg([])
    wrong = np.argwhere(first & ~truth)[0]
    place = grid.place_of((int(wrong[0]), int(wrong[1]), int(wrong[2])))
    assert place[0] != sizes.argmax()
    corrected, same = egg([wrong.tolist()]), ~slices_of(truth, [place[0]])
    assert not corrected[tuple(wrong)]
    assert corrected[~same].any()
    assert np.array_equal(corrected[same], first[same])


def slices_of(array: np.ndarray, numbers: list[int]) -> np.ndarray:
    """Which voxels lie on these slices."""
    found = np.zeros(array.shape, bool)
    Slicer().grid(phantom(0)[0].geometry).of(found)[numbers] = True
    return found


@pytest.mark.parametrize("voxel", [[0, 0, 999], [-1, 0, 0], [0, 0], "x", [None, 1, 2]])
def test_points_that_are_no_voxels_are_refused(named: TestClient, voxel: object):
    answer = named.post(
        f"/infer/handful-clicks?image={ids(named)['scan_0']}", data={"params": json.dumps({"ball": [voxel]})}
    )
    assert answer.status_code == 400
    assert "no voxel" in answer.json()["error"]


def test_a_saved_label_becomes_that_of_the_case_by_the_names_of_its_values(
    named: TestClient, cohort: Path, tmp_path: Path
):
    truth = reference(0)
    swapped = LabelMap(np.where(truth.array > 0, 3 - truth.array, 0).astype(np.int16), truth.geometry, LABELS)
    write_label_map(tmp_path / "label.nii.gz", swapped)
    params = {"label_info": [{"name": "egg", "idx": 1}, {"name": "ball", "idx": 2}]}
    answer = named.put(
        f"/datastore/label?image={ids(named)['scan_0']}&tag=final",
        data={"params": json.dumps(params)},
        files={"label": ("C:\\home\\Jane Doe\\label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())},
    )
    assert answer.status_code == 200, answer.text
    found = next(one for one in read_cohort(cohort).cases if one.name == "scan_0").read_reference()
    assert found is not None
    assert np.array_equal(found.array, truth.array)
    assert not list((cohort / ".handful" / "service" / "uploads").iterdir())
    assert named.get("/info/").json()["datastore"]["completed"] == 1
    assert named.head(f"/datastore/label?label={ids(named)['scan_0']}").status_code == 200
    assert ids(named)["scan_0"] != named.post("/activelearning/next", json={}).json()["id"]


def test_a_label_map_without_a_header_is_that_of_the_scan(named: TestClient, cohort: Path):
    truth, params = reference(0), {"label_info": [{"name": "ball", "idx": 1}, {"name": "egg", "idx": 2}]}
    case, content = ids(named)["scan_0"], truth.array.astype(np.uint8).tobytes(order="F")

    def saved(content: bytes) -> int:
        files = {"label": ("label.bin", content)}
        data = {"params": json.dumps(params)}
        return named.put(f"/datastore/label?image={case}", data=data, files=files).status_code

    assert saved(content[:-1]) == 400
    assert saved(content) == 200
    found = next(one for one in read_cohort(cohort).cases if one.name == "scan_0").read_reference()
    assert found is not None
    assert np.array_equal(found.array, truth.array)


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nrrd", "label.bin"])
def test_a_label_map_without_any_label_says_that_all_is_background(
    named: TestClient, cohort: Path, tmp_path: Path, name: str
):
    truth = reference(0)
    empty = LabelMap(np.zeros_like(truth.array), truth.geometry, LABELS)
    if name == "label.bin":
        (tmp_path / name).write_bytes(empty.array.astype(np.uint8).tobytes())
    else:
        write_label_map(tmp_path / name, empty)
    info = {"label_info": [{"name": "Segment 1", "idx": 1}]}  # the viewer's own name of a label that it did not use
    answer = named.put(
        f"/datastore/label?image={ids(named)['scan_0']}",
        data={"params": json.dumps(info)},
        files={"label": (name, (tmp_path / name).read_bytes())},
    )
    assert answer.status_code == 200, answer.text
    found = next(one for one in read_cohort(cohort).cases if one.name == "scan_0").read_reference()
    assert found is not None
    assert (found.array == 0).all()


def test_a_viewer_of_dicom_names_a_scan_by_its_series(named: TestClient, cohort: Path, tmp_path: Path):
    series = made.series(5)
    made.write(cohort / "images" / "ct", series)
    uid = str(series[0].SeriesInstanceUID)
    answer = named.post(f"/infer/handful-clicks?image={uid}&output=image", data={"params": "{}"})
    assert answer.status_code == 200, answer.text
    (tmp_path / "found.nii.gz").write_bytes(answer.content)
    shape = read_label_map(tmp_path / "found.nii.gz", LABELS).geometry.shape
    assert shape == read_volume(cohort / "images" / "ct").geometry.shape
    assert named.post("/infer/handful-clicks?image=1.2.3", data={"params": "{}"}).status_code == 404


@pytest.mark.parametrize("fitted_on", [1, 3])
def test_the_learned_model_refuses_colour_where_it_was_fitted_on_grey_and_the_reverse(
    named: TestClient, cohort: Path, tmp_path: Path, fitted_on: int
):
    case = dot(0)
    image = case.read_image()
    fitted = replace(case, image=replace(image, array=np.repeat(image.array, fitted_on, axis=0)))
    support = SupportSet((fitted,), case.labels)
    method = NearestSlice()
    segmenter, kind = method.fit(support, tiny_models.tiny_sam(side=64)), MadeFor.of(support, support.resolve(Slicer()))
    model = cohort / ".handful" / "service" / "model"
    save(segmenter, model, method_name="nearest-slice", method=method, provenance={}, made_for=kind)
    Image.new("RGB" if fitted_on == 1 else "L", (32, 32)).save(tmp_path / "scan.png")
    sent = {"files": ("scan.png", (tmp_path / "scan.png").read_bytes())}
    session = named.put("/session/", files=sent).json()["session_id"]
    answer = named.post(f"/infer/handful?session_id={session}&output=image", data={"params": "{}"})
    assert answer.status_code == 400, answer.text
    there, here = ("grey", "colour") if fitted_on == 1 else ("colour", "grey")
    assert f"fitted on {there} scans, and this one is {here}" in answer.json()["error"]


def test_uploaded_scans_are_removed_in_time_and_when_the_service_starts_and_stops(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    uploads, scan = cohort / ".handful" / "service" / "uploads", {"files": ("scan.nii.gz", b"a scan")}
    (uploads / "left").mkdir(parents=True)
    (uploads / "left" / "scan.nii.gz").write_bytes(b"of a service that was killed")
    for client in clients(cohort):
        assert not list(uploads.iterdir())
        token = client.put("/session/", files=scan).json()["session_id"]
        assert client.get(f"/session/{token}").status_code == 200
        os.utime(uploads / token, (0, 0))
        answer = client.post(f"/infer/handful-clicks?session_id={token}", data={"params": "{}"})
        assert (answer.status_code, list(uploads.iterdir())) == (404, [])
        client.put("/session/", files=scan)
    assert not list(uploads.iterdir())
    monkeypatch.setattr(app, "UPLOADS_S", 0.01)
    for client in clients(cohort):
        token = client.put("/session/", files=scan).json()["session_id"]
        os.utime(uploads / token, (0, 0))
        while (uploads / token).exists():
            threading.Event().wait(0.01)


def test_a_session_begins_while_that_of_another_viewer_ends(
    named: TestClient, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    ending, stat = cohort / ".handful" / "service" / "uploads" / ("0" * 32), Path.stat
    ending.mkdir(parents=True)

    def late(self: Path, **options: bool) -> os.stat_result:
        if self == ending and os.path.isdir(ending):
            ending.rmdir()
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", late)
    answer = named.put("/session/", files={"files": ("scan.nii.gz", b"a scan")})
    assert answer.status_code == 200, answer.text
    assert not ending.exists()


def test_parts_that_are_not_offered_say_so(named: TestClient):
    for path in ("/scoring/dice", "/logs/gpu", "/proxy/dicom/studies"):
        assert named.get(path).status_code == 501
    assert named.get("/train/").status_code == 404
    assert named.post("/infer/unknown?image=" + ids(named)["scan_0"]).status_code == 404
    assert named.get("/session/../../etc").status_code == 404


@pytest.fixture
def address(cohort: Path) -> Iterator[str]:
    """A real server on the loopback."""
    app = create_app(ServiceConfig(cohort=cohort, access=Access(host="127.0.0.1")))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while thread.is_alive() and not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.process
def test_the_real_client_labels_learns_and_segments(address: str, cohort: Path, tmp_path: Path):
    library = pytest.importorskip("monailabel.client.client", reason="MONAI Label's client is not installed")
    client = library.MONAILabelClient(address, tmpdir=str(tmp_path), client_id="slicer")
    (cohort / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball", "2": "egg"}}))
    assert client.info()["name"] == "handful"
    sample = client.next_sample("next", {})
    seed = int(sample["name"].removeprefix("scan_"))
    write_label_map(tmp_path / "label.nii.gz", reference(seed))
    info = [{"name": "ball", "idx": 1}, {"name": "egg", "idx": 2}]
    client.save_label(sample["id"], str(tmp_path / "label.nii.gz"), params={"label_info": info})
    assert client.info()["datastore"]["completed"] == 1

    task = client.train_start("handful", {"method": "fate"})
    assert task["status"] == "RUNNING"
    with pytest.raises(library.MONAILabelClientException):
        client.train_start("handful", {})
    while client.train_status(check_if_running=True):
        threading.Event().wait(0.5)
    assert client.train_status()["status"] == "DONE"
    other = client.next_sample("next", {})
    file, params = client.infer("handful", other["id"], {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert params["label_names"] == {"ball": 1, "egg": 2}
    found = read_label_map(Path(file), LABELS)
    own = int(other["name"].removeprefix("scan_"))
    truth = reference(own)
    assert np.allclose(found.geometry.affine, truth.geometry.affine, atol=1e-3)
    assert (
        2 * ((found.array == 1) & (truth.array == 1)).sum() / ((found.array == 1).sum() + (truth.array == 1).sum())
        > 0.5
    )
    file, _ = client.infer("handful-clicks", other["id"], clicks_on(own) | {"result_extension": ".nii.gz"})
    assert read_label_map(Path(file), LABELS).array.any()

    write_volume(tmp_path / "elsewhere.nii.gz", phantom(5)[0])
    session = client.create_session(str(tmp_path / "elsewhere.nii.gz"))["session_id"]
    assert client.get_session(session)["session_id"] == session
    file, _ = client.infer("handful", "any", {}, session_id=session)
    assert read_label_map(Path(file), LABELS).array.shape == phantom(5)[0].geometry.shape
    client.remove_session(session)
    assert client.upload_image(str(tmp_path / "elsewhere.nii.gz"), "added")["image"] in ids_of(client)


def ids_of(client: object) -> list[str]:
    with urllib.request.urlopen(f"{client.get_server_url()}/datastore/") as answer:  # type: ignore[attr-defined]
        return list(json.load(answer)["objects"])


def test_a_scan_that_cannot_be_read_is_no_next_sample_and_is_listed(named: TestClient, cohort: Path):
    known, whole = ids(named), {}
    for file in sorted((cohort / "images").iterdir()):
        whole[file] = file.read_bytes()
        file.write_bytes(whole[file][:2000])
        if file.name != "scan_2.nii.gz":
            sample = named.post("/activelearning/next", json={}).json()
            assert sample["id"] == known[f"scan_{int(file.name[5]) + 1}"]
    refused = named.post("/activelearning/next", json={})
    assert refused.status_code == 400
    assert "no scan without labels of 3 can be read; the first: " in refused.json()["error"]
    state = named.get("/api/state").json()["cases"]
    assert all("scan_" in case["unreadable"] for case in state)
    for file, content in whole.items():
        file.write_bytes(content)
    assert named.post("/activelearning/next", json={}).json()["id"] == known["scan_0"]
    assert named.get("/api/state").json()["cases"][0]["unreadable"] is None


def test_a_dicom_series_is_a_next_sample(named: TestClient, cohort: Path):
    for file in (cohort / "images").iterdir():
        file.unlink()
    made.write(cohort / "images" / "series", made.of_volume(phantom(0)[0], series="1.2.3.4"))
    sample = named.post("/activelearning/next", json={}).json()
    assert (sample["name"], sample["id"]) == ("series", ids(named)["series"])
