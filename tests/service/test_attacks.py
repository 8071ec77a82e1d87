"""Requests that nobody means well with, and a service that is killed at any moment."""

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from handful.data.files import write_volume
from handful.jobs.memory import PeakMemory
from handful.service.app import ServiceConfig, create_app
from handful.service.packed_arrays import packed
from handful.service.security import Access
from phantoms import phantom
from served import Served, painted

REQUESTS = int(os.environ.get("FUZZ", "150"))
KILLS = int(os.environ.get("KILLS", "3"))
ANNOTATORS = int(os.environ.get("ANNOTATORS", "8"))
MOST_MIB = 700
"""What odd requests may add to the memory of the process at its peak."""
ROUTES = [
    ("GET", "/api/state"),
    ("GET", "/api/cases/{id}"),
    ("GET", "/api/cases/{id}/slices/{n}"),
    ("GET", "/api/cases/{id}/slices/{n}/classes"),
    ("GET", "/api/cases/{id}/{odd}"),
    ("POST", "/api/cases/{id}/actions"),
    ("POST", "/api/cases/{id}/verdict"),
    ("POST", "/api/cases"),
    ("PUT", "/api/labels"),
    ("DELETE", "/api/job"),
    ("POST", "/api/jobs/{odd}/dismiss"),
    ("POST", "/api/jobs/{n}/dismiss"),
    ("GET", "/api/export/{odd}"),
    ("GET", "/{odd}"),
    ("GET", "/info/"),
    ("POST", "/activelearning/{odd}"),
    ("GET", "/datastore/image?image={id}"),
    ("GET", "/datastore/label?label={odd}"),
    ("PUT", "/datastore/label?image={id}"),
    ("PUT", "/datastore/?image={odd}"),
    ("PUT", "/session/"),
    ("GET", "/session/{odd}"),
    ("DELETE", "/session/{odd}"),
    ("POST", "/infer/handful-clicks?image={id}"),
    ("POST", "/infer/{odd}?image={odd}&session_id={odd}"),
    ("GET", "/batch/infer/"),
    ("POST", "/claim"),
    ("POST", "/set_image"),
    ("POST", "/set_target_buffer"),
    ("POST", "/add_point_interaction"),
    ("POST", "/add_bbox_interaction"),
    ("POST", "/add_scribble_interaction"),
    ("POST", "/add_lasso_interaction"),
    ("POST", "/add_initial_seg_interaction"),
    ("POST", "/undo"),
    ("POST", "/predict"),
    ("POST", "/{odd}_interactions"),
]
ODD = [
    "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cwin.ini", "a" * 300, "%00", "\u202e", "%ff%fe", "-1", "1e99",
    "null", "NaN", "0x10",
    "' OR 1=1", "<script>", "con", "99999999999999999999", "", "%0d%0aX-Bad: 1", "labels", "\x7f",
]  # fmt: skip
VALUES: list[object] = [
    None, True, -1, 0, 1, 2, 9e99, 2**70, "", "x" * 5000, "undo", "click", "paint", [], [[]], [[1, 1]], [["a", "b"]],
    [[1e308, -1e308]], {}, {"a": {}}, "AAAA", "%%%", [1, 2, 3, 4], [9, 9, 1, 1], "accept", "ball",
]  # fmt: skip
KEYS = [
    "kind",
    "slice",
    "label",
    "points",
    "box",
    "positive",
    "mask",
    "verdict",
    "names",
    "method",
    "ball",
    "background",
    "include_interaction",
    "run_prediction",
    "interaction_bbox",
    "coordinates",
    "bbox_coords",
    "image_properties",
    "shape",
    "dtype",
]


