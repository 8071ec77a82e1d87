"""`handful serve` as a process that can be killed and started again, and requests to it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool


class Served:
    """A server process that can be killed and started again."""

    def __init__(self, cohort: Path) -> None:
        self.cohort = cohort
        self.start()

    def start(self) -> None:
        """Start the service on a free port, and wait for its address."""
        code = "from handful.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", str(self.cohort), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def kill(self) -> None:
        """End the process, if it has not ended, and wait for it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def call(self, path: str, content: object | None = None, method: str | None = None, annotator: str = "") -> bytes:
        """The answer to a request; HTTPError if it is refused, another OSError if there is none or only part of one."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"content-type": "application/json", "x-annotator": annotator}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return bytes(answer.read())
        except HTTPException as error:
            raise ConnectionError(f"{path}: the connection ended before the answer: {error!r}") from error


def painted(number: int, inside: Bool[np.ndarray, "h w"], label: int = 1) -> dict[str, Any]:
    """The request that replaces the mask of a slice."""
    mask = base64.b64encode(np.packbits(inside).tobytes()).decode()
    return {"kind": "paint", "slice": number, "label": label, "mask": mask}
