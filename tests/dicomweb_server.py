"""A DICOMweb archive in memory, in a thread, that can be told to answer wrongly; it holds what is stored in it."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread
from pydicom.dataset import Dataset

BOUNDARY = b"boundary-of-parts"
Answer = tuple[int, str, bytes]
"""Status, media type and body."""


@dataclass
class Server:
    """What the archive holds, what was requested, and which answers are wrong."""

    images: list[Dataset] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Method and path of each."""
    authorizations: set[str | None] = field(default_factory=set)
    faults: dict[str, list[Answer | Callable[[Server, Answer], Answer] | None]] = field(default_factory=dict)
    """By a pattern of "METHOD path": what to answer instead, or how to change the right answer, one per request."""
    page: int = 100
    """Entries of a list that are sent at most."""
    url: str = ""

    def address(self, query: str = "Modality=CT") -> str:
        return f"dicomweb:{self.url}?{query}"

    def count(self, pattern: str) -> int:
        """Requests of this pattern."""
        return sum(bool(re.search(pattern, one)) for one in self.requests)

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        parts = urlsplit(target)
        self.requests.append(f"{method} {parts.path}")
        right = self._right(method, parts.path, parse_qs(parts.query), body)
        for pattern, faults in self.faults.items():
            if re.search(pattern, self.requests[-1]) and faults:
                fault = faults.pop(0)
                return fault(self, right) if callable(fault) else fault or right
        return right

    def _right(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if method == "POST":
            return self._stored(body)
        words = path.removeprefix("/dicom-web/").split("/")
        uids = dict(zip(words[::2], words[1::2], strict=False))
        found = [
            one
            for one in self.images
            if uids.get("studies", one.StudyInstanceUID) == one.StudyInstanceUID
            and uids.get("series", one.SeriesInstanceUID) == one.SeriesInstanceUID
            and all(str(one.get(key)) == values[0] for key, values in query.items() if key[0].isupper())
        ]
        if words[-1] in ("series", "instances"):
            key = "SeriesInstanceUID" if words[-1] == "series" else "SOPInstanceUID"
            entries = list({one[key].value: one for one in found}.values())
            start = int(query.get("offset", ["0"])[0])
            listed = entries[start : start + min(self.page, int(query.get("limit", ["1000"])[0]))]
            return 200, "application/dicom+json", json.dumps([_listed(one) for one in listed]).encode()
        if not found:
            return 404, "text/plain", b"nothing"
        return 200, f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}', multipart(found)

    def _stored(self, body: bytes) -> Answer:
        part = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        data = dcmread(io.BytesIO(part))
        self.images.append(data)
        answer, reference = Dataset(), Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        answer.ReferencedSOPSequence = [reference]
        return 200, "application/dicom+json", answer.to_json().encode()


def multipart(images: Sequence[Dataset]) -> bytes:
    parts = []
    for one in images:
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
        parts.append(b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n")
    return b"".join(parts) + b"--" + BOUNDARY + b"--"


def _listed(image: Dataset) -> Any:
    entry = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "PatientName", "PatientID"):
        setattr(entry, keyword, image.get(keyword))
    return entry.to_json_dict()


@contextmanager
def serving(images: Sequence[Dataset] = ()) -> Iterator[Server]:
    """A server on a free port of this machine."""
    state = Server(list(images))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply("GET", b"")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self._reply("POST", b"".join(pieces))
            else:
                self._reply("POST", self.rfile.read(int(self.headers["Content-Length"])))

        def _reply(self, method: str, body: bytes) -> None:
            state.authorizations.add(self.headers.get("Authorization"))
            status, kind, content = state.answer(method, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/dicom-web"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()
