"""Series in a DICOMweb archive: segmented, stored, resumed; each wrong answer is a clear failure of its series."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dicom_series as made
from dicomweb_server import BOUNDARY, Answer, Server, serving
from handful.cohort.archive import predict_archive
from handful.cohort.predict import CohortResult, PredictConfig, predict_file
from handful.data.dicom.web import TOKEN, Archive, parse_query
from handful.data.files import read_label_map
from handful.errors import ArchiveError, InputError, SettingsError
from phantoms import LABELS, phantom

TOKEN_VALUE = "token-7731-secret"
UIDS = ("1.2.40.1", "1.2.40.2", "1.2.40.3")


def scan(number: int, uid: str) -> list[Any]:
    """Some slices of a phantom as a DICOM series, in a study of its own."""
    images = made.of_volume(phantom(number)[0], series=uid, StudyInstanceUID=f"{uid}.9")
    return images[8:13]


@pytest.fixture(scope="module")
def scans() -> list[Any]:
    return [image for number, uid in enumerate(UIDS) for image in scan(number, uid)]


@pytest.fixture
def server(scans: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(TOKEN, TOKEN_VALUE)
    with serving(scans) as server:
        yield server


def run(model: str | Path, server: Server, out: str | Path, query: str = "Modality=CT", **options: Any) -> CohortResult:
    options = {"waits": (0.0, 0.0)} | options
    return predict_archive(model, server.address(query), out, PredictConfig(device="cpu"), **options)


def segmentations(server: Server) -> list[Any]:
    return [one for one in server.images if one.Modality == "SEG"]


def test_each_series_is_segmented_and_stored_once(model: Path, server: Server, tmp_path: Path):
    result = run(model, server, tmp_path / "out")
    assert (result.done, result.failures) == (UIDS, ())
    stored = segmentations(server)
    assert [one.ReferencedSeriesSequence[0].SeriesInstanceUID for one in stored] == list(UIDS)
    assert [one.StudyInstanceUID for one in stored] == [f"{uid}.9" for uid in UIDS]
    folder = made.write(tmp_path / "scan", [one for one in server.images if one.SeriesInstanceUID == UIDS[1]])
    predict_file(model, folder, tmp_path / "truth.nii.gz", PredictConfig(device="cpu"))
    truth = read_label_map(tmp_path / "truth.nii.gz", LABELS)
    found = read_label_map(tmp_path / "out" / f"{UIDS[1]}.dcm", LABELS, grid=truth.geometry)
    np.testing.assert_array_equal(found.array, truth.array)
    assert truth.array.any()
    assert server.authorizations == {f"Bearer {TOKEN_VALUE}"}

    again = run(str(model), server, str(tmp_path / "out"))
    assert (again.done, again.skipped) == ((), UIDS)
    assert len(segmentations(server)) == 3
    assert server.count(r"GET .*/1.2.40.1$") == 1


def test_nothing_of_the_patient_or_the_token_is_kept_or_logged(
    model: Path, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.DEBUG)
    server.faults = {SERIES: [(500, "text/html", f"{made.NAME}".encode())] * 9}
    result = run(model, server, tmp_path / "out", f"PatientID={made.IDENTITY}")
    secrets = (made.NAME, made.IDENTITY, TOKEN_VALUE)
    assert len(result.failures) == 1
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err, *(one.reason for one in result.failures)):
        assert not any(secret in text for secret in secrets)
    for path in (one for one in (tmp_path / "out").rglob("*") if one.is_file() and one.suffix != ".dcm"):
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
    assert not (tmp_path / "out" / ".handful" / "archive" / "incoming").exists()
    assert TOKEN_VALUE.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.dcm"))


def cut(_: Server, answer: Answer) -> Answer:
    """The answer without its last third, and with a length that agrees."""
    return answer[0], answer[1], answer[2][: len(answer[2]) * 2 // 3]


def without_a_part(_: Server, answer: Answer) -> Answer:
    start = answer[2].rindex(b"--boundary-of-parts\r\n")
    return answer[0], answer[1], answer[2][:start] + b"--boundary-of-parts--"


def lost(server: Server, _: Answer) -> Answer:
    """The segmentation is not kept, although the answer says nothing of a failure."""
    server.images.pop()
    return JSON, "application/json", b"{}"


REASON = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}'


def refused(server: Server, _: Answer) -> Answer:
    server.images.pop()
    return JSON, "application/json", REASON


def in_conflict(server: Server, _: Answer) -> Answer:
    server.images.pop()
    return 409, "text/plain", b""


JSON = 200
SERIES, LIST, STORE = "GET .*series/1.2.40.2$", "series/1.2.40.2/instances", "POST"
PASSING = 3
"""Attempts of `run`."""


@pytest.mark.parametrize(
    ("pattern", "fault", "cause", "attempts"),
    [
        (SERIES, (401, "text/plain", b""), f"access refused (HTTP 401); put a valid token into {TOKEN}", 1),
        (SERIES, (404, "text/plain", b""), "not found (HTTP 404)", 1),
        (SERIES, (500, "text/plain", b""), "in 3 attempts: the server fails or is busy (HTTP 500)", PASSING),
        (SERIES, (200, "text/html", b"<html>"), "not what DICOMweb defines (ValueError)", PASSING),
        (SERIES, cut, "failed in 3 attempts", PASSING),
        (SERIES, without_a_part, "images did not arrive", PASSING),
        (LIST, (200, "text/html", b"<html>Log in"), "the answer is not DICOM JSON", 1),
        (LIST, (200, "application/json", b"[]"), "lists no image of this series", 1),
        (LIST, (200, "application/json", b'["x"]'), "an entry without a valid UID", 1),
        (STORE, in_conflict, "storing the segmentation", 1),
        (STORE, lost, "no image of this series", 1),
        (STORE, refused, "refuses to store the segmentation (reason A700H)", 1),
    ],
)
def test_a_wrong_answer_is_a_failure_of_its_series_only(
    pattern: str, fault: Any, cause: str, attempts: int, model: Path, server: Server, tmp_path: Path
):
    first_is_right = [None] if pattern == STORE else []
    server.faults = {pattern: [*first_is_right, *[fault] * attempts]}
    result = run(model, server, tmp_path / "out")
    (failure,) = result.failures
    assert failure.case == UIDS[1]
    assert cause in failure.reason
    assert result.done == (UIDS[0], UIDS[2])
    assert json.loads((tmp_path / "out" / "failures.json").read_text())[0]["case"] == UIDS[1]
    again = run(model, server, tmp_path / "out")
    assert again.failures == ()
    assert sorted(again.done + again.skipped) == sorted(UIDS)
    assert len({one.SOPInstanceUID for one in segmentations(server)}) == 3
    fetches = 1 if pattern != SERIES else attempts + 1
    assert server.count(SERIES) == fetches, "what was computed is not computed again"


def test_an_answer_that_is_too_large_is_not_read_to_its_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive = Archive(server.url, waits=(60.0,))
    series = archive.search({"Modality": "CT"})[1]
    listed = archive.instances(series)
    monkeypatch.setattr("handful.data.dicom.web.MAX_BYTES", 2_000_000)
    monkeypatch.setattr("handful.data.dicom.web._MAX_LIST", 2_000_000)
    body = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
    bomb = b"--" + BOUNDARY + b"\r\n\r\n" + bytes(3_000_000)  # one image, without an end
    server.faults = {SERIES: [(200, body, bomb)], LIST: [(200, "application/dicom+json", b" " * 3_000_000 + b"[]")]}
    for read in (lambda: archive.fetch(series, listed, tmp_path / "scan"), lambda: archive.instances(series)):
        with pytest.raises(ArchiveError, match="sent more than the allowed 2,000,000 bytes"):
            read()
    archive.fetch(series, listed, tmp_path / "scan")


def test_an_image_that_is_sent_twice_is_one(server: Server, tmp_path: Path):
    def twice(_: Server, answer: Answer) -> Answer:
        part = answer[2].partition(b"\r\n--boundary-of-parts")[0] + b"\r\n"
        return answer[0], answer[1], part + answer[2]

    server.faults = {SERIES: [twice]}
    archive = Archive(server.url, waits=())
    (series,) = [one for one in archive.search({"Modality": "CT"}) if one.uid == UIDS[1]]
    archive.fetch(series, archive.instances(series), tmp_path / "scan")
    assert len(list((tmp_path / "scan").iterdir())) == 5


def test_a_fault_that_passes_is_not_noticed(model: Path, server: Server, tmp_path: Path):
    server.faults = {SERIES: [(503, "text/plain", b""), cut], LIST: [(429, "text/plain", b"")], STORE: [(500, "", b"")]}
    assert run(model, server, tmp_path / "out").failures == ()


@pytest.mark.parametrize("refusal", [(409, "text/plain", b""), (JSON, "application/json", REASON)])
def test_an_archive_may_refuse_a_segmentation_that_it_has(refusal: Answer, model: Path, server: Server, tmp_path: Path):
    only = {"names": UIDS[:1]}
    server.faults = {STORE: [(503, "text/plain", b""), refusal]}  # the first answer is lost
    assert run(model, server, tmp_path / "out", **only).failures == ()
    server.faults = {STORE: [refusal]}
    assert run(model, server, tmp_path / "second", **only).failures == ()
    assert run(model, server, tmp_path / "second", **only).skipped == UIDS[:1]
    assert len({one.SOPInstanceUID for one in segmentations(server)}) == 1
    assert server.count(STORE) == 3


def test_a_fault_of_this_computer_is_not_that_of_the_archive(
    scans: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    with serving(scans) as server:
        archive = Archive(server.url, waits=(60.0,))
        series = archive.search({"Modality": "CT"})[0]
        with pytest.raises(InputError, match="the transfer of the series failed on this computer: Not a directory"):
            archive.fetch(series, archive.instances(series), tmp_path / "file" / "incoming")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match=r"the search for series failed on this computer: .*none\.pem"):
        Archive("https://127.0.0.1:1/dicom-web", waits=(60.0,)).search({"Modality": "CT"})


def test_waits_grow_and_are_left_out_while_there_is_no_connection(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr("handful.data.dicom.web.time.sleep", slept.append)
    with serving() as server:
        address = server.url
    archive = Archive(address)
    for _ in range(3):
        with pytest.raises(ArchiveError, match="no connection"):
            archive.search({"Modality": "CT"})
    assert slept == [1, 2, 4, 8, 16]


def test_lists_that_come_in_pages_are_complete(scans: list[Any]):
    with serving(scans) as server:
        server.page = 2
        archive = Archive(server.url, waits=())
        series = archive.search({"Modality": "CT"})
        assert [one.uid for one in series] == list(UIDS)
        assert len(archive.instances(series[0])) == sum(one.SeriesInstanceUID == UIDS[0] for one in scans)


def test_a_server_that_ignores_a_filter_is_not_believed(scans: list[Any]):
    with serving(scans) as server:
        archive, whole = Archive(server.url, waits=()), server._right("GET", "/dicom-web/series", {}, b"")
        for keyword, value in (("StudyInstanceUID", f"{UIDS[0]}.9"), ("PatientID", "somebody"), ("Modality", "MR")):
            server.faults = {"GET": [whole, whole]}
            with pytest.raises(ArchiveError, match=f"of another {keyword} than that of the query") as caught:
                archive.search({keyword: value})
            assert value not in str(caught.value)
        for keyword, value in (("PatientID", "some*"), ("Modality", "ct"), ("PatientName", "x"), ("Laterality", "L")):
            server.faults = {"GET": [whole, whole]}
            assert len(archive.search({keyword: value})) == len(UIDS)


@pytest.mark.parametrize("attribute", [None, "1.2.3", [], {"Value": "1.2"}, {"Value": {}}, {"Value": [None]}])
def test_lists_of_entries_that_are_no_dicom_json_are_an_error_of_the_archive(attribute: object):
    with serving() as server:
        answer = json.dumps([{"0020000E": attribute}]).encode()
        server.faults = {"GET": [(JSON, "application/json", answer)]}
        with pytest.raises(ArchiveError, match="an entry without a valid UID"):
            Archive(server.url, waits=()).search({"Modality": "CT"})


def test_a_server_that_ignores_the_offset_is_not_asked_for_ever(scans: list[Any]):
    with serving(scans) as server:
        whole = server._right("GET", "/dicom-web/series", {}, b"")
        server.faults = {"GET": [whole] * 9}
        assert len(Archive(server.url, waits=()).search({"Modality": "CT"})) == len(UIDS)
        assert len(server.requests) == 2


def test_an_interrupted_run_is_resumed(model: Path, server: Server, tmp_path: Path):
    def interrupt(step: int, total: int, note: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, server, tmp_path / "out", report=interrupt)
    again = run(model, server, tmp_path / "out")
    assert (again.done, again.skipped) == (UIDS[2:], UIDS[:2])
    assert len(segmentations(server)) == 3


def test_segmentations_stay_here_without_storing_and_are_stored_later(model: Path, server: Server, tmp_path: Path):
    run(model, server, tmp_path / "out", store=False, names=[UIDS[2], UIDS[0]])
    assert segmentations(server) == []
    result = run(model, server, tmp_path / "out")
    assert (result.done, result.skipped) == ((UIDS[1],), (UIDS[0], UIDS[2]))
    assert len(segmentations(server)) == 3
    assert run(model, server, tmp_path / "out", query="StudyInstanceUID=1.2.40.1.9").skipped == (UIDS[0],)


def test_a_search_that_fails_or_finds_nothing_ends_the_run(model: Path, server: Server, tmp_path: Path):
    with pytest.raises(InputError, match="finds no series of images"):
        run(model, server, tmp_path / "out", query="Modality=MR")
    server.faults = {"GET .*series$": [(401, "text/plain", b"")]}
    with pytest.raises(ArchiveError, match=r"the search for series.*HTTP 401"):
        run(model, server, tmp_path / "out")


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("dicomweb:ftp://host/dicom-web?Modality=CT", "not an address of DICOMweb"),
        ("dicomweb:https://?Modality=CT", "not an address of DICOMweb"),
        ("dicomweb:https://host:port/dicom-web?Modality=CT", "not an address of DICOMweb"),
        ("dicomweb:https://user:pass@host/dicom-web?Modality=CT", "a password in the address"),
        ("dicomweb:https://host/dicom-web", "names no series"),
        ("dicomweb:https://host/dicom-web?PatientID=A#1", "write %23 for a #"),
        ("dicomweb:https://host/dicom-web?PatientID=A#", "write %23 for a #"),
        ("dicomweb:https://host/dicom-web?Modalty=CT", "did you mean 'Modality'"),
        ("dicomweb:https://host/dicom-web?Modality=", "Modality in the query needs one value"),
    ],
)
def test_wrong_addresses_are_refused(address: str, cause: str):
    with pytest.raises(SettingsError, match=cause) as caught:
        parse_query(address)
    assert "pass@" not in str(caught.value)


def test_a_token_is_sent_unchanged_if_it_names_its_kind_and_never_unencrypted(scans: list[Any]):
    with serving(scans) as server:
        Archive(server.url, "Basic dXNlcjpwdw==").search({"Modality": "CT"})
        assert server.authorizations == {"Basic dXNlcjpwdw=="}
    with pytest.raises(SettingsError, match="sends it unencrypted") as caught:
        Archive("http://pacs.hospital/dicom-web", TOKEN_VALUE)
    assert TOKEN_VALUE not in str(caught.value)


def test_an_address_has_a_service_and_filters():
    query = parse_query("dicomweb:https://host:8443/a/dicom-web/?Modality=CT&StudyDate=20260101-20260131")
    assert query.url == "https://host:8443/a/dicom-web"
    assert query.filters == {"Modality": "CT", "StudyDate": "20260101-20260131"}
