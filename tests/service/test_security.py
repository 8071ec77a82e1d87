"""Who is answered: host names, origins, tokens, sizes; and what an upload may be."""

from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from handful.errors import InputError
from handful.service.security import cookie_name, token_digest
from handful.service.uploads import safe_name
from service.conftest import clients


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""])
def test_other_host_names_are_refused(client: TestClient, host: str):
    assert client.get("/api/state", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str):
    assert client.get("/api/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1:8765.evil.example", "http://127.0.0.1:1"])
def test_pages_of_other_sites_are_refused(client: TestClient, origin: str):
    answer = client.put("/api/labels", json={"names": ["a"]}, headers={"origin": origin})
    assert answer.status_code == 403
    assert client.get("/api/state").json()["labels"] == []


def test_pages_without_an_origin_change_nothing(client: TestClient):
    assert client.put("/api/labels", json={"names": ["a"]}, headers={"origin": "null"}).status_code == 403


def test_the_own_page_and_an_allowed_viewer_are_answered(cohort: Path):
    for client in clients(cohort, origins=("http://localhost:3000",)):
        for origin in ("http://127.0.0.1:8765", "http://localhost:3000"):
            answer = client.get("/api/state", headers={"origin": origin})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin


def test_a_browser_lets_the_page_of_an_allowed_viewer_call(cohort: Path):
    viewer = "http://localhost:3000"
    wanted = {
        "origin": viewer,
        "access-control-request-method": "PUT",
        "access-control-request-headers": "content-type",
    }
    for client in clients(cohort, origins=(viewer,), token="right"):
        answer = client.options("/datastore/label", headers=wanted)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == viewer
        assert "PUT" in answer.headers["access-control-allow-methods"]
        assert "content-type" in answer.headers["access-control-allow-headers"]
        assert client.options("/train/", headers=wanted | {"origin": "http://evil.example"}).status_code == 403


def test_without_the_token_nothing_is_answered(cohort: Path):
    for client in clients(cohort, token="right"):
        for path in ("/", "/app.js", "/api/state", "/api/job"):
            assert client.get(path).status_code == 401
        assert client.get("/api/state", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/api/state", headers={"authorization": "Bearer right"}).status_code == 200
        assert client.get("/?token=right").url.query == b""
        assert "right" not in client.cookies[cookie_name(token_digest(b"right"))]
        assert client.get("/api/state").status_code == 200


@pytest.mark.parametrize("token", ["a/b+c=", '50%;",', "é ü"])
def test_a_token_may_have_any_character(cohort: Path, token: str):
    for client in clients(cohort, token=token):
        assert client.get("/?token=" + quote(token[:-1], safe="")).status_code == 401
        assert client.get("/?token=" + quote(token, safe="")).status_code == 200
        (value,) = client.cookies.values()
        assert client.get("/api/state").status_code == 200
        client.cookies.clear()
        assert client.get("/api/state", headers={"authorization": f"Bearer {value}"}).status_code == 401
        bearer = {"authorization": b"Bearer " + token.encode()}
        assert client.get("/api/state", headers=bearer).status_code == 200


def test_a_body_that_is_too_large_is_refused(cohort: Path):
    for client in clients(cohort, max_bytes=1000):
        answer = client.post("/api/cases", files={"file": ("a.nii.gz", bytes(5000))})
        assert answer.status_code == 413
        parts = [b"--x\r\nContent-Disposition: form-data; name=file; filename=a.nii\r\n\r\n", *[bytes(500)] * 9]
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert client.post("/api/cases", content=iter(parts), headers=headers).status_code == 413
    assert len(list((cohort / "images").iterdir())) == 3


def test_answers_are_bound_to_this_site(client: TestClient):
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fapp.py", "/static/../app.py"]
)
def test_no_file_outside_the_page_can_be_read(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_a_scan_is_added_under_its_own_name(client: TestClient, cohort: Path):
    content = (cohort / "images" / "scan_0.nii.gz").read_bytes()
    answer = client.post("/api/cases", files={"file": ("C:\\Users\\me\\new.nii.gz", content)})
    assert answer.status_code == 200
    assert (cohort / "images" / "new.nii.gz").read_bytes() == content
    again = client.post("/api/cases", files={"file": ("new.nii.gz", content)})
    assert again.status_code == 400
    assert "is there already" in again.json()["error"]


def test_what_is_no_scan_is_not_kept(client: TestClient, cohort: Path):
    for name, content in (("a.nii.gz", b"nothing"), ("b.exe", b"MZ"), ("c.nii", bytes(400))):
        assert client.post("/api/cases", files={"file": (name, content)}).status_code == 400
    assert sorted(path.name for path in (cohort / "images").iterdir()) == [f"scan_{n}.nii.gz" for n in range(3)]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden.nii.gz", "a\x1b[2J.nii.gz", "a?b.nii.gz", "x" * 240 + ".nii.gz", "a.mhd"]
)
def test_names_that_are_no_plain_file_names_are_refused(name: str):
    with pytest.raises(InputError):
        safe_name(name)


@pytest.mark.parametrize(
    ("given", "kept"), [("/a/b/c.nrrd", "c.nrrd"), ("..\\..\\x.png", "x.png"), ("Mu\u0308ller.nii", "M\u00fcller.nii")]
)
def test_of_a_path_the_last_part_is_kept(given: str, kept: str):
    assert safe_name(given) == kept
