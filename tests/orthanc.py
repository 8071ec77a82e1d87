"""Orthanc, a DICOM archive, as a process on a free port of this machine; Debian has it (orthanc, orthanc-dicomweb)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient

PLUGINS = [Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so")]
USER, PASSWORD = "handful", "pass-7731-secret"


def missing() -> str:
    """What is not installed; empty if all is there."""
    if shutil.which("Orthanc") is None or not any(plugin.exists() for plugin in PLUGINS):
        return "Orthanc with DICOMweb is not installed: apt-get install orthanc orthanc-dicomweb"
    return ""


class Orthanc:
    """One archive, whose content outlives a kill."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        self._settings = folder / "orthanc.json"
        self._log = folder / "orthanc.log"
        content = {
            "StorageDirectory": str(folder / "content"),
            "IndexDirectory": str(folder / "content"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(next(plugin for plugin in PLUGINS if plugin.exists()))],
        }
        self._settings.write_text(json.dumps(content))
        session = requests.Session()
        session.auth = (USER, PASSWORD)
        self.client: Any = DICOMwebClient(self.url, session=session)
        self.session = session

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._settings)], stdout=log, stderr=log)
        end = time.monotonic() + 600
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.session.get(f"http://127.0.0.1:{self.port}/system", timeout=5).raise_for_status()
                return
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.05)
        self.kill()
        raise AssertionError(f"Orthanc does not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it, as a power failure does."""
        self._process.kill()
        self._process.wait()
