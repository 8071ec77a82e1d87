"""Annotating over HTTP: steps, finished slices as label maps on disk, and what a restart finds."""

import base64
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from handful.data.cases import Case
from handful.data.files import read_cohort, read_label_map, write_label_map
from handful.data.slicing import Slicer
from handful.data.volume import IGNORE, LabelMap, Labels, Volume
from handful.errors import DamagedFile
from handful.jobs import scratch
from handful.service import annotation, workspace
from handful.service.app import ServiceConfig, create_app
from handful.service.security import Access
from handful.session.session import Session
from phantoms import phantom
from service.conftest import clients


def id_of(client: TestClient, name: str) -> str:
    return next(str(case["id"]) for case in client.get("/api/state").json()["cases"] if case["name"] == name)


def step(client: TestClient, case: str, **action: object) -> tuple[dict[str, list[int]], np.ndarray]:
    """What a step has changed, and the segmentation of its slice."""
    answer = client.post(f"/api/cases/{case}/actions", json=action)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.headers["x-meta"]), np.frombuffer(answer.content, np.uint8)


def mask(size: tuple[int, int], rows: slice, columns: slice) -> tuple[str, np.ndarray]:
    """A rectangle as the page sends it."""
    inside = np.zeros(size, bool)
    inside[rows, columns] = True
    return base64.b64encode(np.packbits(inside).tobytes()).decode(), inside


def known_slices(client: TestClient, case: str, array: np.ndarray) -> int:
    """How many slices are labelled, in the plane that the page shows."""
    details = client.get(f"/api/cases/{case}").json()
    return int((np.moveaxis(array, details["axis"], 0) != IGNORE).reshape(details["slices"], -1).any(axis=1).sum())


def listed_slices(cohort: Path, client: TestClient, case: str) -> list[int]:
    """The slices of scan_0 that are labelled in the files, by their number on the page."""
    details, reference = client.get(f"/api/cases/{case}").json(), read_cohort(cohort).cases[0].read_reference()
    if reference is None:
        return []
    known = np.moveaxis(reference.array != IGNORE, details["axis"], 0).reshape(details["slices"], -1).any(axis=1)
    return [int(number) for number in np.flatnonzero(known[::-1] if details["flipped"] else known)]


@pytest.fixture
def case(client: TestClient) -> str:
    assert client.put("/api/labels", json={"names": ["ball", "box"]}).status_code == 200
    return id_of(client, "scan_0")


def test_more_labels_than_the_page_can_show_are_refused(client: TestClient, cohort: Path):
    names = {"0": "background"} | {str(value): f"part {value}" for value in range(1, 257)}
    (cohort / "dataset.json").write_text(json.dumps({"labels": names}))
    answer = client.get(f"/api/cases/{id_of(client, 'scan_0')}")
    assert answer.status_code == 400, answer.text
    assert "256 labels, and the page shows at most 255" in answer.text


def test_a_case_says_what_a_display_needs(client: TestClient, case: str):
    details = client.get(f"/api/cases/{case}").json()
    volume = phantom(0)[0]
    assert details["slices"] * np.prod(details["size"]) == volume.array[0].size
    assert details["range"] == [volume.array.min(), volume.array.max()]
    assert sorted(details["spacing"]) == pytest.approx(sorted(volume.geometry.spacing))
    pixels = np.frombuffer(client.get(f"/api/cases/{case}/slices/2").content, "<u2")
    assert len(pixels) == np.prod(details["size"])
    assert pixels.min() >= 0
    assert 0 < pixels.max() <= 65535


def test_labels_must_have_names_before_a_case_is_opened(client: TestClient):
    answer = client.get(f"/api/cases/{id_of(client, 'scan_0')}")
    assert answer.status_code == 400
    assert "no label has a name yet" in answer.json()["error"]


def test_a_box_and_a_click_segment_and_undo_takes_back(client: TestClient, case: str):
    size = client.get(f"/api/cases/{case}").json()["size"]
    box = [3.0, 3.0, size[1] - 4.0, size[0] - 4.0]
    meta, boxed = step(client, case, kind="box", slice=3, label=1, box=box)
    assert meta["changed"] == [3]
    assert meta["prompted"] == [3]
    assert set(boxed) == {0, 1}
    _, clicked = step(client, case, kind="click", slice=3, label=1, points=[[1.0, 1.0]], positive=False)
    _, back = step(client, case, kind="undo", slice=3)
    assert np.array_equal(back, boxed)
    assert clicked.shape == boxed.shape


