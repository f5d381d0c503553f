"""Shows the metrics: an HTTP endpoint on a thread of its own, and a file that is replaced now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import structlog

from daemon.config_serving import MetricsSection, address
from daemon.log import METRICS_FAILED, METRICS_STARTED
from daemon.metrics import CONTENT_TYPE

_CLIENT_S: Final = 5.0
_FILE_MODE: Final = 0o644

_log = structlog.get_logger()


class Exporter:
    """Serves what ``read`` gives. A port that is taken is told, and stops nothing.

    Args:
        read: the text of all metrics; called on the endpoint's thread and on the loop's.
        note: what a person should know; empty takes it back.
    """

    def __init__(
        self, home: Path, config: MetricsSection, read: Callable[[], str], note: Callable[[str], None]
    ) -> None:
        self._home, self._config = home, config
        self._read, self._note = read, note
        self._server: HTTPServer | None = None
        self._written_at: float | None = None
        self._problems: dict[str, str] = {}

    @property
    def port(self) -> int | None:
        """Where it listens; None where it does not."""
        return self._server.server_port if self._server else None

    def start(self) -> None:
        """Begins to listen, where the settings say so."""
        if not self._config.listen:
            return None
        try:
            self._server = _listening(self._config.listen, self._read)
        except OSError as err:
            _log.error(METRICS_FAILED, listen=self._config.listen, reason=str(err))
            return self._say("listen", f"{self._config.listen} cannot be listened on: {err.strerror or err}")
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        _log.info(METRICS_STARTED, listen=self._config.listen, port=self.port)
        return self._say("listen", "")

    def apply(self, config: MetricsSection) -> None:
        """Takes changed settings."""
        if config != self._config:
            self.stop()
            self._config, self._written_at = config, None
            self._problems = {}
            self._say("listen", "")
            self.start()

    def tick(self) -> None:
        """Replaces the file when it is due."""
        if not self._config.textfile:
            return
        now = time.monotonic()
        if self._written_at is not None and now - self._written_at < self._config.every_s:
            return
        is_first, self._written_at = self._written_at is None, now
        path = self._home / self._config.textfile
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.write_text(self._read(), encoding="utf-8")
            temporary.chmod(_FILE_MODE)
            temporary.replace(path)
        except OSError as err:
            if is_first:
                _log.error(METRICS_FAILED, textfile=str(path), reason=str(err))
            self._say("textfile", f"{path} cannot be written: {err.strerror or err}")
        else:
            self._say("textfile", "")

    def _say(self, key: str, problem: str) -> None:
        self._problems[key] = f"metrics.{key}: {problem}" if problem else ""
        self._note("; ".join(filter(None, self._problems.values())))

    def stop(self) -> None:
        """Stops to listen; does nothing when it does not."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _listening(listen: str, read: Callable[[], str]) -> HTTPServer:
    """A server that answers one client at a time: a slow one costs the others `_CLIENT_S` at most."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_S
        server_version, sys_version = "alignd", ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] == "/metrics":
                self._send(200, read(), CONTENT_TYPE)
            else:
                self._send(404, "see /metrics\n", "text/plain; charset=utf-8")

        do_HEAD = do_GET  # noqa: N815

        def _send(self, status: int, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are not logged."""

    host, port = address(listen)

    class Server(HTTPServer):
        address_family = _family(host)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is no matter."""

    return Server((host, port), Handler)


def _family(host: str) -> int:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET
