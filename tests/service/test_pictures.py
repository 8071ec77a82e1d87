"""Pictures of the cases on the page."""

from pathlib import Path

from fastapi.testclient import TestClient

from handful.data.files import write_volume
from phantoms import phantom


def test_the_picture_of_a_scan_that_was_replaced_is_that_of_the_new_one(client: TestClient, cohort: Path):
    [case, *_] = (one["id"] for one in client.get("/api/state").json()["cases"] if one["name"] == "scan_0")
    address = f"/api/cases/{case}/thumbnail.png"
    first = client.get(address).content
    assert client.get(address).content == first
    (cohort / "images" / "scan_0.nii.gz").unlink()
    write_volume(cohort / "images" / "scan_0.nii.gz", phantom(7)[0])
    second = client.get(address).content
    assert second.startswith(b"\x89PNG")
    assert second != first
    assert len([*(cohort / ".handful" / "service" / "thumbnails").iterdir()]) == 1