def test_a_finished_slice_is_a_label_on_disk_with_the_painted_voxels(client: TestClient, case: str, cohort: Path):
    size = tuple(client.get(f"/api/cases/{case}").json()["size"])
    bits, inside = mask(size, slice(4, 9), slice(2, 12))
    _, classes = step(client, case, kind="paint", slice=2, label=2, mask=bits)
    assert np.array_equal(classes.reshape(size) == 2, inside)
    assert not (cohort / "labels").exists()
    step(client, case, kind="accept", slice=2)
    found = next(one for one in read_cohort(cohort).cases if one.name == "scan_0")
    reference = found.read_reference()
    assert reference is not None
    assert int((reference.array == 2).sum()) == int(inside.sum())
    assert known_slices(client, case, reference.array) == 1
    step(client, case, kind="reopen", slice=2)
    assert not list((cohort / "labels").iterdir())


def test_voxels_lie_where_they_were_painted_in_the_patient(client: TestClient, case: str, cohort: Path):
    details = client.get(f"/api/cases/{case}").json()
    size, number = tuple(details["size"]), 4
    bits, _ = mask(size, slice(5, 6), slice(7, 8))
    step(client, case, kind="paint", slice=number, label=1, mask=bits)
    step(client, case, kind="accept", slice=number)
    label_map = read_label_map(cohort / "labels" / "scan_0.nii.gz")
    (voxel,) = np.argwhere(label_map.array == 1)
    volume = phantom(0)[0]
    grid = Slicer().grid(volume.geometry)
    marked = np.zeros(volume.geometry.shape, bool)
    grid.of(marked)[number, 5, 7] = True
    assert voxel.tolist() == np.argwhere(marked)[0].tolist()
    assert np.allclose(label_map.geometry.affine, volume.geometry.affine, atol=1e-4)


def test_a_restarted_service_has_every_step(client: TestClient, case: str, cohort: Path):
    size = tuple(client.get(f"/api/cases/{case}").json()["size"])
    _, first = step(client, case, kind="box", slice=1, label=1, box=[2.0, 2.0, 12.0, 12.0])
    bits, _ = mask(size, slice(0, 3), slice(0, 3))
    _, second = step(client, case, kind="paint", slice=2, label=2, mask=bits)
    step(client, case, kind="accept", slice=2)
    for again in clients(cohort):
        assert again.get(f"/api/cases/{case}").json()["accepted"] == [2]
        for number, expected in ((1, first), (2, second)):
            found = np.frombuffer(again.get(f"/api/cases/{case}/slices/{number}/classes").content, np.uint8)
            assert np.array_equal(found, expected)


