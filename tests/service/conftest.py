"""A small cohort folder, and a client of the service that works on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from handful.data.files import write_volume
from handful.service.app import ServiceConfig, create_app
from handful.service.security import Access
from phantoms import phantom


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three scans, nothing labelled."""
    folder = tmp_path / "cohort"
    (folder / "images").mkdir(parents=True)
    for seed in range(3):
        write_volume(folder / "images" / f"scan_{seed}.nii.gz", phantom(seed)[0])
    return folder


@pytest.fixture
def client(cohort: Path) -> Iterator[TestClient]:
    yield from clients(cohort)


def clients(cohort: Path, **access: object) -> Iterator[TestClient]:
    config = ServiceConfig(cohort=cohort, access=Access(host="127.0.0.1", **access))  # type: ignore[arg-type]
    with TestClient(create_app(config), base_url="http://127.0.0.1:8765", headers={"x-annotator": "one"}) as client:
        yield client
