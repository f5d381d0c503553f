"""A served page in the test's own process, and somebody who asks it."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from daemon.service import Service
from daemon.web_guard import TOKEN_FILE
from state.layout import PROGRESS_FILE
from state.store import Store
from tests.fakes_service import FakeWorker, Running, drop, fast_config, wait_until


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.text)


@dataclass
class Visitor:
    """Somebody who asks one page; keeps its cookie as a browser does."""

    port: int
    home: Path
    cookie: str = ""
    origin: str = field(default="")

    def __post_init__(self) -> None:
        self.origin = self.origin or f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """What the token file holds."""
        return (self.home / TOKEN_FILE).read_text().strip()

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """One request; header names are given with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent.setdefault("Cookie", self.cookie)
        try:
            connection.request(method, path, body, sent)
            got = connection.getresponse()
            text = got.read().decode()
        finally:
            connection.close()
        found = dict(got.getheaders())
        if set_cookie := found.get("Set-Cookie"):
            self.cookie = set_cookie.partition(";")[0]
        return Answer(got.status, found, text)

    def get(self, path: str, **headers: str) -> Answer:
        """A page."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """A form, as a browser sends one of this page unless the headers say otherwise."""
        sent = {"Content_Type": "application/x-www-form-urlencoded", "Origin": self.origin, **headers}
        return self.ask(
            "POST",
            path,
            urlencode(fields),
            **{name: value for name, value in sent.items() if value or name != "Origin"},
        )

    def log_in(self) -> None:
        """Gives the token and keeps the cookie."""
        assert self.post("/login", {"token": self.token, "next": "/"}).status == 303

    def form(self, path: str) -> dict[str, str]:
        """The hidden fields of the form on a page that asks for confirmation."""
        text = self.get(path).text
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text.partition("<main")[2]))

    def confirm(self, action: str, ref: str = "", **fields: str) -> Answer:
        """Reads what is asked, and says yes."""
        form = self.form(f"/confirm/{action}?{urlencode({'ref': ref})}")
        return self.post(f"/do/{action}", {**form, **fields})

    def command(self, action: str, ref: str = "", reason: str = "") -> Answer:
        """What a script does: the token in a header."""
        fields = {"ref": ref, "reason": reason}
        return self.post(f"/do/{action}", fields, Origin="", Authorization=f"Bearer {self.token}")


@contextmanager
def serving(home: Path, worker: FakeWorker, *, port: int = 0, **tables: Any) -> Iterator[Visitor]:
    """A service with a page, and a visitor of it, not logged in."""
    port = port or free_port()
    web = {"listen": str(port), **tables.pop("web", {})}
    with Running(Service(home, fast_config(web=web, **tables), once=False, argv=worker.argv, tick_s=0.1)):
        wait_until(lambda: bool(shown(home).get("page")))
        yield Visitor(port, home)


def shown(home: Path) -> dict[str, Any]:
    """What the service says of itself; empty while it says nothing."""
    try:
        found: dict[str, Any] = json.loads((home / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def publish(home: Path, name: str, content: str = "") -> None:
    """Drops a batch and waits until the running service has made a version of it."""
    with Store.open(home) as store:
        before = store.current().id
        drop(home, name, content or f"{name}\n")
        wait_until(lambda: store.current().id > before)