def test_undo_after_a_case_is_opened_again_changes_nothing(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    size = tuple(client.get(f"/api/cases/{case}").json()["size"])
    step(client, case, kind="paint", slice=2, label=2, mask=mask(size, slice(0, 3), slice(0, 3))[0])
    step(client, case, kind="accept", slice=2)
    files = {file: file.read_bytes() for file in (cohort / "labels").iterdir()}
    assert len(files) == 2

    def undone(client: TestClient) -> None:
        client.get(f"/api/cases/{case}")
        for kind in ("undo", "redo"):
            assert step(client, case, kind=kind, slice=2)[0] == {"changed": [], "accepted": [2], "prompted": [2]}
        assert {file: file.read_bytes() for file in (cohort / "labels").iterdir()} == files
        client.post(f"/api/cases/{case}/leave")

    monkeypatch.setattr(annotation, "OPEN_CASES", 1)
    step(client, case, kind="paint", slice=3, label=1, mask=mask(size, slice(0, 3), slice(0, 3))[0])
    step(client, case, kind="undo", slice=3)
    client.post(f"/api/cases/{case}/leave")
    client.get(f"/api/cases/{id_of(client, 'scan_1')}")  # closes the first one
    undone(client)
    for again in clients(cohort):
        undone(again)


def test_labels_that_were_taken_over_are_not_undone(client: TestClient, case: str, cohort: Path):
    (cohort / "labels").mkdir()
    shown = phantom(1)[0].geometry
    truth = LabelMap(np.ones(shown.shape, np.int16), shown, Labels.of({1: "ball", 2: "box"}))
    write_label_map(cohort / "labels" / "scan_1.nii.gz", truth)
    other = id_of(client, "scan_1")
    accepted = client.get(f"/api/cases/{other}").json()["accepted"]
    assert len(accepted) == 6
    meta, classes = step(client, other, kind="undo", slice=0)
    assert (meta["changed"], meta["accepted"], set(classes)) == ([], accepted, {1})


def test_large_label_maps_are_written_through_temporary_files(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    (cohort / "dataset.json").write_text(json.dumps({"labels": {"1": "ball", "2": "box", "3": "background"}}))
    (cohort / "labels").mkdir()
    array = phantom(0)[1].array  # 1 and 3
    truth = LabelMap(
        np.where(array == 0, 3, np.minimum(array, 2)).astype(np.int16),
        phantom(0)[0].geometry,
        Labels.of({1: "ball", 2: "box", 3: "background"}),
    )
    write_label_map(cohort / "labels" / "scan_0.nii.gz", truth)
    monkeypatch.setattr(scratch, "LARGE", 1)
    written: list[np.ndarray] = []
    monkeypatch.setattr(annotation, "write_label_map", lambda *of: (written.append(of[1].array), write_label_map(*of)))
    step(client, case, kind="reopen", slice=0)
    (array,) = written
    while not isinstance(array, np.memmap):
        assert isinstance(array.base, np.ndarray), "in memory"
        array = array.base
    reference = read_cohort(cohort).cases[0].read_reference()
    assert reference is not None
    known = reference.array != IGNORE
    assert known_slices(client, case, reference.array) == 5
    assert np.array_equal(reference.array[known], np.where(truth.array == 3, 0, truth.array)[known])


def test_labels_by_hand_are_taken_over_and_put_aside_before_they_are_replaced(
    client: TestClient, case: str, cohort: Path
):
    shown = phantom(1)[1]
    array = np.searchsorted([0, *shown.labels.values], shown.array).astype(np.int16)  # 1 and 2, as the page counts
    truth = LabelMap(array, shown.geometry, Labels.of({1: "ball", 2: "box"}))
    (cohort / "labels").mkdir()
    file = cohort / "labels" / "scan_1.nii.gz"
    write_label_map(file, truth)
    before, other = file.read_bytes(), id_of(client, "scan_1")
    details = client.get(f"/api/cases/{other}").json()
    assert details["accepted"] == list(range(details["slices"]))
    assert file.read_bytes() == before
    step(client, other, kind="reopen", slice=0)
    assert (cohort / ".handful" / "service" / "originals" / "scan_1.nii.gz").read_bytes() == before
    found = next(one for one in read_cohort(cohort).cases if one.name == "scan_1").read_reference()
    assert found is not None
    known = found.array != IGNORE
    assert known_slices(client, other, found.array) == details["slices"] - 1
    assert np.array_equal(found.array[known], truth.array[known])


def test_labels_that_another_program_changed_are_put_aside_and_originals_kept(
    client: TestClient, case: str, cohort: Path
):
    shown = phantom(0)[0].geometry
    originals = cohort / ".handful" / "service" / "originals"
    file = cohort / "labels" / "scan_0.nii.gz"

    def finished(number: int) -> None:
        step(client, case, kind="accept", slice=number)

    def by_another_program(voxel: tuple[int, int, int]) -> bytes:
        array = np.zeros(shown.shape, np.int16)
        array[voxel] = 1
        write_label_map(file, LabelMap(array, shown, Labels.of({1: "ball", 2: "box"})))
        return file.read_bytes()

    finished(0)
    finished(1)
    assert not originals.exists()  # the service has written all of it
    first, listed = by_another_program((0, 0, 0)), file.with_name("scan_0.slices.json").read_bytes()
    finished(2)
    second = by_another_program((1, 1, 1))
    finished(3)
    assert (originals / "scan_0.nii.gz").read_bytes() == first
    assert (originals / "scan_0.slices.json").read_bytes() == listed
    (other,) = originals.glob("*.scan_0.nii.gz")
    assert other.read_bytes() == second
    assert file.read_bytes() not in (first, second)


class Killed(Exception):
    """In place of a kill of the process."""


def killed(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("written", range(6))
def test_a_kill_while_labels_are_written_puts_none_of_them_aside(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch, written: int
):
    bits, _ = mask(tuple(client.get(f"/api/cases/{case}").json()["size"]), slice(0, 3), slice(0, 3))
    step(client, case, kind="accept", slice=0)
    step(client, case, kind="paint", slice=1, label=1, mask=bits)
    whole, left = Path.replace, [written]

    def replace(path: Path, target: Path) -> Path:
        if "embeddings" not in target.parts:  # those are written ahead of time, by another thread
            if not left[0]:
                raise Killed
            left[0] -= 1
        return whole(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            step(client, case, kind="accept", slice=1)
    for again in clients(cohort):
        assert listed_slices(cohort, again, case) == again.get(f"/api/cases/{case}").json()["accepted"]
        step(again, case, kind="accept", slice=1)
        step(again, case, kind="accept", slice=2)
        assert listed_slices(cohort, again, case) == [0, 1, 2]
    assert not (cohort / ".handful" / "service" / "originals").exists()


@pytest.mark.parametrize(("finished", "kind"), [([], "accept"), ([1], "reopen"), ([1, 2], "reopen")])
def test_labels_that_could_not_be_written_are_written_when_the_case_is_opened_again(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch, finished: list[int], kind: str
):
    for number in finished:
        step(client, case, kind="accept", slice=number)
    with monkeypatch.context() as patched:
        patched.setattr(annotation.Annotations, "_write_labels", killed)
        with pytest.raises(Killed):
            step(client, case, kind=kind, slice=1)
    for again in clients(cohort):
        assert listed_slices(cohort, again, case) == again.get(f"/api/cases/{case}").json()["accepted"]
        times = [file.stat().st_mtime_ns for file in (cohort / "labels").iterdir()]
        client.post(f"/api/cases/{case}/leave")
    for again in clients(cohort):
        again.get(f"/api/cases/{case}")
        assert times == [file.stat().st_mtime_ns for file in (cohort / "labels").iterdir()], "written for nothing"


def test_labels_of_another_program_are_not_replaced_when_the_case_is_opened_again(
    client: TestClient, case: str, cohort: Path
):
    step(client, case, kind="accept", slice=0)
    file, shown = cohort / "labels" / "scan_0.nii.gz", phantom(0)[0].geometry
    write_label_map(file, LabelMap(np.ones(shown.shape, np.int16), shown, Labels.of({1: "ball", 2: "box"})))
    file.with_name("scan_0.slices.json").unlink()
    before = file.read_bytes()
    for again in clients(cohort):
        assert again.get(f"/api/cases/{case}").json()["accepted"] == [0]
        assert (file.read_bytes(), list(file.parent.iterdir())) == (before, [file])


def test_a_list_of_slices_without_its_label_map_stays(client: TestClient, case: str, cohort: Path):
    (cohort / "labels").mkdir()
    file = cohort / "labels" / "scan_0.slices.json"
    file.write_text('{"axis": 2, "labelled": [1]}')
    assert client.get(f"/api/cases/{case}").status_code == 200
    assert file.is_file()


def test_a_damaged_list_of_slices_is_written_again(client: TestClient, case: str, cohort: Path):
    step(client, case, kind="accept", slice=0)
    (cohort / "labels" / "scan_0.slices.json").write_text("{}")
    step(client, case, kind="accept", slice=1)
    assert listed_slices(cohort, client, case) == [0, 1]


def test_a_kill_while_labels_are_taken_over_leaves_no_part_of_them(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    (cohort / "labels").mkdir()
    shown = phantom(1)[0].geometry
    truth = LabelMap(np.ones(shown.shape, np.int16), shown, Labels.of({1: "ball", 2: "box"}))
    write_label_map(cohort / "labels" / "scan_1.nii.gz", truth)
    other = id_of(client, "scan_1")
    with monkeypatch.context() as patched:
        patched.setattr(Session, "accept_all", killed)
        with pytest.raises(Killed):
            client.get(f"/api/cases/{other}")
    details = client.get(f"/api/cases/{other}").json()
    assert details["accepted"] == list(range(details["slices"]))
    for again in clients(cohort):
        assert again.get(f"/api/cases/{other}").json()["accepted"] == details["accepted"]


def test_where_labels_from_a_viewer_cannot_be_written_no_other_slice_counts_as_labelled(
    client: TestClient, case: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    step(client, case, kind="accept", slice=0)
    found = read_cohort(cohort)
    reference = found.cases[0].read_reference()
    assert reference is not None
    full = LabelMap(np.ones_like(reference.array), reference.geometry, reference.labels)
    annotations = annotation.Annotations(workspace.Workspace(cohort), "handful-tiny", "cpu")

    def without_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(annotation, "write_label_map", without_room)
        with pytest.raises(OSError, match="No space"):
            annotations.replace_labels(found.cases[0], full)
    assert listed_slices(cohort, client, case) == [0]
    annotations.replace_labels(found.cases[0], full)
    now = read_cohort(cohort).cases[0].read_reference()
    assert now is not None
    assert (now.array == 1).all()


def test_a_new_segmentation_is_proposed_when_an_open_case_is_opened_again(client: TestClient, case: str, cohort: Path):
    bits, _ = mask(tuple(client.get(f"/api/cases/{case}").json()["size"]), slice(0, 2), slice(0, 2))
    step(client, case, kind="paint", slice=1, label=1, mask=bits)
    step(client, case, kind="accept", slice=1)
    folder = cohort / ".handful" / "service" / "predictions"
    folder.mkdir()
    shape = phantom(0)[0].geometry
    everywhere = LabelMap(np.full(shape.shape, 2, np.int16), shape, Labels.of({1: "ball", 2: "box"}))
    write_label_map(folder / "scan_0.nii.gz", everywhere)

    def classes(number: int) -> set[int]:
        return set(client.get(f"/api/cases/{case}/slices/{number}/classes").content)

    client.post(f"/api/cases/{case}/stay")
    assert classes(2) == {0}  # not while somebody is at it
    assert client.get(f"/api/cases/{case}").json()["proposed"]
    assert classes(2) == {2}
    assert classes(1) == {0, 1}
    step(client, case, kind="undo", slice=2)
    assert not client.get(f"/api/cases/{case}").json()["proposed"]
    assert classes(2) == {0}  # proposed once only
    write_label_map(folder / "scan_1.nii.gz", everywhere)
    assert not client.get(f"/api/cases/{id_of(client, 'scan_1')}").json()["proposed"]  # it replaces nothing


def test_a_case_has_its_segmentation_while_the_accepted_one_is_being_written(cohort: Path):
    space = workspace.Workspace(cohort)
    found = space.cohort().cases[0]
    for file in (space.predictions / "scan_0.nii.gz", space.accepted / workspace.id_of(found) / ".0123456789ab.tmp.a"):
        file.parent.mkdir(parents=True)
        file.touch()
    assert space.result(found) == space.predictions / "scan_0.nii.gz"


def test_the_cohort_is_read_again_only_when_a_file_has_changed(
    client: TestClient, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    reads: list[Path] = []
    monkeypatch.setattr(workspace, "read_cohort", lambda folder: (reads.append(folder), read_cohort(folder))[1])
    for _ in range(2):
        assert len(client.get("/api/state").json()["cases"]) == 3
    (cohort / "images" / "scan_2.nii.gz").unlink()
    for _ in range(2):
        assert len(client.get("/api/state").json()["cases"]) == 2
    assert len(reads) == 2


def test_the_cases_are_listed_while_a_temporary_file_vanishes(
    client: TestClient, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary, lstat = cohort / "images" / ".0123456789ab.tmp.scan_0.nii.gz", Path.lstat
    temporary.touch()

    def late(self: Path) -> os.stat_result:
        if self == temporary:  # it is gone between the listing of its folder and this call
            temporary.unlink(missing_ok=True)
        return lstat(self)

    monkeypatch.setattr(Path, "lstat", late)
    answer = client.get("/api/state")
    assert (answer.status_code, len(answer.json()["cases"])) == (200, 3)
    assert not temporary.exists()


def test_the_cases_are_listed_while_a_folder_vanishes(
    client: TestClient, cohort: Path, monkeypatch: pytest.MonkeyPatch
):
    series, scandir = cohort / "images" / "series", os.scandir
    series.mkdir()

    def late(path: Any = ".") -> Any:
        if str(path) == str(series) and series.is_dir():  # it is gone between the listing of its folder and its own
            series.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    answer = client.get("/api/state")
    assert (answer.status_code, len(answer.json()["cases"])) == (200, 3)
    assert not series.exists()


def test_a_path_that_cannot_be_looked_up_is_a_file_that_is_not_there(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / ("x" * 300), tmp_path / "file" / "below"):
        assert workspace._state_of([path]) == frozenset()


def test_a_case_in_use_is_refused_to_others_until_it_is_left(client: TestClient, case: str):
    assert client.get(f"/api/cases/{case}").status_code == 200
    other = {"x-annotator": "two"}
    answer = client.get(f"/api/cases/{case}", headers=other)
    assert answer.status_code == 423
    entries = client.get("/api/state", headers=other).json()["cases"]
    assert [entry["in_use"] for entry in entries] == [True, False, False]
    client.post(f"/api/cases/{case}/leave")
    assert client.get(f"/api/cases/{case}", headers=other).status_code == 200


def test_undo_takes_back_no_step_of_another_annotator(client: TestClient, case: str):
    step(client, case, kind="accept", slice=1)
    client.post(f"/api/cases/{case}/leave")
    step(client, case, kind="undo")
    step(client, case, kind="redo")
    client.post(f"/api/cases/{case}/leave")
    client.headers["x-annotator"] = "two"
    meta, _ = step(client, case, kind="undo")
    assert meta == {"changed": [], "accepted": [1], "prompted": []}


def test_a_finished_slice_is_named_as_on_the_page(client: TestClient, case: str):
    step(client, case, kind="accept", slice=1)
    answer = client.post(f"/api/cases/{case}/actions", json={"kind": "clear", "slice": 1, "label": 1})
    assert answer.json()["error"] == "slice 2 is finished; press “Slice is not finished” to change it"


def test_a_case_names_the_backbone_that_it_was_annotated_with(client: TestClient, case: str, cohort: Path):
    step(client, case, kind="accept", slice=1)
    config = ServiceConfig(cohort=cohort, backbone="handful-small", access=Access(host="127.0.0.1"))
    with TestClient(create_app(config), base_url="http://127.0.0.1:8765") as other:
        answer = other.get(f"/api/cases/{case}")
    assert answer.status_code == 400
    assert "with the backbone handful-tiny; start handful serve with --backbone handful-tiny" in answer.json()["error"]


def test_a_case_in_use_stays_its_annotators_however_many_others_are_opened(
    client: TestClient, case: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(annotation, "OPEN_CASES", 1)
    bits, inside = mask(tuple(client.get(f"/api/cases/{case}").json()["size"]), slice(0, 2), slice(0, 2))
    for name in ("scan_1", "scan_2"):
        assert client.get(f"/api/cases/{id_of(client, name)}", headers={"x-annotator": name}).status_code == 200
    assert client.get(f"/api/cases/{case}", headers={"x-annotator": "scan_1"}).status_code == 423
    _, classes = step(client, case, kind="paint", slice=1, label=1, mask=bits)
    assert np.array_equal(classes.reshape(inside.shape) == 1, inside)


def test_a_scan_that_takes_long_to_read_keeps_nobody_else_waiting(
    client: TestClient, case: str, monkeypatch: pytest.MonkeyPatch
):
    reading, go_on = threading.Event(), threading.Event()
    read_image = Case.read_image

    def slowly(self: Case) -> Volume:
        if self.name == "scan_0":
            reading.set()
            assert go_on.wait(600)
        return read_image(self)

    monkeypatch.setattr(Case, "read_image", slowly)
    with ThreadPoolExecutor(2) as pool:
        opening = [pool.submit(client.get, f"/api/cases/{case}") for _ in range(2)]
        try:
            assert reading.wait(600)
            other = id_of(client, "scan_1")
            size = client.get(f"/api/cases/{other}").json()["size"]
            meta, _ = step(client, other, kind="paint", slice=2, label=1, mask=mask(size, slice(1, 3), slice(1, 3))[0])
            assert meta["prompted"] == [2]
            second = {"x-annotator": "two"}
            assert client.get(f"/api/cases/{case}", headers=second).status_code == 423
            listed = client.get("/api/state", headers=second).json()["cases"]
            assert next(one["in_use"] for one in listed if one["id"] == case)
            assert not any(one.done() for one in opening)
        finally:
            go_on.set()
        assert [one.result().status_code for one in opening] == [200, 200]


def test_a_scan_that_could_not_be_opened_can_be_opened_later(
    client: TestClient, case: str, monkeypatch: pytest.MonkeyPatch
):
    def refused(self: Case) -> Volume:
        raise DamagedFile("scan_0: cut off")

    with monkeypatch.context() as broken:
        broken.setattr(Case, "read_image", refused)
        assert client.get(f"/api/cases/{case}").status_code == 400
    assert client.get(f"/api/cases/{case}", headers={"x-annotator": "two"}).status_code == 200


def test_the_time_of_a_method_is_estimated_before_it_learns(client: TestClient, case: str):
    size = client.get(f"/api/cases/{case}").json()["size"]
    step(client, case, kind="paint", slice=3, label=1, mask=mask(size, slice(4, 12), slice(4, 12))[0])
    step(client, case, kind="accept", slice=3)
    answer = client.post("/api/cost", json={"method": "fate"})
    assert answer.status_code == 200, answer.text
    assert "1 slice to encode" in answer.json()["cost"]
    assert client.post("/api/cost", json={"method": "magic"}).status_code == 400


def test_names_of_labels_can_be_added_and_the_work_is_kept(client: TestClient, case: str):
    _, before = step(client, case, kind="box", slice=1, label=1, box=[2.0, 2.0, 12.0, 12.0])
    assert client.put("/api/labels", json={"names": ["ball", "box", "ring"]}).status_code == 200
    assert [one["name"] for one in client.get("/api/state").json()["labels"]] == ["ball", "box", "ring"]
    for again in clients(Path(client.app.state.cohort)):  # type: ignore[attr-defined]
        found = np.frombuffer(again.get(f"/api/cases/{case}/slices/1/classes").content, np.uint8)
        assert np.array_equal(found, before)
    sent, inside = mask(tuple(client.get(f"/api/cases/{case}").json()["size"]), slice(0, 2), slice(0, 2))
    _, after = step(client, case, kind="paint", slice=1, label=3, mask=sent)  # in the case that was open all the time
    assert np.array_equal(after, np.where(inside.ravel(), 3, before))
    for names, part in (
        (["ball"], "is in use already"),
        (["ball", "box", "Ball"], "name of its own"),
        (["ball", "box", "ignore"], "meaning of its own"),
        ([], "name of its own"),
    ):
        answer = client.put("/api/labels", json={"names": names})
        assert answer.status_code == 400
        assert part in answer.json()["error"]


@pytest.mark.parametrize(
    ("stated", "values", "ignore"),
    [
        ({"background": 0, "ball": 1, "ignore": 2}, (1, 3, 4), 2),
        ({"0": "background", "1": "ball"}, (1, 2, 3), None),
        ({"1": "ball", "2": "background"}, (1, 3, 4), 0),
        ({"0": "background", "1": "ball", "3": "box"}, (1, 3, 4), None),
    ],
)
def test_no_label_gets_the_value_of_unlabelled_voxels_or_of_background(
    client: TestClient, cohort: Path, stated: dict[str, Any], values: tuple[int, ...], ignore: int | None
):
    (cohort / "dataset.json").write_text(json.dumps({"labels": stated}))
    answer = client.put("/api/labels", json={"names": ["ball", "box", "ring"]})
    assert answer.json()["labels"] == dict(zip(map(str, values), ("ball", "box", "ring"), strict=True))
    step(client, id_of(client, "scan_0"), kind="accept", slice=2)
    found = read_cohort(cohort)
    assert found.labels is not None
    assert (found.labels.values, found.cases[0].ignore) == (values, ignore)
    reference = found.cases[0].read_reference()
    assert reference is not None
    known = reference.array[reference.array != IGNORE]
    assert (known.size, set(known)) == (reference.array.size // 6, {0})  # one of six slices, all background
    assert client.get(f"/api/cases/{id_of(client, 'scan_0')}/overlay.png").status_code == 200


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ({"kind": "box", "slice": 1, "label": 1}, 400),
        ({"kind": "click", "slice": 99, "label": 1, "points": [[1, 1]]}, 400),
        ({"kind": "click", "slice": 1, "label": 9, "points": [[1, 1]]}, 400),
        ({"kind": "click", "slice": 1, "label": 1, "points": [[1e9, 1]]}, 400),
        ({"kind": "click", "slice": 1, "label": 1, "points": []}, 400),
        ({"kind": "paint", "slice": 1, "label": 1, "mask": "AAAA"}, 400),
        ({"kind": "paint", "slice": 1, "label": 1, "mask": "%%%"}, 400),
        ({"kind": "propagate"}, 400),
        ({"kind": "erase everything"}, 422),
        ({"kind": "box", "slice": -1}, 422),
    ],
)
def test_a_step_that_cannot_be_is_refused(client: TestClient, case: str, action: dict[str, object], status: int):
    answer = client.post(f"/api/cases/{case}/actions", json=action)
    assert answer.status_code == status
    assert client.get(f"/api/cases/{case}").json()["prompted"] == []


def test_files_that_are_not_read_are_listed(client: TestClient, cohort: Path):
    assert client.get("/api/state").json()["left_out"] == []
    (cohort / "images" / "brain.mgz").write_bytes(b"x")
    (listed,) = client.get("/api/state").json()["left_out"]
    assert listed["file"] == "images/brain.mgz"
    assert ".nii.gz" in listed["reason"]


def test_an_unknown_case_is_not_found(client: TestClient, case: str):
    for path in ("", "/slices/0", "/thumbnail.png", "/overlay.png", "/image.nii.gz"):
        assert client.get(f"/api/cases/0123456789abcdef{path}").status_code == 404


def test_with_learning_slices_finished_at_the_same_time_both_teach(cohort: Path):
    (cohort / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1}}))
    annotations = annotation.Annotations(workspace.Workspace(cohort), "handful-tiny", "cpu", learning=True)
    one, other = (annotations.open(workspace.id_of(case), "one") for case in annotations.workspace.cohort().cases[:2])
    for case in (one, other):
        annotations.act(case, lambda session: [session.click(2, "ball", (10, 10)).number], may_teach=False)
    nothing, known = one.session.learner.packed(), []

    def second(session: Session) -> list[int]:
        known.append(session.learner.packed())
        session.accept(2)
        return [2]

    thread = threading.Thread(target=annotations.act, args=(other, second))

    def first(session: Session) -> list[int]:
        thread.start()
        while thread.is_alive() and not other.working:  # it has not begun
            thread.join(0.01)
        thread.join(1)  # it waits for this step
        session.accept(2)
        return [2]

    annotations.act(one, first)
    thread.join()
    assert known == [one.session.learner.packed()]
    assert known != [nothing]
    annotations.close()


def test_with_learning_a_finished_slice_teaches_all_cases_also_after_a_restart(cohort: Path):
    (cohort / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1}}))

    def learned(annotations: annotation.Annotations, number: int) -> bytes:
        learner = opened(annotations, number).session.learner
        assert learner is not None
        return learner.packed()

    def opened(annotations: annotation.Annotations, number: int) -> annotation.OpenCase:
        return annotations.open(workspace.id_of(annotations.workspace.cohort().cases[number]), "one")

    first = annotation.Annotations(workspace.Workspace(cohort), "handful-tiny", "cpu", learning=True)
    case, nothing = opened(first, 0), learned(first, 1)
    first.act(case, lambda session: [session.click(2, "ball", (10, 10)).number])
    assert learned(first, 0) == nothing
    first.act(case, lambda session: session.accept(2) or [2])
    last = learned(first, 0)
    assert learned(first, 2) == last != nothing
    other = opened(first, 1)  # open since before
    first.act(other, lambda session: session.undo())
    assert learned(first, 1) == last
    first.act(other, lambda session: [session.click(3, "ball", (12, 12)).number])
    first.act(other, lambda session: session.accept(3) or [3])
    last, before = learned(first, 1), last
    assert last != before
    first.act(case, lambda session: [session.click(4, "ball", (9, 9)).number])
    first.act(case, lambda session: session.undo())  # takes back a click, and nothing that was learned
    assert learned(first, 0) == last
    first.close()
    again = annotation.Annotations(workspace.Workspace(cohort), "handful-tiny", "cpu", learning=True)
    assert learned(again, 1) == last
    again.act(opened(again, 0), lambda session: [session.click(1, "ball", (9, 9)).number])
    again.act(opened(again, 0), lambda session: session.accept(1) or [1])
    newest = learned(again, 0)
    again.act(opened(again, 1), lambda session: session.undo())  # the steps before the restart stay
    assert opened(again, 1).session.accepted == (3,)
    assert learned(again, 2) == newest != last
    again.close()
