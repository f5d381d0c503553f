"""`export --push` against a local stand-in of a hub: the calls of its interface, whole files in one commit."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes
from state.store import Store
from tests.command_world import usable_base
from tests.state_world import content, make_version

ROOT = Path(__file__).resolve().parent.parent


class Hub(ThreadingHTTPServer):
    """Takes one commit, and keeps its files."""

    files: dict[str, bytes]
    made: dict[str, Any]
    status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200:
            return self._answer(self.server.status, {"error": "no"})
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return self._answer(200, {"url": f"http://{self.headers['Host']}/zorp/glim", "name": "zorp/glim"})
        if self.path == "/api/validate-yaml":  # of the card
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._answer(200, {"files": told})
        lines = [json.loads(line) for line in body.splitlines()]
        values = [line["value"] for line in lines if line["key"] == "file"]
        self.server.files = {value["path"]: base64.b64decode(value["content"]) for value in values}
        url = f"http://{self.headers['Host']}/zorp/glim/commit/1"
        return self._answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url})

    def do_GET(self) -> None:
        self._answer(200, {"sha": "0" * 40, "siblings": [], "id": "zorp/glim"})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), _Handler)
    server.files, server.made = {}, {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(usable_base(tmp_path / "base"))]) == 0
    with Store.open(tmp_path / "home") as store:
        make_version(store, 1)
    return tmp_path / "home"


def push(home: Path, port: int, out: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads the endpoint when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_zorp",
        "HF_HOME": str(out.parent / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "daemon", "-c", str(home), "export", "v1", str(out), "--push", "zorp/glim"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_folder_arrives_whole_in_a_private_repository(home: Path, hub: Hub, tmp_path: Path) -> None:
    done = push(home, hub.server_port, tmp_path / "out")
    assert done.returncode == exitcodes.OK, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed: http://127.0.0.1:{hub.server_port}/zorp/glim/commit/1"
    assert hub.files == content(tmp_path / "out")
    assert hub.made["name"] == "glim"
    assert hub.made.get("private") or hub.made["visibility"] == "private", hub.made  # by the library's version


@pytest.mark.parametrize("status", [401, 403, None])
def test_a_hub_that_says_no_or_nothing_leaves_the_export(
    home: Path, hub: Hub, tmp_path: Path, status: int | None
) -> None:
    hub.status = status or 200
    port = 1 if status is None else hub.server_port
    done = push(home, port, tmp_path / "out")
    assert done.returncode == exitcodes.FAILED
    assert "not pushed: zorp/glim at http://127.0.0.1" in done.stderr and "tries again" in done.stderr
    assert "Traceback" not in done.stderr and "hf_zorp" not in done.stderr
    assert {"README.md", "config.json"} < content(tmp_path / "out").keys()
