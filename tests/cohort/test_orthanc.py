"""A real archive: 20 series of an Orthanc are segmented and stored, although it is killed half-way."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dicom_series as made
import orthanc
from handful.cohort.archive import predict_archive
from handful.cohort.predict import PredictConfig, predict_file
from handful.data.dicom.web import TOKEN, Archive
from handful.data.files import read_label_map
from handful.errors import ArchiveError
from phantoms import LABELS, phantom

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing() or "installed"),
]
COUNT, KILLED_AFTER = 20, 8
UIDS = tuple(f"1.2.40.{number}" for number in range(10, 10 + COUNT))


def scan(number: int) -> list[Any]:
    images = made.of_volume(phantom(number)[0], series=UIDS[number], StudyInstanceUID=f"{UIDS[number]}.9")
    return [made.compressed(image, "jpeg 2000") for image in images[6:13]] if number == 3 else images[6:13]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[orthanc.Orthanc]:
    credentials = base64.b64encode(f"{orthanc.USER}:{orthanc.PASSWORD}".encode()).decode()
    monkeypatch.setenv(TOKEN, f"Basic {credentials}")
    folder = tmp_path / "orthanc"
    folder.mkdir()
    archive = orthanc.Orthanc(folder)
    archive.start()
    for number in range(COUNT):
        archive.client.store_instances(scan(number))
    try:
        yield archive
    finally:
        archive.kill()


def test_twenty_series_are_segmented_and_stored_through_a_kill(
    model: Path, archive: orthanc.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def report(step: int, total: int, note: str) -> None:
        if step == KILLED_AFTER:
            archive.kill()

    address, out = f"dicomweb:{archive.url}?Modality=CT&StudyDate=20260101-20260131", tmp_path / "out"
    config = PredictConfig(device="cpu")
    first = predict_archive(model, address, out, config, report, waits=(0.01, 0.01))
    assert first.done == UIDS[:KILLED_AFTER]
    assert [failure.case for failure in first.failures] == list(UIDS[KILLED_AFTER:])
    assert all("no connection" in failure.reason for failure in first.failures)

    archive.start()
    again = predict_archive(model, address, out, config)
    assert (again.done, again.skipped, again.failures) == (UIDS[KILLED_AFTER:], UIDS[:KILLED_AFTER], ())
    third = predict_archive(model, address, out, config)
    assert (third.done, third.skipped) == ((), UIDS)

    found = archive.client.search_for_series(search_filters={"Modality": "SEG"})
    studies = sorted(entry["0020000D"]["Value"][0] for entry in found)
    assert studies == sorted(f"{uid}.9" for uid in UIDS)
    for number in (3, 17):
        folder = made.write(tmp_path / f"scan-{number}", scan(number))
        predict_file(model, folder, tmp_path / f"{number}.nii.gz", config)
        truth = read_label_map(tmp_path / f"{number}.nii.gz", LABELS)
        (entry,) = archive.client.search_for_series(f"{UIDS[number]}.9", search_filters={"Modality": "SEG"})
        (stored,) = archive.client.retrieve_series(f"{UIDS[number]}.9", entry["0020000E"]["Value"][0])
        stored.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        again_read = read_label_map(tmp_path / f"{number}.dcm", LABELS, grid=truth.geometry)
        np.testing.assert_array_equal(again_read.array, truth.array)
        assert truth.array.any()

    monkeypatch.setenv(TOKEN, "Basic d3Jvbmc6d3Jvbmc=")
    with pytest.raises(ArchiveError, match=f"HTTP 401.*{TOKEN}"):
        predict_archive(model, address, out, config)


def test_a_series_that_was_removed_is_not_found(archive: orthanc.Orthanc, tmp_path: Path):
    credentials = base64.b64encode(f"{orthanc.USER}:{orthanc.PASSWORD}".encode()).decode()
    web = Archive(archive.url, f"Basic {credentials}", waits=())
    series = web.search({"Modality": "CT"})[0]
    instances = web.instances(series)
    identity = archive.session.post(f"http://127.0.0.1:{archive.port}/tools/lookup", data=series.uid).json()[0]["ID"]
    archive.session.delete(f"http://127.0.0.1:{archive.port}/series/{identity}").raise_for_status()
    with pytest.raises(ArchiveError):
        web.instances(series)
    with pytest.raises(ArchiveError, match="not found"):
        web.fetch(series, instances, tmp_path / "incoming")