def body(rng: random.Random) -> dict[str, object]:
    """The content of a request."""
    kind = rng.randrange(7)
    if kind == 6:
        content = packed(np.zeros(rng.choice([(1, 24, 6, 28), (24, 6, 28), (5,)]), np.uint8))
        damaged = bytearray(content + rng.choice([b"", b"x", content]))
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        meta = json.dumps({rng.choice(KEYS): rng.choice(VALUES) for _ in range(3)})
        return {"content": bytes(damaged), "headers": {"x-meta": meta[:3000]}}
    if kind == 0:
        return {"json": {rng.choice(KEYS): rng.choice(VALUES) for _ in range(rng.randrange(5))}}
    if kind == 1:
        action = {
            "kind": rng.choice(["click", "box", "paint", "undo", "accept", "scribble"]),
            "slice": rng.choice(VALUES),
        }
        return {"json": action | {rng.choice(KEYS): rng.choice(VALUES) for _ in range(3)}}
    if kind == 2:
        return {"content": rng.randbytes(rng.randrange(200)), "headers": {"content-type": "application/json"}}
    if kind == 3:
        return {"content": b"[" * 20_000, "headers": {"content-type": "application/json"}}
    if kind == 4:
        name = rng.choice(["../../x.nii.gz", "a.nii.gz", "b.png", "", "con", "x\x1b[2J.nii", "a" * 400])
        fields = {
            "params": rng.choice(["{}", "[]", "{", '{"ball": [[1,1,1]]}', "[" * 5000, '{"result_extension": ".exe"}'])
        }
        return {"files": {rng.choice(["file", "label", "files", "x"]): (name, rng.randbytes(300))}, "data": fields}
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return {"content": b"--x\r\nContent-Disposition: form-data; name=" + rng.randbytes(50), "headers": headers}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_no_odd_request_ends_in_an_error_of_the_server_or_leaves_the_folder(cohort: Path, tmp_path: Path):
    before, rng = tree(tmp_path), random.Random(0)
    memory = PeakMemory(torch.device("cpu"))  # the peak from here on, whatever tests before this one have taken
    mib = memory.mib()
    allowed = (501, 503)  # what MONAI Label's protocol has for parts that are not offered, nnInteractive's for no room
    config = ServiceConfig(cohort=cohort, access=Access(host="127.0.0.1"))
    with TestClient(create_app(config), base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        client.put("/api/labels", json={"names": ["ball", "egg"]})
        ids = [case["id"] for case in client.get("/api/state").json()["cases"]]
        leases = {"x-lease-token": client.post("/claim").json()["lease_token"]}
        for number in range(REQUESTS):
            method, path = rng.choice(ROUTES)
            filled = path.format(
                id=rng.choice([*ids, rng.choice(ODD)]), n=rng.choice([0, 3, "x", 99, -1]), odd=rng.choice(ODD)
            )
            try:
                sent = client.build_request(method, filled, **body(rng) if method != "GET" else {})  # type: ignore[arg-type]
            except Exception:  # the client itself refuses to send it
                continue
            if rng.random() < 0.9:
                sent.headers.update(leases)
            answer = client.send(sent)
            assert answer.status_code < 500 or answer.status_code in allowed, (
                f"{number}: {method} {filled} {answer.text}"
            )
            assert b"root:" not in answer.content
    assert memory.mib() - mib < MOST_MIB
    outside = {path for path in tree(tmp_path) - before if not path.startswith("cohort/")}
    assert outside == set()
    added = {path for path in tree(cohort) if not path.startswith((".handful", "images/scan_"))}
    assert added <= {"images", "labels", "dataset.json", *(path for path in added if path.startswith("labels/scan_"))}


@pytest.fixture
def served(cohort: Path) -> Iterator[Served]:
    server = Served(cohort)
    yield server
    server.kill()


def kill_later(process: int, seconds: float) -> subprocess.Popen[bytes]:
    """A process of its own that kills the given one after some time."""
    code = f"import os, time; time.sleep({seconds}); os.kill({process}, 9)"
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.process
def test_what_was_answered_is_there_after_a_kill_at_any_moment(served: Served):
    served.call("api/labels", {"names": ["ball", "egg"]}, "PUT")
    case = json.loads(served.call("api/state"))["cases"][0]["id"]
    rng, answered = random.Random(1), dict[int, bytes]()
    for _ in range(KILLS):
        details = json.loads(served.call(f"api/cases/{case}"))
        height, width = details["size"]
        killer: subprocess.Popen[bytes] | None = None
        sent: dict[int, bytes] = {}
        try:
            while True:
                number = rng.randrange(details["slices"])
                inside = np.zeros((height, width), bool)
                inside[: rng.randrange(1, height), : rng.randrange(1, width)] = True
                sent = {number: inside.astype(np.uint8).tobytes()}
                assert served.call(f"api/cases/{case}/actions", painted(number, inside)) == sent[number]
                answered |= sent
                killer = killer or kill_later(served.process.pid, rng.random())
        except urllib.error.HTTPError:
            raise
        except OSError:
            pass
        assert killer is not None
        killer.wait()
        served.kill()
        served.start()
        for number, expected in answered.items():
            found = served.call(f"api/cases/{case}/slices/{number}/classes")
            assert found in (expected, sent.get(number))
            answered[number] = found  # a step that was on disk when its answer was lost


def test_a_service_removes_the_temporary_files_of_one_that_was_killed(cohort: Path):
    left = [
        cohort / folder / ".0123456789ab.tmp.scan_0.nii.gz"
        for folder in ("images", "labels", ".handful/service/sessions/x", ".handful/service/accepted/y")
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    create_app(ServiceConfig(cohort=cohort, access=Access(host="127.0.0.1")))
    assert [file for file in left if file.exists()] == []


@pytest.mark.process
def test_many_annotators_at_once_lose_nothing_and_never_share_a_case(served: Served):
    """ANNOTATORS threads work on a fifth as many cases, but at least three, each with steps of its own."""
    for seed in range(3, max(3, ANNOTATORS // 5)):
        write_volume(served.cohort / "images" / f"scan_{seed}.nii.gz", phantom(seed)[0])
    served.call("api/labels", {"names": ["ball"]}, "PUT")
    cases = [case["id"] for case in json.loads(served.call("api/state"))["cases"]]
    last: dict[tuple[str, int], bytes] = {}
    holders: dict[str, str] = {}
    waited: list[str] = []

    def annotate(number: int) -> int:
        rng, name, done = random.Random(number), f"annotator {number}", 0
        end = time.monotonic() + 600
        while done < 4:
            assert time.monotonic() < end, "a case never becomes free"
            case = rng.choice(cases)
            try:
                details = json.loads(served.call(f"api/cases/{case}", annotator=name))
            except urllib.error.HTTPError as error:
                if error.code != 423:
                    raise
                waited.append(name)
                time.sleep(0.05)
                continue
            assert holders.setdefault(case, name) == name
            for _ in range(2):
                place = rng.randrange(details["slices"])
                inside = np.zeros(details["size"], bool)
                inside[: rng.randrange(1, 20), : rng.randrange(1, 20)] = True
                found = served.call(f"api/cases/{case}/actions", painted(place, inside), annotator=name)
                assert found == inside.astype(np.uint8).tobytes()
                last[case, place] = found
                done += 1
            holders.pop(case)
            served.call(f"api/cases/{case}/leave", method="POST", annotator=name)
        return done

    with ThreadPoolExecutor(ANNOTATORS) as pool:
        assert list(pool.map(annotate, range(ANNOTATORS))) == [4] * ANNOTATORS
    assert waited
    served.kill()
    served.start()
    for (case, place), expected in last.items():
        assert served.call(f"api/cases/{case}/slices/{place}/classes", annotator="after") == expected
